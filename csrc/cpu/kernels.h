// Entry points of the CPU kernels: raw pointers and strides, no Python, no torch.
//
// Every level of the instruction-set ladder compiles the same sources and fills one KernelTable.
// A kernel works on a range of its outermost index, so that the caller decides about threads;
// nothing it computes depends on how the whole is cut into ranges.
#pragma once

#include <cstdint>

namespace leeboard {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// A matrix whose rows are contiguous; strides count elements. data may be null when rows == 0.
struct ConstRows {
  const void* data;
  int64_t stride;
};
struct Rows {
  void* data;
  int64_t stride;
};

struct NormParams {
  DType dtype;
  int64_t cols;
  const void* weight;  // [cols], or null
  float eps;
  float weight_offset;
  bool round_before_weight;
};

// Row ranges. `stream` asks for non-temporal stores.
struct RmsNormForward {
  NormParams norm;
  ConstRows x;
  Rows out;
  bool stream;
};

struct AddRmsNormForward {
  NormParams norm;
  ConstRows x;
  ConstRows residual;
  Rows normed;
  Rows new_residual;
  bool stream;
};

// Chunk ranges: chunk c holds rows [c * chunk_rows, (c + 1) * chunk_rows) and owns row c of
// `partial`, so that the sum over rows has one order whatever the thread count.
struct RmsNormBackward {
  NormParams norm;
  int64_t rows;
  int64_t chunk_rows;
  ConstRows grad;
  ConstRows x;
  ConstRows grad_residual;  // data null when absent
  Rows grad_x;
  float* partial;  // [chunks, cols], or null when there is no weight
  bool stream;
};

// Column ranges: out[j] = sum over chunks, in order, of partial[c][j].
struct ColumnSum {
  DType dtype;
  int64_t chunks;
  int64_t cols;
  const float* partial;
  void* out;
};

// How the values of a weight matrix are stored. kInt8 has a float32 scale for each row. kInt4 holds
// groups of 128 columns with a bfloat16 scale: 16 words of 32 bits, nibble s of word l is column
// 16 s + l, and stands for nibble - 8; the last group is whole, whatever the number of columns.
enum class WeightFormat : int { kFloat32, kBFloat16, kFloat16, kInt8, kInt4 };

struct WeightMatrix {
  WeightFormat format;
  int64_t rows;
  int64_t cols;
  const void* data;
  int64_t stride;  // bytes between rows
  const void* scales;
  int64_t scale_stride;  // elements between the scales of two rows
};

// Prepared activations wait in float32, each row padded with zeros to a multiple of this and
// permuted to the order in which the dot kernel meets the weights of a format.
inline constexpr int64_t kPanelMultiple = 128;
constexpr int64_t packed_width(int64_t k) {
  return (k + kPanelMultiple - 1) / kPanelMultiple * kPanelMultiple;
}

// Weight rows that a panel of products holds.
inline constexpr int64_t kPanelFeatures = 8;

// Row ranges: x, normed if asked, goes to columns packed_offset.. of a panel for weights of
// `format`. The padding is left alone.
struct PackNormed {
  DType dtype;
  WeightFormat format;
  int64_t cols;
  ConstRows x;
  DType gamma_dtype;  // dtype, or float32
  const void* gamma;  // [cols], or null
  bool normalise;
  float eps;
  float* packed;
  int64_t packed_stride;
  int64_t packed_offset;
};

// Row ranges. `joined` has 2 cols columns; every token is a row of `embedding`.
struct DrafterGlue {
  DType dtype;
  int64_t cols;
  ConstRows x;
  const int64_t* token;
  int64_t token_stride;
  ConstRows embedding;
  const void* norm_weight;  // [cols]; null: the state is x
  const void* hidden_weight;
  const void* input_weight;
  float eps;
  Rows joined;
  Rows state;
};

// The most activation rows that one call of the kernels below takes.
inline constexpr int64_t kLinearMaxRows = 64;

// Feature ranges: out[m][v] = residual[m][v] + packed[m] . weight[v].
struct LinearForward {
  DType dtype;  // of residual and out
  int64_t rows;
  const float* packed;
  int64_t packed_stride;
  WeightMatrix weight;
  ConstRows residual;  // data null when absent
  Rows out;
};

// Feature ranges: gated[m][v] = silu(gate[v] . x[m]) * (up[v] . x[m]), in the order of a panel for
// weights of down_format. x is packed for gate and for up, which may be one panel.
struct SwigluForward {
  int64_t rows;
  const float* gate_packed;
  const float* up_packed;
  int64_t packed_stride;
  WeightMatrix gate;
  WeightMatrix up;
  WeightFormat down_format;
  float* gated;
  int64_t gated_stride;
};

// Vocabulary entries that a head reduces at a time, and the most that it keeps of a row.
inline constexpr int64_t kTopBlock = 128;
inline constexpr int64_t kTopMost = 64;

// head_blocks takes ranges of blocks, head_join of rows.
struct LinearHead {
  int64_t rows;
  int64_t k;  // 1 to min(kTopMost, vocabulary)
  const float* packed;
  int64_t packed_stride;
  WeightMatrix weight;
  // The k largest of each block and row, largest first, and sums of exponentials relative to the
  // first of them: [blocks, rows, k] and [blocks, rows] (null when there is no lse).
  float* block_value;
  int64_t* block_index;
  float* block_sum;
  const int64_t* d2t;  // [vocabulary], or null
  float* value;        // [rows, k]
  int64_t* index;
  float* lse;  // [rows], or null

