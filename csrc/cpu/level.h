// Entry points that every level defines under its own name.
#pragma once

#include "kernels.h"

namespace leeboard::LEEBOARD_LEVEL {

void rms_norm_forward(const RmsNormForward& args, int64_t begin, int64_t end);
void rms_norm_backward(const RmsNormBackward& args, int64_t begin, int64_t end);
void column_sum(const ColumnSum& args, int64_t begin, int64_t end);
void add_rms_norm_forward(const AddRmsNormForward& args, int64_t begin, int64_t end);
void drafter_glue_forward(const DrafterGlue& args, int64_t begin, int64_t end);
void pack_normed(const PackNormed& args, int64_t begin, int64_t end);
int64_t decode_attention_floats(int64_t rows, int64_t d);
void decode_attention_keys(const DecodeAttention& args, int64_t begin, int64_t end);
void decode_attention_queries(const DecodeAttention& args, int64_t begin, int64_t end);
void decode_attention_chunks(const DecodeAttention& args, int64_t begin, int64_t end);
void decode_attention_merge(const DecodeAttention& args, int64_t begin, int64_t end);
// Rows [v, v + count) of a weight matrix, count 1 or kPanelFeatures; see dot_panel.h.
void panel_products(const WeightMatrix& weight, const float* packed, int64_t packed_stride,
                    int64_t rows, int64_t v, int64_t count, float* products);
void linear_forward(const LinearForward& args, int64_t begin, int64_t end);
int64_t draft_chain_bytes(const DraftChain& args, int64_t* zeroed);
void draft_chain(const DraftChain& args, Team& team);
void swiglu_gated(const SwigluForward& args, int64_t begin, int64_t end);
void head_blocks(const LinearHead& args, int64_t begin, int64_t end);
void head_join(const LinearHead& args, int64_t begin, int64_t end);
int64_t sparse_gqa_item_floats(const SparseGqaForward& args, int64_t segment, int64_t head);
int64_t sparse_gqa_member_floats(const SparseGqaForward& args);
void sparse_gqa_forward(const SparseGqaForward& args, Team& team, float* memory);
int64_t sparse_gqa_backward_item_floats(const SparseGqa& op, int64_t segment, int64_t chunks);
int64_t sparse_gqa_backward_member_floats(int64_t d, int64_t keys);
void sparse_gqa_backward(const SparseGqaBackward& args, Team& team, float* memory);
// One query row: the own keys join its sums [d], the largest score and the weights' sum.
void ttt_attention_merge(const SparseGqa& op, const GqaRow& row, float* sums, float& peak,
                         float& total);
// Own keys of rows: their weights and slopes, and what they add to the gradient of q.
void ttt_attention_rows(const SparseGqa& op, const GqaOwnRows& rows);
// Then the gradients of the own keys and values of a unit's tokens.
void ttt_attention_grad_own(const SparseGqaBackward& args, const GqaUnit& unit,
                            const float* shares);
int64_t panel_linear_floats(const PanelLinear& args, int64_t members);
void panel_linear(const PanelLinear& args, Team& team, float* memory);
int64_t panel_ffn_floats(const PanelFfn& args, int64_t members);
int64_t panel_ffn_hidden_floats(const PanelFfn& args);
void panel_ffn(const PanelFfn& args, Team& team, float* memory);
void ttt_loss_teacher(const TttLossTeacher& args, int64_t begin, int64_t end);
void ttt_loss_rows(const TttLossRows& args, int64_t begin, int64_t end);
void unit_saliency_chunks(const UnitSaliency& args, int64_t begin, int64_t end);
void unit_saliency_units(const UnitSaliency& args, int64_t begin, int64_t end);
void verify_greedy(const VerifyGreedy& args, int64_t begin, int64_t end);
void verify_sample(const VerifySample& args, int64_t begin, int64_t end);
void check_distributions(const CheckDistributions& args, int64_t begin, int64_t end);

}  // namespace leeboard::LEEBOARD_LEVEL
