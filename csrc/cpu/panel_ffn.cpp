// A feed-forward block over a list of its channels. Weights are read where they lie; what is
// between the two products stays in the cache.
#include "panel_few.h"
#include "panel_norm.h"
#include "panel_tile.h"
#include "team.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// Channels or outputs that one of several threads works off at a time.
constexpr int64_t kUnit = 32;
// Up to this many strips are cut across channels where threads are many.
constexpr int64_t kSharedStrips = 16;

// h = act(h), or act(g) * h, of `rows` rows of `n` floats.
LB_OUTLINE void activate(Activation activation, float* h, const float* g, int64_t rows, int64_t n,
                         int64_t stride) {
  dispatch_activation(activation, [&](auto act) __attribute__((always_inline)) {
    for (int64_t r = 0; r < rows; ++r) {
      float* to = h + r * stride;
      if (g == nullptr) {
        for (int64_t j = 0; j < n; j += W) store(to + j, act(load(to + j)));
      } else {
        const float* gate = g + r * stride;
        for (int64_t j = 0; j < n; j += W) store(to + j, act(load(gate + j)) * load(to + j));
      }
    }
  });
}

template <class T>
const T* gates_of(const PanelFfn& args, int64_t row) {
  const int64_t sample = args.gate_rows == 1 ? 0 : row / args.rows_per_sample;
  return static_cast<const T*>(args.gates.data) + sample * args.gates.stride;
}

// Multiplies the channels [begin, end) of a strip by their gates.
template <class T>
void gate_strip(const PanelFfn& args, int64_t begin, int64_t end, int64_t token, int64_t tokens,
                float* h) {
  const int64_t vectors = (tokens + W - 1) / W;
  for (int64_t c = begin; c < end; ++c) {
    float* row = h + (c - begin) * kStrip;
    const int64_t channel = args.list.channels[c];
    if (args.gate_rows == 1) {
      const vf g = splat(to_float(gates_of<T>(args, 0) + channel));
      for (int64_t v = 0; v < vectors; ++v) store(row + v * W, load(row + v * W) * g);
    } else {
      for (int64_t t = 0; t < tokens; ++t) {
        row[t] *= to_float(gates_of<T>(args, token + t) + channel);
      }
    }
  }
}

// What a member works on: strips of x and the products around the channels.
struct Work {
  Strips strips;
  float* x;  // [strips, inputs, kStrip]
  float* h;  // [strips, kPanelBlock, kStrip]
  float* g;  // the same, of a gated block
  float* y;  // [strips, whole_sums(outputs), kStrip]
  float* scratch;
  float* start;  // [whole_sums(outputs)]
};

int64_t work_floats(const PanelFfn& args) {
  const int64_t hidden = kPanelBlock * (args.gate.data == nullptr ? 1 : 2);
  return (args.inputs + hidden + whole_sums(args.outputs)) * kStrip;
}

int64_t strips_of(const PanelFfn& args) { return (args.rows + kStrip - 1) / kStrip; }

int64_t together_of(const PanelFfn& args, int64_t members) {
  const int64_t most = strips_at_once(work_floats(args));
  const int64_t share = (strips_of(args) + members - 1) / members;
  return share < most ? share : most;
}

Work lay_out(const PanelFfn& args, int64_t strips, float* memory) {
  Work work{};
  auto take = [&](int64_t floats) {
    float* at = memory;
    memory += floats;
    return at;
  };
  work.x = take(strips * args.inputs * kStrip);
  work.h = take(strips * kPanelBlock * kStrip);
  if (args.gate.data != nullptr) work.g = take(strips * kPanelBlock * kStrip);
  work.y = take(strips * whole_sums(args.outputs) * kStrip);
  work.start = take(whole_sums(args.outputs));
  work.scratch = memory;
  return work;
}

template <class T>
bool far_away(const PanelFfn& args, int64_t width) {
  return args.list.active * width * static_cast<int64_t>(sizeof(T)) > kFarBytes;
}

