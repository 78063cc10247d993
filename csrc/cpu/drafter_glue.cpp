// What lies between two steps of a drafter's chain, row by row: the output norm, the next step's
// norms of the token's embedding and of the fed-back state, side by side.
#include "glue_row.h"
#include "level.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

template <class T>
void glue_rows(const DrafterGlue& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t token = args.token[row * args.token_stride];
    glue_row(static_cast<const T*>(args.x.data) + row * args.x.stride,
             static_cast<const T*>(args.embedding.data) + token * args.embedding.stride,
             static_cast<const T*>(args.norm_weight), static_cast<const T*>(args.hidden_weight),
             static_cast<const T*>(args.input_weight), args.eps, args.cols,
             static_cast<T*>(args.joined.data) + row * args.joined.stride,
             static_cast<T*>(args.state.data) + row * args.state.stride);
  }
}

}  // namespace

void drafter_glue_forward(const DrafterGlue& args, int64_t begin, int64_t end) {
  dispatch_type(args.dtype, [&]<class T>(T) { glue_rows<T>(args, begin, end); });
}

}  // namespace leeboard::LEEBOARD_LEVEL
