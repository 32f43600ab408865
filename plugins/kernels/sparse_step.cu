// sparse_step: the sparse kernel in all of its roles.

#include "trt_resa/sparse_step.h"

#include "launch.h"
#include "sparse_args.h"

namespace trt_resa {
namespace {

using Params = trt_resa_sparse_step_params;

sparse::Args make_args(const Params& p) {
  sparse::Args args = {};
  args.roles = sparse::kAppend | sparse::kSelect | sparse::kAttend;

  args.append.qkv = p.qkv;
  args.append.position_ids = p.position_ids;
  args.append.cu_query_lens = p.cu_query_lens;
  args.append.kv_lens = p.kv_lens;
  args.append.block_table = p.block_table;
  args.append.inv_freq = p.inv_freq;
  args.append.q_norm = p.q_norm;
  args.append.k_norm = p.k_norm;
  args.append.q = p.q;
  args.append.kv = p.kv;
  args.append.summary = p.summary;
  args.append.num_rows = p.num_rows;
  args.append.batch_size = p.batch_size;
  args.append.max_blocks_per_seq = p.max_blocks_per_seq;
  args.append.num_blocks = p.num_blocks;
  args.append.q_heads = p.q_heads;
  args.append.kv_heads = p.kv_heads;
  args.append.head_dim = p.head_dim;
  args.append.block_size = p.block_size;
  args.append.rotary_dim = p.rotary_dim;
  args.append.dtype = p.dtype;
  args.append.indirect = p.indirect;
  args.append.rope_scale = p.rope_scale;
  args.append.norm_eps = p.norm_eps;

  args.q = p.q;
  args.kv = p.kv;
  args.summary = p.summary;
  args.out = p.out;
  args.cu_query_lens = p.cu_query_lens;
  args.kv_lens = p.kv_lens;
  args.block_table = p.block_table;
  args.batch_size = p.batch_size;
  args.max_blocks_per_seq = p.max_blocks_per_seq;
  args.num_blocks = p.num_blocks;
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

int32_t check_extents(const Params& p, const sparse::Args& args) {
  const int32_t status = sparse::check(args);
  if (status != TRT_RESA_OK) return status;
  if (p.rotary_dim < 0 || p.rotary_dim > p.head_dim || p.rotary_dim % 16 != 0) {
    return TRT_RESA_BAD_ROTARY_DIM;
  }
  return p.num_rows < 0 ? TRT_RESA_BAD_EXTENT : TRT_RESA_OK;
}

int32_t check_pointers(const Params& p) {
  if (any_null({p.qkv, p.cu_query_lens, p.kv_lens, p.block_table, p.q, p.kv, p.summary, p.out,
                p.workspace, p.counters}) ||
      (p.rotary_dim > 0 && any_null({p.position_ids, p.inv_freq}))) {
    return TRT_RESA_NULL_POINTER;
  }
  if (any_misaligned({p.qkv, p.q_norm, p.k_norm, p.q, p.out, p.workspace, p.counters}) ||
      any_pool_misaligned({p.kv, p.summary}, p.indirect)) {
    return TRT_RESA_MISALIGNED_POINTER;
  }
  // Written so that NaN is refused too.
  if ((p.q_norm != nullptr || p.k_norm != nullptr) && !(p.norm_eps > 0.0f)) {
    return TRT_RESA_BAD_EPSILON;
  }
  return TRT_RESA_OK;
}

int32_t size(const Params* params, size_t sparse::Sizes::* part, size_t* bytes) {
  if (params == nullptr || bytes == nullptr) return TRT_RESA_NULL_POINTER;
  sparse::Args args = make_args(*params);
  const int32_t status = check_extents(*params, args);
  if (status == TRT_RESA_OK) *bytes = sparse::carve(args, nullptr, nullptr).*part;
  return status;
}

}  // namespace
}  // namespace trt_resa

extern "C" size_t trt_resa_sizeof_sparse_step_params(void) {
  return sizeof(trt_resa_sparse_step_params);
}

extern "C" int32_t trt_resa_sparse_step_workspace(const trt_resa_sparse_step_params* params,
                                                  size_t* bytes) {
  return trt_resa::size(params, &trt_resa::sparse::Sizes::workspace, bytes);
}

extern "C" int32_t trt_resa_sparse_step_counters(const trt_resa_sparse_step_params* params,
                                                 size_t* bytes) {
  return trt_resa::size(params, &trt_resa::sparse::Sizes::counters, bytes);
}

extern "C" int32_t trt_resa_sparse_step(const trt_resa_sparse_step_params* params, void* stream) {
  using namespace trt_resa;
  if (params == nullptr) return TRT_RESA_NULL_POINTER;
  const trt_resa_sparse_step_params& p = *params;
  sparse::Args args = make_args(p);
  int32_t status = check_extents(p, args);
  if (status != TRT_RESA_OK || p.batch_size == 0 || p.num_rows == 0) return status;
  status = check_pointers(p);
  if (status != TRT_RESA_OK) return status;
  sparse::carve(args, p.workspace, p.counters);
  return sparse::run(args, stream);
}