  int64_t blocks() const { return (weight.rows + kTopBlock - 1) / kTopBlock; }
};

// Drafts of one sequence: tokens [nodes], and the node that each follows. Without parents, node i
// follows i - 1; node -1 is the root. Strides are between sequences.
struct DraftTree {
  int64_t nodes;
  const int64_t* tokens;
  int64_t tokens_stride;
  const int64_t* parents;  // null: a chain
  int64_t parents_stride;
};

// What a verification yields for each sequence.
struct VerifyOutputs {
  int64_t* accepted;
  int64_t* next_token;
  int64_t* path;  // [sequences, nodes], or null
};

// Sequence ranges.
struct VerifyGreedy {
  DraftTree tree;
  const int64_t* target;  // [sequences, nodes + 1]
  int64_t target_stride;
  VerifyOutputs out;
};

// Sequence ranges. Row b * (nodes + 1) + i of `target` is the distribution before draft i of a
// chain, or after node i - 1 of a tree; row b * nodes + i of `draft` is that of draft i.
struct VerifySample {
  DType dtype;
  int64_t vocab;
  DraftTree tree;
  ConstRows target;
  ConstRows draft;         // data null: the target-only rule
  const double* uniforms;  // [sequences, nodes + 1]
  int64_t uniforms_stride;
  VerifyOutputs out;
};

// Row ranges: bad[r] tells whether row r holds a negative number or NaN, or does not sum to one.
struct CheckDistributions {
  DType dtype;
  int64_t cols;
  ConstRows rows;
  double tolerance;
  bool* bad;
};

// [B, H, N, D] with contiguous channels; strides count elements.
struct Heads {
  void* data;
  int64_t batch;
  int64_t head;
  int64_t row;
};

// Keys in one task of decode_attention_chunks.
inline constexpr int64_t kAttendChunk = 512;

// Attention of new tokens over a cache and over themselves. Tokens [token, token_end) are in work:
// their queries, `group` heads to a key-value head, are the rows of one state.
struct DecodeAttention {
  DType dtype;
  int64_t kv_heads;
  int64_t group;
  int64_t tokens;
  int64_t d;
  Heads q;
  Heads k;
  Heads v;
  Heads k_cache;
  Heads v_cache;
  Heads out;
  const int64_t* lengths;
  const int64_t* positions;  // [B, tokens], or null: they follow the cache
  ConstRows cos;             // data null: no rotation
  ConstRows sin;
  const uint8_t* mask;  // [B, tokens, tokens], or null
  int64_t mask_batch;
  int64_t mask_row;
  float scale;
  int64_t window;  // negative: none
  int64_t sinks;
  bool append;
  void* new_keys;  // [B, kv_heads, tokens, d] of dtype; null when they go to the cache
  // Of the tokens in work: packed queries, and a state for each (batch, head, chunk).
  int64_t token;
  int64_t token_end;
  int64_t cache_chunks;
  int64_t new_chunks;
  float* packed;  // [B * kv_heads, rows, width]
  float* states;  // [B * kv_heads, cache_chunks + new_chunks, decode_attention_floats]
};

// Rows of a batch that attend to each other: a sample, or a stretch of a packed batch. Its query
// rows are [query, query + queries) of every head of `batch`, its keys [key, key + keys); row i
// sees the keys of spans[offsets[i]] .. spans[offsets[i + 1] - 1], counted from `key`.
struct Segment {
  int64_t batch;
  int64_t query;
  int64_t queries;
  int64_t key;
  int64_t keys;
  const int64_t* offsets;  // [queries + 1]
  const int64_t* spans;    // pairs [begin, end), ascending, disjoint
};

// What forward and backward of sparse attention share.
struct SparseGqa {
  DType dtype;
  int64_t kv_heads;
  int64_t group;  // query heads of a key-value head
  int64_t d;
  Heads q;
  Heads k;
  Heads v;
  const Segment* segments;
  int64_t segment_count;
  // Active query heads, key-value head by key-value head: those of head g are
  // heads[head_offsets[g]] .. heads[head_offsets[g + 1] - 1].
  const int64_t* head_offsets;  // [kv_heads + 1]
  const int64_t* heads;
  const uint8_t* padding;  // [B, keys], nonzero: ignored; null: none
  int64_t padding_batch;
  const float* sink_logits;  // [Hq], or null
  // Keys and values of train-time test's later steps: a query sees its own row of each, and nothing
  // else of them. Not with sinks or a cap.
  const Heads* own_k;  // [own_count], or null
  const Heads* own_v;
  int64_t own_count;
  float scale;
  float softcap;  // 0: none
};

// A query row of a call.
struct GqaRow {
  int64_t batch;
  int64_t head;
  int64_t row;
};

// Rows of an item in float32 whose own keys are in work: item row r is token r / group of the
// segment that begins at `query`, head r % group of key-value head `head`. Of each row's softmax:
// exp(s - lse) = power exp(s - rest), and delta = grad_out . out - grad_lse.
struct GqaOwnRows {
  int64_t batch;
  int64_t head;
  int64_t query;
  int64_t first;  // an item row
  int64_t count;
  int64_t stride;  // floats between the rows
  const float* q;
  const float* grad_out;
  const float* rest;
  const float* power;
  const float* delta;
  float* grad_q;  // gets what the own keys add, not scaled
  // [own_count, 2, item_rows]: the weights and slopes of all rows of the item.
  float* shares;
  int64_t item_rows;
};

// A key-value head of a segment, and how its query rows are cut into chunks.
struct GqaBackwardItem {
  int64_t segment;
  int64_t head;
  int64_t chunk_rows;
  int64_t chunks;
  float* memory;  // sparse_gqa_backward_item_floats, on a cache line
};

// What one thread takes at a time: panels to pack, one chunk, or keys whose gradients are summed.
struct GqaUnit {
  int64_t item;
  int64_t first;
  int64_t count;
};

// Every item has a unit of packs whose first is 0, and units of sums that cover its keys.
struct SparseGqaBackward {
  SparseGqa op;
  Heads grad_out;
  Heads out;
  Heads grad_q;
  Heads grad_k;
  Heads grad_v;
  const float* lse;       // [B, query_heads, queries]
  const float* grad_lse;  // the same, or null
  int64_t query_heads;
  int64_t queries;
  int64_t longest;  // keys of a segment
  const GqaBackwardItem* items;
  const GqaUnit* packs;
  int64_t pack_count;
  const GqaUnit* chunks;
  int64_t chunk_count;
  const GqaUnit* sums;
  int64_t sum_count;
  // Rows of a segment whose own keys get their gradients; none without own keys.
  const Heads* grad_own_k;  // [op.own_count], or null
  const Heads* grad_own_v;
  const GqaUnit* owns;
  int64_t own_count;
  void* counters;  // four cache lines of zeros
};

// A key-value head of a segment.
struct GqaItem {
  int64_t segment;
  int64_t head;
  float* memory;  // sparse_gqa_item_floats, on a cache line
};

// Keys that are packed at a time: whole panels at every level.
inline constexpr int64_t kGqaPackKeys = 128;
// Query rows of a block: whole strips at every level.
inline constexpr int64_t kGqaBlockRows = 96;

// Units of packs count keys from multiples of kGqaPackKeys; every item has one whose first is 0.
// Those of blocks count at most kGqaBlockRows rows of an item, token by token over the active heads
// of its group.
struct SparseGqaForward {
  SparseGqa op;
  Heads out;
  float* lse;  // [B, query_heads, queries], or null
  int64_t query_heads;
  int64_t queries;
  int64_t longest;  // keys of a segment
  const GqaItem* items;
  const GqaUnit* packs;
  int64_t pack_count;
  const GqaUnit* blocks;
  int64_t block_count;
  // TopU only: sampled keys, how many queries to choose, which they are; item and active head.
  const int64_t* sample;  // [segments, sample_most], padded with -1
  int64_t sample_most;
  const int64_t* counts;  // [segments]
  int64_t* chosen;        // [segments, query_heads, chosen_most]
  int64_t chosen_most;
  const GqaUnit* heads;
  int64_t head_count;
  const GqaUnit* chosen_blocks;  // rows among those that were chosen
  int64_t chosen_block_count;
  void* counters;  // four cache lines of zeros
};

// Neighbouring rows or columns of a weight, [weight, weight + count), and where they stand among
// those that are in work.
struct PanelRun {
  int64_t weight;
  int64_t place;
  int64_t count;
};

// Places are worked off in blocks of so many.
inline constexpr int64_t kPanelBlock = 128;

// The listed rows or columns of a weight. Places count those that there are, in the order of the
// list.
struct PanelList {
  int64_t active;           // places
  const int64_t* channels;  // [active], the row or column at each place
  // As runs that cross no multiple of kPanelBlock places; block b has runs
  // block_runs[b] .. block_runs[b + 1] - 1.
  const PanelRun* runs;
  const int64_t* block_runs;
  // Where the places lie in the activations that go with the list: `weight` is a column of them.
  const PanelRun* columns;
  int64_t column_count;