template <class T, bool paired>
void load_x(const PanelFfn& args, Work& work, const Strips& strips) {
  const PanelRun all{0, 0, args.inputs};
  work.strips = strips;
  for (int64_t s = 0; s < strips.count(); ++s) {
    float* strip = work.x + s * args.inputs * kStrip;
    load_strip<T>(args.x, strips.token + s * kStrip, strips.tokens_in(s), &all, 1, strip);
    if (args.norm != PanelNorm::kNone) norm_strip<T>(args, strips.vectors_in(s), strip);
    if constexpr (paired) pair_rows(strip, args.inputs, strips.vectors_in(s));
  }
}

// h of the channels at places [begin, end), at most kPanelBlock.
template <class T, bool paired>
void hidden_block(const PanelFfn& args, const Work& work, int64_t begin, int64_t end) {
  const PanelRun all{0, 0, args.inputs};
  const Columns columns{&all, 1, 0, args.inputs, far_away<T>(args, args.inputs)};
  auto project = [&](const ConstRows& weight, const void* bias, float* to) {
    float start[kPanelBlock];
    gather_floats<T>(bias, args.list.channels, begin, end, whole_sums(end - begin), start);
    rows_product<T, paired>(weight, args.list.channels, begin, end, columns, work.strips, work.x,
                            args.inputs * kStrip, start, to, kPanelBlock * kStrip, work.scratch);
  };
  project(args.up, args.up_bias, work.h);
  if (work.g != nullptr) project(args.gate, args.gate_bias, work.g);
  for (int64_t s = 0; s < work.strips.count(); ++s) {
    float* h = work.h + s * kPanelBlock * kStrip;
    const float* g = work.g == nullptr ? nullptr : work.g + s * kPanelBlock * kStrip;
    const int64_t vectors = work.strips.vectors_in(s);
    activate(args.activation, h, g, end - begin, vectors * W, kStrip);
    if (args.gates.data != nullptr) {
      gate_strip<T>(args, begin, end, work.strips.token + s * kStrip, work.strips.tokens_in(s), h);
    }
    if constexpr (paired) pair_rows(h, end - begin, vectors);
  }
}

// y of outputs [begin, end): start, or what is there, plus the channels of a block in h.
template <class T, bool paired>
void down_block(const PanelFfn& args, const Work& work, int64_t block, int64_t begin, int64_t end,
                const float* h, const float* start, float* y, int64_t y_strip) {
  const PanelList& list = args.list;
  const int64_t first = list.block_runs[block];
  const int64_t origin = block * kPanelBlock;
  const int64_t places = list.active - origin < kPanelBlock ? list.active - origin : kPanelBlock;
  const Columns columns{list.runs + first, list.block_runs[block + 1] - first, origin, places,
                        far_away<T>(args, args.outputs)};
  rows_product<T, paired>(args.down, nullptr, begin, end, columns, work.strips, h,
                          kPanelBlock * kStrip, start, y, y_strip, work.scratch);
}

// Rows of `y` that only the bias reaches.
void fill_rows(const Work& work, const float* start, int64_t rows, float* y, int64_t y_strip) {
  for (int64_t s = 0; s < work.strips.count(); ++s) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t v = 0; v < work.strips.vectors_in(s); ++v) {
        store(y + s * y_strip + r * kStrip + v * W, splat(start[r]));
      }
    }
  }
}

// A member takes tokens, and carries them through both products.
template <class T, bool paired>
void by_tokens(const PanelFfn& args, Team& team, Counter* counters, float* memory) {
  const int64_t together = together_of(args, team.size);
  const int64_t room = whole_sums(args.outputs);
  Work work = lay_out(args, together, memory);
  gather_floats<T>(args.bias, nullptr, 0, args.outputs, room, work.start);
  const PanelRun all{0, 0, args.outputs};
  share_phase(team, counters[0], (strips_of(args) + together - 1) / together, [&](int64_t u) {
    const int64_t token = u * together * kStrip;
    const int64_t left = args.rows - token;
    load_x<T, paired>(args, work, {token, left < together * kStrip ? left : together * kStrip});
    for (int64_t b = 0; b < args.list.blocks(); ++b) {
      const int64_t begin = b * kPanelBlock;
      const int64_t end =
          begin + kPanelBlock < args.list.active ? begin + kPanelBlock : args.list.active;
      hidden_block<T, paired>(args, work, begin, end);
      down_block<T, paired>(args, work, b, 0, args.outputs, work.h, b == 0 ? work.start : nullptr,
                            work.y, room * kStrip);
    }
    if (args.list.active == 0) fill_rows(work, work.start, args.outputs, work.y, room * kStrip);
    for (int64_t s = 0; s < work.strips.count(); ++s) {
      store_strip<T>(work.y + s * room * kStrip, 0, args.outputs, &all, 1, token + s * kStrip,
                     work.strips.tokens_in(s), args.residual, args.out);
    }
  });
}

