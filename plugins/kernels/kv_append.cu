// kv_append: one thread block per touched cache block and group of heads, one warp per head.

#include "trt_resa/kv_append.h"

#include "kv_append.cuh"
#include "launch.h"

namespace trt_resa {
namespace {

using namespace append;

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

// The `wanted`-th touched block of the batch. Each warp scans the sequences for itself, 32 at a
// time; the grid is sized for the most blocks that T rows of B sequences can touch, so the last
// thread blocks may find none.
__device__ TouchedBlock find_touched_block(const Params& p, int wanted) {
  const int lane = lane_index();
  int before = 0;
  for (int base = 0; base < p.batch_size; base += 32) {
    const int seq = base + lane;
    int first_row = 0, kv_len = 0, start = 0, touched = 0;
    if (seq < p.batch_size) {
      first_row = p.cu_query_lens[seq];
      kv_len = p.kv_lens[seq];
      const int rows = p.cu_query_lens[seq + 1] - first_row;
      start = kv_len - rows;
      if (first_row >= 0 && rows > 0 && rows <= p.num_rows - first_row && start >= 0) {
        touched = (kv_len - 1) / p.block_size - start / p.block_size + 1;
      }
    }
    int inclusive = touched;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(kAllLanes, inclusive, offset);
      if (lane >= offset) inclusive += other;
    }
    const unsigned reached = __ballot_sync(kAllLanes, before + inclusive > wanted);
    if (reached != 0) {
      const int owner = __ffs(reached) - 1;
      const int skipped = before + __shfl_sync(kAllLanes, inclusive - touched, owner);
      first_row = __shfl_sync(kAllLanes, first_row, owner);
      kv_len = __shfl_sync(kAllLanes, kv_len, owner);
      start = __shfl_sync(kAllLanes, start, owner);

      TouchedBlock block;
      block.seq = base + owner;
      block.index = start / p.block_size + wanted - skipped;
      const int block_begin = block.index * p.block_size;
      const int begin = max(start, block_begin);
      const int end = min(kv_len, block_begin + p.block_size);
      block.first_row = first_row + begin - start;
      block.rows = end - begin;
      block.first_slot = begin - block_begin;
      return block;
    }
    before += __shfl_sync(kAllLanes, inclusive, 31);
  }
  return TouchedBlock{};
}

// Two thread blocks per multiprocessor leave 128 registers; a third one would spill.
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 2) kv_append_kernel(const __grid_constant__ Params p) {
  __shared__ RopeTable<kHeadDim> table;
  const TouchedBlock block = find_touched_block(p, blockIdx.x);
  if (block.rows == 0) return;
  append_head<T>(p, block, blockIdx.y * kWarps + warp_index(), table);
}

int32_t check(const Params& p) {
  if (p.dtype != TRT_RESA_FLOAT16 && p.dtype != TRT_RESA_BFLOAT16) return TRT_RESA_BAD_DTYPE;
  if (p.head_dim != 64 && p.head_dim != 96 && p.head_dim != 128 && p.head_dim != 256) {
    return TRT_RESA_BAD_HEAD_DIM;
  }
  if (p.block_size != 16 && p.block_size != 32 && p.block_size != 64) {
    return TRT_RESA_BAD_BLOCK_SIZE;
  }
  if (p.q_heads < 1 || p.kv_heads < 1 || p.q_heads % p.kv_heads != 0) return TRT_RESA_BAD_HEADS;
  if (p.rotary_dim < 0 || p.rotary_dim > p.head_dim || p.rotary_dim % (2 * kVecSize) != 0) {
    return TRT_RESA_BAD_ROTARY_DIM;
  }
  if (p.num_rows < 0 || p.batch_size < 0) return TRT_RESA_BAD_EXTENT;
  if (p.num_rows == 0 || p.batch_size == 0) return TRT_RESA_OK;
  if (p.max_blocks_per_seq < 1 || p.num_blocks < 1) return TRT_RESA_BAD_EXTENT;
  if (any_null({p.qkv, p.cu_query_lens, p.kv_lens, p.block_table, p.q, p.kv, p.summary}) ||
      (p.rotary_dim > 0 && any_null({p.position_ids, p.inv_freq}))) {
    return TRT_RESA_NULL_POINTER;
  }
  if (any_misaligned({p.qkv, p.q_norm, p.k_norm, p.q}) ||
      any_pool_misaligned({p.kv, p.summary}, p.indirect)) {
    return TRT_RESA_MISALIGNED_POINTER;
  }
  // Written so that NaN is refused too.
  if ((p.q_norm != nullptr || p.k_norm != nullptr) && !(p.norm_eps > 0.0f)) {
    return TRT_RESA_BAD_EPSILON;
  }
  return TRT_RESA_OK;
}

// The most blocks that n rows of one sequence touch is ceil((n - 1) / block_size) + 1, which is at
// most n / block_size + 2; and no more blocks are touched than there are rows.
int64_t max_touched_blocks(int64_t rows, int64_t batch_size, int64_t block_size) {
  const int64_t bound = rows / block_size + 2 * batch_size;
  return rows < bound ? rows : bound;
}

template <typename T, int kHeadDim>
int32_t launch_kernel(const Params& p, void* stream) {
  const int64_t heads = static_cast<int64_t>(p.q_heads) + 2 * static_cast<int64_t>(p.kv_heads);
  const dim3 grid(static_cast<unsigned>(max_touched_blocks(p.num_rows, p.batch_size, p.block_size)),
                  static_cast<unsigned>((heads + kWarps - 1) / kWarps));
  return launch(kv_append_kernel<T, kHeadDim>, grid, dim3(kThreads), stream, p);
}

template <typename T>
int32_t launch_for_head_dim(const Params& p, void* stream) {
  switch (p.head_dim) {
    case 64:
      return launch_kernel<T, 64>(p, stream);
    case 96:
      return launch_kernel<T, 96>(p, stream);
    case 128:
      return launch_kernel<T, 128>(p, stream);
    default:
      return launch_kernel<T, 256>(p, stream);
  }
}

}  // namespace
}  // namespace trt_resa

extern "C" size_t trt_resa_sizeof_kv_append_params(void) {
  return sizeof(trt_resa_kv_append_params);
}

extern "C" int32_t trt_resa_kv_append(const trt_resa_kv_append_params* params, void* stream) {
  using namespace trt_resa;
  if (params == nullptr) return TRT_RESA_NULL_POINTER;
  const int32_t status = check(*params);
  if (status != TRT_RESA_OK || params->num_rows == 0 || params->batch_size == 0) return status;
  return params->dtype == TRT_RESA_FLOAT16 ? launch_for_head_dim<__half>(*params, stream)
                                           : launch_for_head_dim<__nv_bfloat16>(*params, stream);
}