  int64_t blocks() const { return (active + kPanelBlock - 1) / kPanelBlock; }
};

// Up to this many rows, each product is summed along the weight's rows; more rows are the lanes.
inline constexpr int64_t kPanelFewRows = 8;

enum class PanelOver : int { kOutputs, kInputs };

// out = residual + x weight^T + bias over a list of rows (outputs) or columns (inputs) of `weight`.
// Columns of out that are in no run get the residual alone.
struct PanelLinear {
  DType dtype;
  PanelOver over;
  int64_t rows;
  int64_t inputs;   // columns of weight
  int64_t outputs;  // rows of weight
  PanelList list;
  ConstRows x;
  ConstRows weight;
  const void* bias;  // [outputs], or null
  ConstRows residual;
  Rows out;
  int64_t out_cols;
  void* counters;  // a cache line of zeros
};

enum class Activation : int { kGelu, kGeluTanh, kRelu, kSilu, kIdentity };
enum class PanelNorm : int { kNone, kLayerNorm, kRmsNorm };

// out = residual + bias + (g * h) down^T over the listed channels of h = act(n up^T + up_bias), or
// act(n gate^T + gate_bias) * (n up^T + up_bias), with n = norm(x).
struct PanelFfn {
  DType dtype;
  Activation activation;
  PanelNorm norm;
  float eps;
  int64_t rows;
  int64_t inputs;
  int64_t outputs;
  PanelList list;
  ConstRows x;
  const void* norm_weight;  // [inputs], or null
  const void* norm_bias;
  ConstRows up;
  ConstRows gate;  // data null: none
  const void* up_bias;
  const void* gate_bias;
  ConstRows down;
  const void* bias;
  // Row r belongs to sample r / rows_per_sample; one row of gates serves every sample.
  ConstRows gates;
  int64_t gate_rows;
  int64_t rows_per_sample;
  ConstRows residual;
  Rows out;
  float* hidden;   // panel_ffn_hidden_floats, shared by the team
  void* counters;  // two cache lines of zeros
};

// Threads that run one kernel side by side and wait for each other between its phases.
struct Team {
  int64_t size;
  alignas(64) int64_t arrived;
  alignas(64) int64_t generation;
};

// The widest attention head that draft_chain takes.
inline constexpr int64_t kMaxHeadDim = 512;

// A whole draft: every phase of every step, cut into units that the members of a team claim.
struct DraftChain {
  DType dtype;  // of states, embedding, gains and caches
  int64_t batch;
  int64_t steps;
  int64_t topk;
  int64_t nodes;
  int64_t hidden;
  int64_t intermediate;
  int64_t heads;
  int64_t kv_heads;
  int64_t d;
  int64_t vocab;
  ConstRows embedding;
  const void* input_norm;
  const void* hidden_norm;
  const void* post_norm;
  const void* norm;
  WeightMatrix q, k, v, o, gate, up, down, head;
  ConstRows cos;
  ConstRows sin;
  const int64_t* d2t;  // null: none
  float eps;
  bool norm_output;
  bool norm_before_residual;
  int64_t window;  // negative: none
  int64_t sinks;
  ConstRows state;
  const int64_t* token;
  Heads k_cache;
  Heads v_cache;
  const int64_t* lengths;
  int64_t longest;   // of lengths
  int64_t* tokens;   // [batch, nodes]
  int64_t* parents;  // [batch, nodes]
  float* scores;     // [batch, nodes]
  void* states;      // [batch, 1 + (steps - 1) topk, hidden] of dtype
  char* workspace;   // draft_chain_bytes, on a cache line, counters at its start zero
};

// Tokens of a chunk.
inline constexpr int64_t kSaliencyTokens = 128;

// Saliency of units of `width` neighbouring channels. Chunk ranges: chunk c of sample s owns row
// s * chunks + c of `partial`. Unit ranges: those of sample s begin at s * (cols / width).
struct UnitSaliency {
  DType dtype;
  int64_t tokens;  // of a sample
  int64_t cols;
  int64_t width;
  ConstRows activation;
  int64_t activation_batch;  // elements between samples
  ConstRows grad;
  int64_t grad_batch;
  int64_t chunks;  // of a sample
  float* partial;  // [samples * chunks, cols]
  Rows out;        // float32 [samples, cols / width]
};

enum class TttLossKind : int { kKl, kAlpha, kLambda };

// Row ranges. The largest of a teacher's logits, softcapped if softcap > 0, is taken from them in
// place; `total` is the sum of their exponentials then.
struct TttLossTeacher {
  int64_t cols;
  Rows logits;             // float32
  const float* logsumexp;  // of the full vocabulary, or null
  float softcap;
  float* total;
  float* coverage;  // the mass that the draft vocabulary has: p = coverage p~
  int64_t* best;
};

// Row ranges. Row r is compared with row place[r] of the teacher; a gradient, times the row's
// weight, takes the place of its logits.
struct TttLossRows {
  int64_t cols;
  TttLossKind kind;
  float eta;
  bool gradient;
  Rows logits;  // float32
  ConstRows teacher;
  const int64_t* place;
  const float* total;
  const float* coverage;
  const int64_t* best;
  const float* weight;
  float* row_loss;
  bool* hit;
  float* overlap;
  float* exponentials;  // [cols], of this range alone
};

struct KernelTable {
  void (*rms_norm_forward)(const RmsNormForward&, int64_t begin, int64_t end);
  void (*rms_norm_backward)(const RmsNormBackward&, int64_t begin, int64_t end);
  void (*column_sum)(const ColumnSum&, int64_t begin, int64_t end);
  void (*add_rms_norm_forward)(const AddRmsNormForward&, int64_t begin, int64_t end);
  void (*drafter_glue_forward)(const DrafterGlue&, int64_t begin, int64_t end);
  void (*pack_normed)(const PackNormed&, int64_t begin, int64_t end);
  void (*linear_forward)(const LinearForward&, int64_t begin, int64_t end);
  void (*swiglu_gated)(const SwigluForward&, int64_t begin, int64_t end);
  void (*head_blocks)(const LinearHead&, int64_t begin, int64_t end);
  void (*head_join)(const LinearHead&, int64_t begin, int64_t end);
  void (*verify_greedy)(const VerifyGreedy&, int64_t begin, int64_t end);
  void (*verify_sample)(const VerifySample&, int64_t begin, int64_t end);
  void (*check_distributions)(const CheckDistributions&, int64_t begin, int64_t end);
  // Floats of one state of decode_attention_chunks.
  int64_t (*decode_attention_floats)(int64_t rows, int64_t d);
  // Ranges of (batch, key-value head, token); of (batch, key-value head); of (batch, key-value
  // head, chunk): the cache's chunks first, then those of the new tokens; of (batch, key-value
  // head).
  void (*decode_attention_keys)(const DecodeAttention&, int64_t begin, int64_t end);
  void (*decode_attention_queries)(const DecodeAttention&, int64_t begin, int64_t end);
  void (*decode_attention_chunks)(const DecodeAttention&, int64_t begin, int64_t end);
  void (*decode_attention_merge)(const DecodeAttention&, int64_t begin, int64_t end);
  // Bytes of the workspace, and how many at its start must be zero.
  int64_t (*draft_chain_bytes)(const DraftChain&, int64_t* zeroed);
  // Every member of the team calls it; all return when the draft is complete.
  void (*draft_chain)(const DraftChain&, Team&);
  // Floats of an item's memory; of the memory that each member of the team brings.
  int64_t (*sparse_gqa_backward_item_floats)(const SparseGqa&, int64_t segment, int64_t chunks);
  int64_t (*sparse_gqa_backward_member_floats)(int64_t d, int64_t keys);
  // Every member of the team calls it; all return when the items are complete.
  void (*sparse_gqa_backward)(const SparseGqaBackward&, Team&, float* memory);
  int64_t gqa_backward_rows;   // chunks are multiples of so many rows
  int64_t gqa_backward_panel;  // keys of a unit of packing
  // Floats of an item's memory; of the memory that each member of the team brings.
  int64_t (*sparse_gqa_item_floats)(const SparseGqaForward&, int64_t segment, int64_t head);
  int64_t (*sparse_gqa_member_floats)(const SparseGqaForward&);
  // Every member of the team calls it. A sample asks for TopU.
  void (*sparse_gqa_forward)(const SparseGqaForward&, Team&, float* memory);
  // Floats of the memory that each member of the team brings, and of what they share. Every member
  // calls the kernel.
  int64_t (*panel_linear_floats)(const PanelLinear&, int64_t members);
  void (*panel_linear)(const PanelLinear&, Team&, float* memory);
  int64_t (*panel_ffn_floats)(const PanelFfn&, int64_t members);
  int64_t (*panel_ffn_hidden_floats)(const PanelFfn&);
  void (*panel_ffn)(const PanelFfn&, Team&, float* memory);
  // Ranges of chunks, then of units.
  void (*unit_saliency_chunks)(const UnitSaliency&, int64_t begin, int64_t end);
  void (*unit_saliency_units)(const UnitSaliency&, int64_t begin, int64_t end);
  void (*ttt_loss_teacher)(const TttLossTeacher&, int64_t begin, int64_t end);
  void (*ttt_loss_rows)(const TttLossRows&, int64_t begin, int64_t end);
  int64_t pack_multiple;  // packed rows are padded to a multiple of this many elements
};

}  // namespace leeboard
