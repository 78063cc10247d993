// First-order saliency: sums over tokens of activation times gradient. Both tensors are read once.
//
// The order of every sum is that of a tree: steps of four tokens, 32 steps to a chunk, chunks
// pairwise, then the channels of a unit pairwise. What 10^5 tokens round is what a few dozen would.
#include "level.h"
#include "simd.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

inline constexpr int64_t kStep = 4;
// Columns whose sums stay in the first-level cache while the tokens of a chunk pass.
inline constexpr int64_t kColumns = 2048;

template <class T, int step>
LB_INLINE void add_tokens(const UnitSaliency& args, int64_t sample, int64_t token, int64_t column,
                          int64_t columns, int64_t ahead, float* sums) {
  const T* a[step];
  const T* g[step];
#pragma GCC unroll 4
  for (int k = 0; k < step; ++k) {
    a[k] = static_cast<const T*>(args.activation.data) + sample * args.activation_batch +
           (token + k) * args.activation.stride + column;
    g[k] = static_cast<const T*>(args.grad.data) + sample * args.grad_batch +
           (token + k) * args.grad.stride + column;
  }
  for_each_vector(columns, [&](int64_t j, int64_t n) {
    // While these tokens are added, memory already reads the next ones.
    if (ahead > 0) {
#pragma GCC unroll 4
      for (int k = 0; k < step; ++k) {
        prefetch(a[k] + ahead * args.activation.stride + j);
        prefetch(g[k] + ahead * args.grad.stride + j);
      }
    }
    // Two sums: half the wait for additions, and half the rounding.
    vf even = {};
    vf odd = {};
#pragma GCC unroll 4
    for (int k = 0; k < step; ++k) {
      vf& sum = k % 2 == 0 ? even : odd;
      sum = fma(load_n(a[k] + j, n), load_n(g[k] + j, n), sum);
    }
    store_n(sums + j, load_n(sums + j, n) + (even + odd), n);
  });
}

template <class T>
void sum_chunks(const UnitSaliency& args, int64_t begin, int64_t end) {
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t sample = chunk / args.chunks;
    const int64_t first = chunk % args.chunks * kSaliencyTokens;
    const int64_t last =
        first + kSaliencyTokens < args.tokens ? first + kSaliencyTokens : args.tokens;
    float* sums = args.partial + chunk * args.cols;
    std::memset(sums, 0, static_cast<size_t>(args.cols) * sizeof(float));
    for (int64_t column = 0; column < args.cols; column += kColumns) {
      const int64_t left = args.cols - column;
      const int64_t columns = left < kColumns ? left : kColumns;
      int64_t token = first;
      for (; token + kStep <= last; token += kStep) {
        add_tokens<T, kStep>(args, sample, token, column, columns,
                             token + 2 * kStep <= last ? kStep : 0, sums + column);
      }
      for (; token < last; ++token) {
        add_tokens<T, 1>(args, sample, token, column, columns, 0, sums + column);
      }
    }
  }
}

// The sum of n numbers by halves.
float tree_sum(const float* p, int64_t n) {
  constexpr int64_t kLeaf = 4 * W;
  if (n > kLeaf) {
    const int64_t half = n / 2;
    return tree_sum(p, half) + tree_sum(p + half, n - half);
  }
  vf sum = {};
  for_each_vector(n, [&](int64_t j, int64_t count) { sum = sum + load_n(p + j, count); });
  return horizontal_sum(sum);
}

LB_INLINE vf magnitude(vf v) { return reinterpret_cast<vf>(reinterpret_cast<vu>(v) & 0x7fffffffu); }

void join_units(const UnitSaliency& args, int64_t sample, int64_t begin, int64_t end) {
  const int64_t first = begin * args.width;
  const int64_t columns = (end - begin) * args.width;
  float* sums = args.partial + sample * args.chunks * args.cols + first;
  for (int64_t apart = 1; apart < args.chunks; apart *= 2) {
    for (int64_t chunk = 0; chunk + apart < args.chunks; chunk += 2 * apart) {
      float* to = sums + chunk * args.cols;
      const float* from = to + apart * args.cols;
      for_each_vector(columns, [&](int64_t j, int64_t n) {
        store_n(to + j, load_n(to + j, n) + load_n(from + j, n), n);
      });
    }
  }
  float* out = static_cast<float*>(args.out.data) + sample * args.out.stride;
  if (args.width == 1) {
    for_each_vector(columns, [&](int64_t j, int64_t n) {
      store_n(out + begin + j, magnitude(load_n(sums + j, n)), n);
    });
    return;
  }
  for (int64_t unit = begin; unit < end; ++unit) {
    out[unit] = __builtin_fabsf(tree_sum(sums + (unit - begin) * args.width, args.width));
  }
}

}  // namespace

void unit_saliency_chunks(const UnitSaliency& args, int64_t begin, int64_t end) {
  dispatch_type(args.dtype, [&]<class T>(T) { sum_chunks<T>(args, begin, end); });
}

void unit_saliency_units(const UnitSaliency& args, int64_t begin, int64_t end) {
  const int64_t units = args.cols / args.width;
  for (int64_t at = begin; at < end;) {
    const int64_t sample = at / units;
    const int64_t next = (sample + 1) * units;
    const int64_t stop = next < end ? next : end;
    join_units(args, sample, at - sample * units, stop - sample * units);
    at = stop;
  }
}

}  // namespace leeboard::LEEBOARD_LEVEL
