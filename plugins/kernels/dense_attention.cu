// dense_attention: checks, the choice of a path, the workspace.

#include "trt_resa/dense_attention.h"

#include <string_view>

#include "dense_launch.h"

namespace trt_resa {
namespace dense {
namespace {

using Params = trt_resa_dense_attention_params;

int32_t check_extents(const Params& p) {
  if (p.dtype != TRT_RESA_FLOAT16 && p.dtype != TRT_RESA_BFLOAT16) return TRT_RESA_BAD_DTYPE;
  if (p.head_dim != 64 && p.head_dim != 96 && p.head_dim != 128 && p.head_dim != 256) {
    return TRT_RESA_BAD_HEAD_DIM;
  }
  if (p.block_size != 16 && p.block_size != 32 && p.block_size != 64) {
    return TRT_RESA_BAD_BLOCK_SIZE;
  }
  if (p.q_heads < 1 || p.kv_heads < 1 || p.q_heads % p.kv_heads != 0) return TRT_RESA_BAD_HEADS;
  if (p.num_rows < 0 || p.batch_size < 0) return TRT_RESA_BAD_EXTENT;
  if (p.num_rows == 0 || p.batch_size == 0) return TRT_RESA_OK;
  if (p.max_blocks_per_seq < 1 || p.num_blocks < 1) return TRT_RESA_BAD_EXTENT;
  // Blocks times heads are counted in 32 bits; a pool of more would have terabytes.
  if (static_cast<int64_t>(p.num_blocks) * 2 * p.kv_heads > INT32_MAX - p.kv_heads) {
    return TRT_RESA_BAD_EXTENT;
  }
  // Written so that NaN is refused too.
  if (!(p.softmax_scale > 0.0f)) return TRT_RESA_BAD_SCALE;
  return TRT_RESA_OK;
}

int32_t check_pointers(const Params& p) {
  if (any_null({p.q, p.cu_query_lens, p.kv_lens, p.block_table, p.kv, p.out, p.workspace})) {
    return TRT_RESA_NULL_POINTER;
  }
  if (any_misaligned({p.q, p.out, p.workspace}) || any_pool_misaligned({p.kv}, p.indirect)) {
    return TRT_RESA_MISALIGNED_POINTER;
  }
  return TRT_RESA_OK;
}

// The lengths of the sequences are on the device, so the shape is chosen for their mean.
bool many_rows_per_sequence(const Params& p) {
  const int64_t mean_rows = (static_cast<int64_t>(p.num_rows) + p.batch_size - 1) / p.batch_size;
  return mean_rows * (p.q_heads / p.kv_heads) > 16;
}

// wgmma exists in machine code for 90a alone; a library for 90 runs the portable path there.
constexpr bool kHasHopperCode =
    std::string_view(TRT_RESA_ARCHITECTURES).find("90a") != std::string_view::npos;

template <typename T>
int32_t launch_path(const Args& a, void* tensor_maps, const Device& device, void* stream) {
  const bool many_rows = many_rows_per_sequence(a.p);
  const bool hopper = kHasHopperCode && device.major == 9 && device.minor == 0;
  if (hopper && many_rows && a.p.head_dim != 96) {
    return launch_hopper<T>(a, tensor_maps, device, stream);
  }
  return launch_portable<T>(a, device, many_rows, stream);
}

}  // namespace
}  // namespace dense
}  // namespace trt_resa

extern "C" size_t trt_resa_sizeof_dense_attention_params(void) {
  return sizeof(trt_resa_dense_attention_params);
}

extern "C" int32_t trt_resa_dense_attention_workspace(const trt_resa_dense_attention_params* params,
                                                      size_t* bytes) {
  using namespace trt_resa;
  if (params == nullptr || bytes == nullptr) return TRT_RESA_NULL_POINTER;
  int32_t status = dense::check_extents(*params);
  if (status != TRT_RESA_OK) return status;
  dense::Device device;
  status = dense::current_device(device);
  if (status != TRT_RESA_OK) return status;
  *bytes = dense::lay_out_workspace(device, params->head_dim, nullptr).bytes;
  return TRT_RESA_OK;
}

extern "C" int32_t trt_resa_dense_attention(const trt_resa_dense_attention_params* params,
                                            void* stream) {
  using namespace trt_resa;
  if (params == nullptr) return TRT_RESA_NULL_POINTER;
  int32_t status = dense::check_extents(*params);
  if (status != TRT_RESA_OK || params->num_rows == 0 || params->batch_size == 0) return status;
  status = dense::check_pointers(*params);
  if (status != TRT_RESA_OK) return status;
  dense::Device device;
  status = dense::current_device(device);
  if (status != TRT_RESA_OK) return status;

  dense::Args a = {};
  a.p = *params;
  a.group = params->q_heads / params->kv_heads;
  a.block_shift = params->block_size == 16 ? 4 : params->block_size == 32 ? 5 : 6;
  a.scale_log2 = params->softmax_scale * kLog2E;
  const dense::Workspace workspace =
      dense::lay_out_workspace(device, params->head_dim, params->workspace);
  a.partials = workspace.partials;
  const auto launch_path = params->dtype == TRT_RESA_FLOAT16 ? dense::launch_path<__half>
                                                             : dense::launch_path<__nv_bfloat16>;
  return launch_path(a, workspace.tensor_maps, device, stream);
}