// More threads than strips: they share the channels of each strip, then its outputs.
template <class T, bool paired>
void by_channels(const PanelFfn& args, Team& team, Counter* counters, float* memory) {
  const int64_t strips = strips_of(args);
  const int64_t blocks = args.list.blocks();
  const int64_t hidden = blocks * kPanelBlock * kStrip;
  Work work = lay_out(args, 1, memory);
  auto strip_at = [&](int64_t s) {
    const int64_t token = s * kStrip;
    return Strips{token, args.rows - token < kStrip ? args.rows - token : kStrip};
  };
  int64_t loaded = -1;
  float* own = work.h;
  const int64_t parts = (args.list.active + kUnit - 1) / kUnit;
  constexpr int64_t kRows = paired ? 2 : 1;
  share_phase(team, counters[0], strips * parts, [&](int64_t u) {
    const int64_t s = u / parts;
    if (s != loaded) load_x<T, paired>(args, work, strip_at(s));
    loaded = s;
    const int64_t begin = u % parts * kUnit;
    const int64_t end = begin + kUnit < args.list.active ? begin + kUnit : args.list.active;
    work.h = own;
    hidden_block<T, paired>(args, work, begin, end);
    std::memcpy(args.hidden + s * hidden + begin / kRows * kStrip, own,
                static_cast<size_t>((end - begin) / kRows * kStrip) * sizeof(float));
  });
  const int64_t cuts = (args.outputs + kUnit - 1) / kUnit;
  const PanelRun all{0, 0, args.outputs};
  share_phase(team, counters[1], strips * cuts, [&](int64_t u) {
    const int64_t s = u / cuts;
    const int64_t begin = u % cuts * kUnit;
    const int64_t end = begin + kUnit < args.outputs ? begin + kUnit : args.outputs;
    work.strips = strip_at(s);
    gather_floats<T>(args.bias, nullptr, begin, end, whole_sums(end - begin), work.start);
    for (int64_t b = 0; b < blocks; ++b) {
      const float* h = args.hidden + s * hidden + b * kPanelBlock / kRows * kStrip;
      down_block<T, paired>(args, work, b, begin, end, h, b == 0 ? work.start : nullptr, work.y, 0);
    }
    if (blocks == 0) fill_rows(work, work.start, end - begin, work.y, 0);
    store_strip<T>(work.y, begin, end, &all, 1, work.strips.token, work.strips.tokens,
                   args.residual, args.out);
  });
}

