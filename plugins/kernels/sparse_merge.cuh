// Merging the parts of a row, by the thread block that finished the last of them.
#pragma once

#include "mma.cuh"
#include "sparse_args.h"
#include "sparse_attend.cuh"
#include "sparse_plan.cuh"

namespace trt_resa {
namespace sparse {

// Merges the states of `count` results over parts of the keys, `stride` apart, and says by what
// their accumulators are to be multiplied. By one warp; all lanes get the result.
__device__ inline SoftmaxState merge_states(const SoftmaxState* states, int count, int stride,
                                            float* scales) {
  const int lane = lane_index();
  SoftmaxState out;
#pragma unroll 1
  for (int i = lane; i < count; i += 32) out.max = fmaxf(out.max, states[i * stride].max);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    out.max = fmaxf(out.max, __shfl_xor_sync(0xffffffffu, out.max, mask));
  }
#pragma unroll 1
  for (int i = lane; i < count; i += 32) {
    const SoftmaxState& state = states[i * stride];
    const float scale = softmax_rescale(state.max, out.max);
    scales[i * stride] = scale;
    out.sum += state.sum * scale;
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    out.sum += __shfl_xor_sync(0xffffffffu, out.sum, mask);
  }
  return out;
}

template <int kBytes>
struct MergeShared {
  // States [parts, group], scales of the parts' accumulators, the same, then accumulators.
  alignas(16) char bytes[kBytes];
  float inverse[kMaxGroup];
};

// Merges the partials of slots [first, first + parts) into the group's rows of `out`, as many
// columns at a time as fit into shared memory, always in the same order. `meanwhile` is called
// while they are on their way.
template <typename T, int kHeadDim, int kThreads, int kBytes, typename Meanwhile>
__device__ void merge_parts(const Args& a, int64_t first_head, int first, int parts,
                            MergeShared<kBytes>& shared, Meanwhile&& meanwhile) {
  static_assert(kBytes >= kMaxParts * (kMaxGroup * (sizeof(SoftmaxState) + sizeof(float)) + 16));
  constexpr int kHeadColumns = kHeadDim / 4;  // of four elements
  const int warp = warp_index(), lane = lane_index();
  const int group = a.group;
  const int all_columns = group * kHeadColumns;
  const int num_states = parts * group;
  auto* states = reinterpret_cast<SoftmaxState*>(shared.bytes);
  auto* scales = reinterpret_cast<float*>(states + num_states);
  const int used = (num_states * static_cast<int>(sizeof(SoftmaxState) + 4) + 15) / 16 * 16;
  const auto* columns = reinterpret_cast<const float4*>(shared.bytes + used);  // [parts, at_once]
  const int at_once = min(
      static_cast<int>(static_cast<unsigned>(kBytes - used) / static_cast<unsigned>(parts * 16)),
      all_columns);
  const float4* accumulators =
      reinterpret_cast<const float4*>(a.partials.accumulators) +
      static_cast<int64_t>(first) * all_columns;  // [parts, group, kHeadColumns]
  const SoftmaxState* from = a.partials.states + static_cast<int64_t>(first) * group;
  T* out = static_cast<T*>(a.out) + first_head * kHeadDim;

#pragma unroll 1
  for (int begin = 0; begin < all_columns; begin += at_once) {
    const int count = min(at_once, all_columns - begin);
#pragma unroll 1
    for (int part = warp; part < parts; part += kThreads / 32) {
#pragma unroll 1
      for (int i = lane; i < count; i += 32) {
        cp_async_16(shared_address(columns + part * count + i),
                    accumulators + part * all_columns + begin + i, 16);
      }
    }
    cp_async_commit();
    if (begin == 0) {
#pragma unroll 1
      for (int i = threadIdx.x; i < num_states; i += kThreads) states[i] = from[i];
      meanwhile();
      __syncthreads();
#pragma unroll 1
      for (int head = warp; head < group; head += kThreads / 32) {
        const SoftmaxState state = merge_states(states + head, parts, group, scales + head);
        if (lane == 0) shared.inverse[head] = softmax_inverse(state);
      }
    }
    cp_async_wait<0>();
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const int head = (begin + i) / kHeadColumns;
      float sum[4] = {};
#pragma unroll 4
      for (int part = 0; part < parts; ++part) {
        const float4 four = columns[part * count + i];
        const float scale = scales[part * group + head];
        const float column[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[j] += column[j] * scale;
      }
      store_four(out + (begin + i) * 4, sum, shared.inverse[head]);
    }
    __syncthreads();
  }
}

}  // namespace sparse
}  // namespace trt_resa
