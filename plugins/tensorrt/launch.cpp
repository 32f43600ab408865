#include "launch.h"

#include <cuda_runtime_api.h>

#include <cstdint>

#include "trt_resa/dense_attention.h"
#include "trt_resa/kv_append.h"
#include "trt_resa/sparse_step.h"

namespace trt_resa {
namespace {

// How many blocks the pool has is decided when the runtime allocates it, after the build, and
// travels in no tensor: entries of block_table from 0 on are trusted. This is the largest bound
// that the kernels take.
int32_t max_pool_blocks(const Attributes& a) {
  return (INT32_MAX - a.kv_heads) / (2 * a.kv_heads);
}

// What the three structs share; a name missing in one of them does not compile.
template <typename Params>
void set_shape(const Attributes& a, const Shape& s, Params& p) {
  p.num_rows = s.num_rows;
  p.batch_size = s.batch_size;
  p.max_blocks_per_seq = s.max_blocks_per_seq;
  p.num_blocks = max_pool_blocks(a);
  p.q_heads = a.q_heads;
  p.kv_heads = a.kv_heads;
  p.head_dim = a.head_dim;
  p.block_size = a.block_size;
  p.dtype = s.dtype;
  p.indirect = 1;  // kv and summary are where the addresses stand, in device memory
}

template <typename Params>
void set_append(const Attributes& a, Params& p) {
  p.rotary_dim = a.rotary_dim;
  p.rope_scale = a.rope_scale;
  p.norm_eps = a.norm_eps;
}

trt_resa_sparse_step_params sparse_params(const Attributes& a, const Shape& s) {
  trt_resa_sparse_step_params p = {};
  set_shape(a, s, p);
  set_append(a, p);
  p.min_blocks = a.min_blocks;
  p.local_blocks = a.local_blocks;
  p.sink_blocks = a.sink_blocks;
  p.dense_below = a.dense_below;
  p.softmax_scale = a.softmax_scale;
  p.keep_ratio = a.exact_keep_ratio;
  return p;
}

trt_resa_dense_attention_params dense_params(const Attributes& a, const Shape& s) {
  trt_resa_dense_attention_params p = {};
  set_shape(a, s, p);
  p.softmax_scale = a.softmax_scale;
  return p;
}

// Inputs have the types that supports_format let through.
struct Tensors {
  const void* const* inputs;
  int32_t layer;
  bool has_norm;

  template <typename T>
  const T* get(Input input) const {
    return static_cast<const T*>(inputs[input]);
  }
  const void* norm(Input input) const { return has_norm ? inputs[input] : nullptr; }
  // Where the address of this layer's buffer stands.
  void* slot(Input pool) const { return const_cast<int64_t*>(get<int64_t>(pool) + layer); }
};

template <typename Params>
void bind_append(const Tensors& tensors, void* q, Params& p) {
  p.qkv = tensors.get<void>(kQkv);
  p.position_ids = tensors.get<int32_t>(kPositionIds);
  p.cu_query_lens = tensors.get<int32_t>(kCuQueryLens);
  p.kv_lens = tensors.get<int32_t>(kKvLens);
  p.block_table = tensors.get<int32_t>(kBlockTable);
  p.inv_freq = tensors.get<float>(kInvFreq);
  p.q_norm = tensors.norm(kQNorm);
  p.k_norm = tensors.norm(kKNorm);
  p.q = q;
  p.kv = tensors.slot(kKvPool);
  p.summary = tensors.slot(kSummaryPool);
}

constexpr size_t align(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

}  // namespace

int32_t dense_workspace_bytes(const Attributes& attributes, size_t& bytes) noexcept {
  const trt_resa_dense_attention_params p =
      dense_params(attributes, {1, 1, 1, TRT_RESA_FLOAT16, true, false});
  return trt_resa_dense_attention_workspace(&p, &bytes);
}

int32_t lay_out(const Attributes& attributes, const Shape& shape, bool dense,
                Workspace& workspace) noexcept {
  size_t counter_bytes = 0;
  size_t scratch_bytes = 0;
  int32_t status;
  if (dense) {
    status = dense_workspace_bytes(attributes, scratch_bytes);
  } else {
    const trt_resa_sparse_step_params p = sparse_params(attributes, shape);
    status = trt_resa_sparse_step_counters(&p, &counter_bytes);
    if (status == TRT_RESA_OK) status = trt_resa_sparse_step_workspace(&p, &scratch_bytes);
  }
  const size_t q_bytes =
      static_cast<size_t>(shape.num_rows) * static_cast<size_t>(attributes.attention_size()) * 2;
  workspace.counters = align(q_bytes);
  workspace.scratch = workspace.counters + align(counter_bytes);
  workspace.bytes = workspace.scratch + scratch_bytes;
  return status;
}

int32_t launch(const Attributes& attributes, const Shape& shape, const Workspace& layout,
               const void* const* inputs, void* output, void* workspace,
               cudaStream_t stream) noexcept {
  const Tensors tensors{inputs, attributes.layer, shape.norm};
  char* const base = static_cast<char*>(workspace);
  void* const q = base;
  void* const scratch = base + layout.scratch;
  if (!shape.dense) {
    trt_resa_sparse_step_params p = sparse_params(attributes, shape);
    bind_append(tensors, q, p);
    p.out = output;
    p.workspace = scratch;
    p.counters = base + layout.counters;
    p.settled = 0;  // by what follows
    const cudaError_t error =
        cudaMemsetAsync(p.counters, 0, layout.scratch - layout.counters, stream);
    if (error != cudaSuccess) {
      static_cast<void>(cudaGetLastError());  // reported once, here
      return TRT_RESA_CUDA_ERROR + static_cast<int32_t>(error);
    }
    return trt_resa_sparse_step(&p, stream);
  }
  trt_resa_kv_append_params append = {};
  set_shape(attributes, shape, append);
  set_append(attributes, append);
  bind_append(tensors, q, append);
  const int32_t status = trt_resa_kv_append(&append, stream);
  if (status != TRT_RESA_OK) return status;

  trt_resa_dense_attention_params p = dense_params(attributes, shape);
  p.q = q;
  p.cu_query_lens = append.cu_query_lens;
  p.kv_lens = append.kv_lens;
  p.block_table = append.block_table;
  p.kv = append.kv;
  p.out = output;
  p.workspace = scratch;
  return trt_resa_dense_attention(&p, stream);
}

}  // namespace trt_resa
