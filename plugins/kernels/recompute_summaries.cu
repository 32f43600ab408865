// recompute_summaries: one warp per block and KV head.

#include "trt_resa/recompute_summaries.h"

#include <type_traits>

#include "kv_append.cuh"
#include "launch.h"

namespace trt_resa {
namespace {

using Params = trt_resa_recompute_summaries_params;

constexpr int kWarps = 8;
constexpr int kMaxGridBlocks = 1024;  // per sequence; longer ranges are walked in strides

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(32 * kWarps)
    recompute_summaries_kernel(const __grid_constant__ Params p) {
  using L = append::Layout<kHeadDim>;
  const int lane_in_row = threadIdx.x % L::kLanes;
  const int row_in_pass = threadIdx.x % 32 / L::kLanes;
  const bool has_vec = lane_in_row < L::kVecs;
  const int column = lane_in_row * kVecSize;

  for (int seq = blockIdx.y; seq < p.batch_size; seq += gridDim.y) {
    const int kv_len = p.kv_lens[seq];
    const int held = kv_len > 0 ? (kv_len - 1) / p.block_size + 1 : 0;
    const int first = max(p.first_blocks[seq], 0);
    const int end = min(min(p.end_blocks[seq], held), p.max_blocks_per_seq);
    const int64_t items = static_cast<int64_t>(max(end - first, 0)) * p.kv_heads;
    for (int64_t item = blockIdx.x * kWarps + threadIdx.x / 32; item < items;
         item += gridDim.x * kWarps) {
      const int block = first + static_cast<int>(item / p.kv_heads);
      const int kv_head = static_cast<int>(item % p.kv_heads);
      const int64_t id = p.block_table[static_cast<int64_t>(seq) * p.max_blocks_per_seq + block];
      if (id < 0 || id >= p.num_blocks) continue;
      const T* keys = static_cast<const T*>(p.kv) + column +
                      (id * 2 * p.kv_heads + kv_head) * p.block_size * kHeadDim;
      const int slots = min(kv_len - block * p.block_size, p.block_size);
      append::Extrema<T> extrema;
      if (has_vec) {
#pragma unroll 4
        for (int slot = row_in_pass; slot < slots; slot += L::kRowsPerPass) {
          extrema.add(Vec<T>::load(keys + slot * kHeadDim));
        }
      }
#pragma unroll
      for (int mask = L::kLanes; mask < 32; mask *= 2) {
        extrema.low = min_nan(extrema.low, shuffle_xor(extrema.low, mask));
        extrema.high = max_nan(extrema.high, shuffle_xor(extrema.high, mask));
      }
      if (has_vec && row_in_pass == 0) {
        T* summary =
            static_cast<T*>(p.summary) + (id * p.kv_heads + kv_head) * 2 * kHeadDim + column;
        extrema.low.store(summary);
        extrema.high.store(summary + kHeadDim);
      }
    }
  }
}

int32_t check(const Params& p) {
  if (p.dtype != TRT_RESA_FLOAT16 && p.dtype != TRT_RESA_BFLOAT16) return TRT_RESA_BAD_DTYPE;
  if (p.head_dim != 64 && p.head_dim != 96 && p.head_dim != 128 && p.head_dim != 256) {
    return TRT_RESA_BAD_HEAD_DIM;
  }
  if (p.block_size != 16 && p.block_size != 32 && p.block_size != 64) {
    return TRT_RESA_BAD_BLOCK_SIZE;
  }
  if (p.kv_heads < 1) return TRT_RESA_BAD_HEADS;
  if (p.batch_size < 0) return TRT_RESA_BAD_EXTENT;
  if (p.batch_size == 0) return TRT_RESA_OK;
  if (p.max_blocks_per_seq < 1 || p.num_blocks < 1) return TRT_RESA_BAD_EXTENT;
  if (any_null({p.first_blocks, p.end_blocks, p.kv_lens, p.block_table, p.kv, p.summary})) {
    return TRT_RESA_NULL_POINTER;
  }
  if (any_misaligned({p.kv, p.summary})) return TRT_RESA_MISALIGNED_POINTER;
  return TRT_RESA_OK;
}

template <typename T>
int32_t launch_for_head_dim(const Params& p, void* stream) {
  const int64_t items = static_cast<int64_t>(p.max_blocks_per_seq) * p.kv_heads;
  const int64_t wanted = (items + kWarps - 1) / kWarps;
  const dim3 grid(static_cast<unsigned>(wanted < kMaxGridBlocks ? wanted : kMaxGridBlocks),
                  static_cast<unsigned>(p.batch_size < 65535 ? p.batch_size : 65535));
  const auto launch_dim = [&](auto dim) {
    return launch(recompute_summaries_kernel<T, decltype(dim)::value>, grid, dim3(32 * kWarps),
                  stream, p);
  };
  switch (p.head_dim) {
    case 64:
      return launch_dim(std::integral_constant<int, 64>());
    case 96:
      return launch_dim(std::integral_constant<int, 96>());
    case 128:
      return launch_dim(std::integral_constant<int, 128>());
    default:
      return launch_dim(std::integral_constant<int, 256>());
  }
}

}  // namespace
}  // namespace trt_resa

extern "C" size_t trt_resa_sizeof_recompute_summaries_params(void) {
  return sizeof(trt_resa_recompute_summaries_params);
}

extern "C" int32_t trt_resa_recompute_summaries(const trt_resa_recompute_summaries_params* params,
                                                void* stream) {
  using namespace trt_resa;
  if (params == nullptr) return TRT_RESA_NULL_POINTER;
  const int32_t status = check(*params);
  if (status != TRT_RESA_OK || params->batch_size == 0) return status;
  return params->dtype == TRT_RESA_FLOAT16 ? launch_for_head_dim<__half>(*params, stream)
                                           : launch_for_head_dim<__nv_bfloat16>(*params, stream);
}
