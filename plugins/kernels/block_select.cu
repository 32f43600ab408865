// block_select: the sparse kernel in its role of choosing blocks.

#include "trt_resa/block_select.h"

#include "launch.h"
#include "sparse_args.h"

namespace trt_resa {
namespace {

using Params = trt_resa_block_select_params;

sparse::Args make_args(const Params& p) {
  sparse::Args args = {};
  args.roles = sparse::kSelect;
  args.q = p.q;
  args.summary = p.summary;
  args.kv_lens = p.kv_lens;
  args.block_table = p.block_table;
  args.selection = p.selection;
  args.counts = p.counts;
  args.batch_size = p.batch_size;
  args.max_blocks_per_seq = p.max_blocks_per_seq;
  args.num_blocks = p.num_blocks;
  args.max_selected = p.max_selected;
  args.q_heads = p.q_heads;
  args.kv_heads = p.kv_heads;
  args.head_dim = p.head_dim;
  args.block_size = p.block_size;
  args.min_blocks = p.min_blocks;
  args.local_blocks = p.local_blocks;
  args.sink_blocks = p.sink_blocks;
  args.dense_below = p.dense_below;
  args.dtype = p.dtype;
  args.settled = p.settled;
  args.score_scale = p.softmax_scale * kLog2E;
  args.keep_ratio = p.keep_ratio;
  return args;
}

int32_t size(const Params* params, size_t sparse::Sizes::* part, size_t* bytes) {
  if (params == nullptr || bytes == nullptr) return TRT_RESA_NULL_POINTER;
  sparse::Args args = make_args(*params);
  const int32_t status = sparse::check(args);
  if (status == TRT_RESA_OK) *bytes = sparse::carve(args, nullptr, nullptr).*part;
  return status;
}

}  // namespace
}  // namespace trt_resa

extern "C" size_t trt_resa_sizeof_block_select_params(void) {
  return sizeof(trt_resa_block_select_params);
}

extern "C" int32_t trt_resa_block_select_workspace(const trt_resa_block_select_params* params,
                                                   size_t* bytes) {
  return trt_resa::size(params, &trt_resa::sparse::Sizes::workspace, bytes);
}

extern "C" int32_t trt_resa_block_select_counters(const trt_resa_block_select_params* params,
                                                  size_t* bytes) {
  return trt_resa::size(params, &trt_resa::sparse::Sizes::counters, bytes);
}

extern "C" int32_t trt_resa_block_select(const trt_resa_block_select_params* params, void* stream) {
  using namespace trt_resa;
  if (params == nullptr) return TRT_RESA_NULL_POINTER;
  const trt_resa_block_select_params& p = *params;
  sparse::Args args = make_args(p);
  const int32_t status = sparse::check(args);
  if (status != TRT_RESA_OK || p.batch_size == 0) return status;
  if (any_null({p.q, p.summary, p.kv_lens, p.block_table, p.selection, p.counts, p.workspace,
                p.counters})) {
    return TRT_RESA_NULL_POINTER;
  }
  if (any_misaligned({p.q, p.summary, p.workspace, p.counters})) return TRT_RESA_MISALIGNED_POINTER;
  sparse::carve(args, p.workspace, p.counters);
  return sparse::run(args, stream);
}
