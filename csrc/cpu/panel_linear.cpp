// A linear layer over a list of rows or columns of its weight, which is read where it lies.
#include "panel_few.h"
#include "panel_tile.h"
#include "team.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// Outputs that are worked off at a time by one of several threads, and by one alone.
constexpr int64_t kUnit = 32;

bool over_outputs(const PanelLinear& args) { return args.over == PanelOver::kOutputs; }
int64_t depth_of(const PanelLinear& args) {
  return over_outputs(args) ? args.inputs : args.list.active;
}
int64_t width_of(const PanelLinear& args) {
  return over_outputs(args) ? args.list.active : args.outputs;
}

// The product, in the terms of its depth (columns of weight) and width (rows of weight).
struct Product {
  const int64_t* channels;  // rows of weight; null: all
  const PanelRun* runs;     // columns of weight
  int64_t run_count;
  const PanelRun* in;  // columns of x
  int64_t in_count;
  const PanelRun* out;  // columns of out
  int64_t out_count;
  PanelRun every_input;
  PanelRun every_output;
};

void describe(const PanelLinear& args, Product& p) {
  p.every_input = {0, 0, args.inputs};
  p.every_output = {0, 0, args.outputs};
  const PanelList& list = args.list;
  const bool rows = over_outputs(args);
  p.channels = rows ? list.channels : nullptr;
  p.runs = rows ? &p.every_input : list.runs;
  p.run_count = rows ? 1 : list.block_runs[list.blocks()];
  p.in = rows ? &p.every_input : list.columns;
  p.in_count = rows ? 1 : list.column_count;
  p.out = rows ? list.columns : &p.every_output;
  p.out_count = rows ? list.column_count : 1;
}

// Columns of out that no panel stands for: the residual, or zero.
template <class T>
void fill_gaps(const PanelLinear& args, const Product& p, int64_t token, int64_t tokens) {
  if (width_of(args) == args.out_cols) return;
  int64_t column = 0;
  for (int64_t i = 0; i <= p.out_count; ++i) {
    const int64_t next = i < p.out_count ? p.out[i].weight : args.out_cols;
    for (int64_t m = token; column < next && m < token + tokens; ++m) {
      T* to = static_cast<T*>(args.out.data) + m * args.out.stride;
      const T* add = static_cast<const T*>(args.residual.data) + m * args.residual.stride;
      for (int64_t j = column; j < next; ++j) to[j] = args.residual.data == nullptr ? T{} : add[j];
    }
    if (i < p.out_count) column = p.out[i].weight + p.out[i].count;
  }
}

template <class T>
void few_rows(const PanelLinear& args, const Product& p, Team& team, Counter& counter,
              float* memory) {
  const int64_t depth = depth_of(args), width = width_of(args);
  for (int64_t m = 0; m < args.rows; ++m) {
    const T* row = static_cast<const T*>(args.x.data) + m * args.x.stride;
    for (int64_t c = 0; c < p.in_count; ++c) {
      to_floats(row + p.in[c].weight, p.in[c].count, memory + m * depth + p.in[c].place);
    }
  }
  const bool far = depth * width * static_cast<int64_t>(sizeof(T)) > kFarBytes;
  const int64_t units = (width + kFewPlaces - 1) / kFewPlaces;
  share_phase(team, counter, units > 0 ? units : 1, [&](int64_t u) {
    if (u == 0) fill_gaps<T>(args, p, 0, args.rows);
    const int64_t begin = u * kFewPlaces;
    const int64_t end = begin + kFewPlaces < width ? begin + kFewPlaces : width;
    if (begin >= end) return;
    float y[kPanelFewRows * kFewPlaces];
    float offset[kFewPlaces];
    gather_floats<T>(args.bias, p.channels, begin, end, kFewPlaces, offset);
    few_product<T>(args.weight, p.channels, begin, end, p.runs, p.run_count, args.rows, memory,
                   depth, far, y);
    for (int64_t m = 0; m < args.rows; ++m) {
      T* to = static_cast<T*>(args.out.data) + m * args.out.stride;
      const T* add = static_cast<const T*>(args.residual.data) + m * args.residual.stride;
      for_each_clipped(p.out, p.out_count, begin, end,
                       [&](int64_t column, int64_t place, int64_t n) {
                         vf value = load_some(y + m * kFewPlaces + place - begin, n) +
                                    load_some(offset + place - begin, n);
                         if (args.residual.data != nullptr) value += load_some(add + column, n);
                         store_some(to + column, value, n);
                       });
    }
  });
}

