// The kernel table of one level.
#include "dot_panel.h"
#include "gqa_backward_tile.h"
#include "level.h"

namespace leeboard::LEEBOARD_LEVEL {

extern const KernelTable table;
const KernelTable table = {
    .rms_norm_forward = rms_norm_forward,
    .rms_norm_backward = rms_norm_backward,
    .column_sum = column_sum,
    .add_rms_norm_forward = add_rms_norm_forward,
    .drafter_glue_forward = drafter_glue_forward,
    .pack_normed = pack_normed,
    .linear_forward = linear_forward,
    .swiglu_gated = swiglu_gated,
    .head_blocks = head_blocks,
    .head_join = head_join,
    .verify_greedy = verify_greedy,
    .verify_sample = verify_sample,
    .check_distributions = check_distributions,
    .decode_attention_floats = decode_attention_floats,
    .decode_attention_keys = decode_attention_keys,
    .decode_attention_queries = decode_attention_queries,
    .decode_attention_chunks = decode_attention_chunks,
    .decode_attention_merge = decode_attention_merge,
    .draft_chain_bytes = draft_chain_bytes,
    .draft_chain = draft_chain,
    .sparse_gqa_backward_item_floats = sparse_gqa_backward_item_floats,
    .sparse_gqa_backward_member_floats = sparse_gqa_backward_member_floats,
    .sparse_gqa_backward = sparse_gqa_backward,
    .gqa_backward_rows = kBlockRows,
    .gqa_backward_panel = kPanel,
    .sparse_gqa_item_floats = sparse_gqa_item_floats,
    .sparse_gqa_member_floats = sparse_gqa_member_floats,
    .sparse_gqa_forward = sparse_gqa_forward,
    .panel_linear_floats = panel_linear_floats,
    .panel_linear = panel_linear,
    .panel_ffn_floats = panel_ffn_floats,
    .panel_ffn_hidden_floats = panel_ffn_hidden_floats,
    .panel_ffn = panel_ffn,
    .unit_saliency_chunks = unit_saliency_chunks,
    .unit_saliency_units = unit_saliency_units,
    .ttt_loss_teacher = ttt_loss_teacher,
    .ttt_loss_rows = ttt_loss_rows,
    .pack_multiple = kPackBlock,
};

}  // namespace leeboard::LEEBOARD_LEVEL
