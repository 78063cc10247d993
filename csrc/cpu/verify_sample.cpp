// Lossless verification: rejection sampling along a draft, then one draw from what is left.
//
// Every visited row of the target is read once; only the part of it that holds the draw is read
// again. Rows that the walk does not reach are not read.
#include "draft_tree.h"
#include "level.h"
#include "mass.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

template <class T>
const T* row_of(const ConstRows& rows, int64_t row) {
  return static_cast<const T*>(rows.data) + row * rows.stride;
}

template <class T>
int64_t token_mass(const VerifySample& args, const T* row, int64_t token) {
  return token >= 0 && token < args.vocab ? mass_at(row, token) : 0;
}

// Target-only rule: the children of a node are tried in order, each that is rejected leaves p.
template <class T>
void verify_target(const VerifySample& args, int64_t b, BlockMasses& masses) {
  const Draft draft(args.tree, b);
  const int64_t nodes = draft.nodes;
  const double* uniforms = args.uniforms + b * args.uniforms_stride;
  const auto enter = [&](int64_t node) {
    const T* row = row_of<T>(args.target, b * (nodes + 1) + node + 1);
    fill_block_masses(Probabilities<T>{row}, args.vocab, masses);
    return row;
  };
  const T* row = enter(-1);
  int64_t current = -1;
  const auto is_rejected = [&](int64_t token, int64_t before) {
    for (int64_t j = current + 1; j < before; ++j) {
      if (draft.parent(j) == current && draft.tokens[j] == token) return true;
    }
    return false;
  };
  walk(draft, args.out, b, [&](int64_t i) {
    const int64_t token = draft.tokens[i];
    // A second child with the same token has nothing left.
    const int64_t mass = is_rejected(token, i) ? 0 : token_mass(args, row, token);
    if (draw(uniforms[i], masses.total) < mass) {
      row = enter(i);
      current = i;
      return true;
    }
    if (mass > 0) {
      masses.sums[token / masses.block] -= mass;
      masses.total -= mass;
    }
    return false;
  });
  args.out.next_token[b] =
      token_at(Probabilities<T>{row}, masses, draw(uniforms[nodes], masses.total),
               [&](int64_t token) { return is_rejected(token, nodes); });
}

// p/q rule for a chain that was drawn from q.
template <class T>
void verify_ratio(const VerifySample& args, int64_t b, BlockMasses& masses, BlockMasses& rest) {
  const Draft draft(args.tree, b);
  const int64_t nodes = draft.nodes;
  const double* uniforms = args.uniforms + b * args.uniforms_stride;
  const auto none = [](int64_t) { return false; };
  Residual<T> residual{};
  const auto enter = [&](int64_t i) {
    residual.p.row = row_of<T>(args.target, b * (nodes + 1) + i);
    fill_block_masses(residual.p, args.vocab, masses);
    residual.p_total = divisor(masses.total);
  };
  enter(0);
  const int64_t last = walk(draft, args.out, b, [&](int64_t i) {
    residual.q.row = row_of<T>(args.draft, b * nodes + i);
    residual.q_total = divisor(sum_of_masses(residual.q, 0, args.vocab));
    const int64_t token = draft.tokens[i];
    const double p =
        static_cast<double>(token_mass(args, residual.p.row, token)) / residual.p_total;
    const double q =
        static_cast<double>(token_mass(args, residual.q.row, token)) / residual.q_total;
    if (!((p >= q && p > 0.0) || uniforms[i] * q < p)) return false;
    enter(i + 1);
    return true;
  });
  const double u = uniforms[nodes];
  if (last + 1 < nodes) {
    fill_block_masses(residual, args.vocab, rest);
    if (rest.total > 0) {
      args.out.next_token[b] = token_at(residual, rest, draw(u, rest.total), none);
      return;
    }
  }
  args.out.next_token[b] = token_at(residual.p, masses, draw(u, masses.total), none);
}

template <class T>
bool is_distribution(const CheckDistributions& args, int64_t r) {
  const T* row = row_of<T>(args.rows, r);
  vi wrong = {};
  const int64_t total = sum_of_masses(CheckedProbabilities<T>{row, &wrong}, 0, args.cols);
  for (int i = 0; i < W; ++i) {
    if (wrong[i] != 0) return false;
  }
  const double off = static_cast<double>(total) / kUnit - 1.0;
  return off <= args.tolerance && -off <= args.tolerance;
}

}  // namespace

void verify_sample(const VerifySample& args, int64_t begin, int64_t end) {
  BlockMasses masses;
  BlockMasses rest;
  dispatch_type(args.dtype, [&]<class T>(T) {
    for (int64_t b = begin; b < end; ++b) {
      if (args.draft.data == nullptr) {
        verify_target<T>(args, b, masses);
      } else {
        verify_ratio<T>(args, b, masses, rest);
      }
    }
  });
}

void check_distributions(const CheckDistributions& args, int64_t begin, int64_t end) {
  dispatch_type(args.dtype, [&]<class T>(T) {
    for (int64_t r = begin; r < end; ++r) args.bad[r] = !is_distribution<T>(args, r);
  });
}

}  // namespace leeboard::LEEBOARD_LEVEL