// Units are (strips, places); a member keeps the strips that it has loaded.
template <class T, bool paired>
void many_rows(const PanelLinear& args, const Product& p, Team& team, Counter& counter,
               float* memory) {
  const int64_t depth = depth_of(args), width = width_of(args);
  const int64_t strips = (args.rows + kStrip - 1) / kStrip;
  const bool cut_places = strips < team.size;
  const int64_t most = strips_at_once(depth * kStrip);
  const int64_t share = (strips + team.size - 1) / team.size;
  const int64_t together = cut_places ? 1 : (share < most ? share : most);
  const int64_t groups = (strips + together - 1) / together;
  const int64_t step = cut_places ? kUnit : kPanelBlock;
  // Without any place there are gaps to fill.
  const int64_t cuts = cut_places && width > 0 ? (width + step - 1) / step : 1;
  float* x = memory;
  float* y = x + together * depth * kStrip;
  float* scratch = y + together * kPanelBlock * kStrip;
  const bool far = depth * width * static_cast<int64_t>(sizeof(T)) > kFarBytes;
  const Columns columns{p.runs, p.run_count, 0, depth, far};
  int64_t loaded = -1;
  share_phase(team, counter, groups * cuts, [&](int64_t u) {
    const int64_t group = u / cuts;
    const int64_t token = group * together * kStrip;
    const int64_t left = args.rows - token;
    const Strips part{token, left < together * kStrip ? left : together * kStrip};
    if (group != loaded) {
      for (int64_t s = 0; s < part.count(); ++s) {
        float* strip = x + s * depth * kStrip;
        load_strip<T>(args.x, token + s * kStrip, part.tokens_in(s), p.in, p.in_count, strip);
        if constexpr (paired) pair_rows(strip, depth, part.vectors_in(s));
      }
      loaded = group;
    }
    if (u % cuts == 0) fill_gaps<T>(args, p, token, part.tokens);
    const int64_t first = cut_places ? u % cuts * step : 0;
    const int64_t last = cut_places && first + step < width ? first + step : width;
    for (int64_t begin = first; begin < last; begin += step) {
      const int64_t end = begin + step < last ? begin + step : last;
      float start[kPanelBlock];
      gather_floats<T>(args.bias, p.channels, begin, end, whole_sums(end - begin), start);
      rows_product<T, paired>(args.weight, p.channels, begin, end, columns, part, x, depth * kStrip,
                              start, y, kPanelBlock * kStrip, scratch);
      for (int64_t s = 0; s < part.count(); ++s) {
        store_strip<T>(y + s * kPanelBlock * kStrip, begin, end, p.out, p.out_count,
                       token + s * kStrip, part.tokens_in(s), args.residual, args.out);
      }
    }
  });
}

}  // namespace

int64_t panel_linear_floats(const PanelLinear& args, int64_t members) {
  const int64_t depth = depth_of(args);
  if (args.rows <= kPanelFewRows) return args.rows * depth;
  const int64_t strips = (args.rows + kStrip - 1) / kStrip;
  const int64_t share = (strips + members - 1) / members;
  const int64_t most = strips_at_once(depth * kStrip);
  return (share < most ? share : most) * (depth + kPanelBlock) * kStrip + kSums * depth;
}

void panel_linear(const PanelLinear& args, Team& team, float* memory) {
  Counter& counter = *static_cast<Counter*>(args.counters);
  Product p;
  describe(args, p);
  dispatch_type(args.dtype, [&]<class T>(T) {
    if (args.rows <= kPanelFewRows) {
      few_rows<T>(args, p, team, counter, memory);
    } else if (takes_pairs<T>(p.runs, p.run_count, depth_of(args))) {
      many_rows<T, kIsBf16<T>>(args, p, team, counter, memory);
    } else {
      many_rows<T, false>(args, p, team, counter, memory);
    }
  });
}

}  // namespace leeboard::LEEBOARD_LEVEL