// A few rows: their products run along the weights.
template <class T>
void few_rows(const PanelFfn& args, Team& team, Counter* counters, float* memory) {
  const int64_t d = args.inputs, active = args.list.active;
  for (int64_t m = 0; m < args.rows; ++m) {
    float* row = memory + m * d;
    to_floats(static_cast<const T*>(args.x.data) + m * args.x.stride, d, row);
    if (args.norm != PanelNorm::kNone) norm_row<T>(args, row);
  }
  const PanelRun every{0, 0, d};
  share_phase(team, counters[0], (active + kFewPlaces - 1) / kFewPlaces, [&](int64_t u) {
    const int64_t begin = u * kFewPlaces;
    const int64_t end = begin + kFewPlaces < active ? begin + kFewPlaces : active;
    auto project = [&](const ConstRows& weight, const void* bias, float* to) {
      few_product<T>(weight, args.list.channels, begin, end, &every, 1, args.rows, memory, d,
                     far_away<T>(args, d), to);
      if (bias == nullptr) return;
      float offset[kFewPlaces];
      gather_floats<T>(bias, args.list.channels, begin, end, kFewPlaces, offset);
      for (int64_t m = 0; m < args.rows; ++m) {
        float* row = to + m * kFewPlaces;
        for (int64_t i = 0; i < kFewPlaces; i += W)
          store(row + i, load(row + i) + load(offset + i));
      }
    };
    float h[kPanelFewRows * kFewPlaces];
    float g[kPanelFewRows * kFewPlaces];
    project(args.up, args.up_bias, h);
    if (args.gate.data != nullptr) project(args.gate, args.gate_bias, g);
    activate(args.activation, h, args.gate.data == nullptr ? nullptr : g, args.rows, kFewPlaces,
             kFewPlaces);
    for (int64_t m = 0; m < args.rows; ++m) {
      float* row = h + m * kFewPlaces;
      if (args.gates.data != nullptr) {
        const T* gates = gates_of<T>(args, m);
        for (int64_t c = begin; c < end; ++c) {
          row[c - begin] *= to_float(gates + args.list.channels[c]);
        }
      }
      std::memcpy(args.hidden + m * active + begin, row,
                  static_cast<size_t>(end - begin) * sizeof(float));
    }
  });
  const int64_t runs = args.list.block_runs[args.list.blocks()];
  share_phase(team, counters[1], (args.outputs + kFewPlaces - 1) / kFewPlaces, [&](int64_t u) {
    const int64_t begin = u * kFewPlaces;
    const int64_t end = begin + kFewPlaces < args.outputs ? begin + kFewPlaces : args.outputs;
    float y[kPanelFewRows * kFewPlaces];
    float offset[kFewPlaces];
    gather_floats<T>(args.bias, nullptr, begin, end, kFewPlaces, offset);
    few_product<T>(args.down, nullptr, begin, end, args.list.runs, runs, args.rows, args.hidden,
                   active, far_away<T>(args, args.outputs), y);
    for (int64_t m = 0; m < args.rows; ++m) {
      T* to = static_cast<T*>(args.out.data) + m * args.out.stride;
      const T* add = static_cast<const T*>(args.residual.data) + m * args.residual.stride;
      for_each_vector(end - begin, [&](int64_t j, int64_t n) {
        vf value = load_some(y + m * kFewPlaces + j, n) + load_some(offset + j, n);
        if (args.residual.data != nullptr) value += load_some(add + begin + j, n);
        store_some(to + begin + j, value, n);
      });
    }
  });
}

}  // namespace

int64_t panel_ffn_floats(const PanelFfn& args, int64_t members) {
  if (args.rows <= kPanelFewRows) return args.rows * args.inputs;
  const int64_t depth = args.inputs > kPanelBlock ? args.inputs : kPanelBlock;
  return together_of(args, members) * work_floats(args) + whole_sums(args.outputs) + kSums * depth;
}

int64_t panel_ffn_hidden_floats(const PanelFfn& args) {
  if (args.rows <= kPanelFewRows) return args.rows * args.list.active;
  if (strips_of(args) > kSharedStrips) return 0;
  return strips_of(args) * args.list.blocks() * kPanelBlock * kStrip;
}

void panel_ffn(const PanelFfn& args, Team& team, float* memory) {
  auto* counters = static_cast<Counter*>(args.counters);
  auto many = [&]<class T, bool paired>() {
    if (strips_of(args) < team.size && strips_of(args) <= kSharedStrips) {
      by_channels<T, paired>(args, team, counters, memory);
    } else {
      by_tokens<T, paired>(args, team, counters, memory);
    }
  };
  dispatch_type(args.dtype, [&]<class T>(T) {
    const PanelList& list = args.list;
    if (args.rows <= kPanelFewRows) {
      few_rows<T>(args, team, counters, memory);
    } else if (takes_pairs<T>(list.runs, list.block_runs[list.blocks()], args.inputs)) {
      many.template operator()<T, kIsBf16<T>>();
    } else {
      many.template operator()<T, false>();
    }
  });
}

}  // namespace leeboard::LEEBOARD_LEVEL
