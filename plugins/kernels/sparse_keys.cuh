// The keys of blocks, from their heads' terms (sparse_scores.cuh).
//
// A block's score is the sum, over the group's heads, of the head's softmax of its terms over the
// row's scored blocks: how much of its heads' attention the block may get. A head's sum over the
// whole row stands only when all of the row has been scored, by whatever thread blocks; then a key
// takes its own block's terms alone.
#pragma once

#include "softmax_state.cuh"
#include "sparse_args.h"
#include "sparse_plan.cuh"

namespace trt_resa {
namespace sparse {

constexpr uint32_t kForcedKey = 0xfffffffeu;  // one key is above it, see TopK::write
constexpr uint32_t kNanKey = 0xfffffffdu;     // NaN comes before every number, as in torch.sort

// Of a score that is not negative.
__device__ __forceinline__ uint32_t ordered_key(float score) {
  return isnan(score) ? kNanKey : __float_as_uint(score) + 1;
}

// The sum of what all warps have, for one head.
template <int kWarps, int kHeads>
__device__ SoftmaxState merge_warps(const SoftmaxState (&of_warps)[kWarps][kHeads], int head) {
  SoftmaxState all;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) all.max = fmaxf(all.max, of_warps[warp][head].max);
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
    const SoftmaxState& own = of_warps[warp][head];
    all.sum += own.sum * softmax_rescale(own.max, all.max);
  }
  return all;
}

// The log of a head's sum over the row: of one that the group does not have +inf, so that it shares
// in nothing.
__device__ __forceinline__ float head_log(const SoftmaxState& all, int head, int group) {
  return head < group ? softmax_log(all) : -kNoScore;
}

// The log of each head's sum over the row to `head_logs` in shared memory: of `count` states of it
// for head h, the i-th is states[i * pitch + h]. A barrier must follow.
template <int kWarps, int kHeads>
__device__ void make_head_logs(const SoftmaxState* states, int count, int pitch, int group,
                               float (&head_logs)[kHeads]) {
  const int lane = lane_index();
#pragma unroll 1
  for (int head = warp_index(); head < kHeads; head += kWarps) {
    SoftmaxState own;
#pragma unroll 1
    for (int i = lane; i < count && head < group; i += 32) {
      own = softmax_merge(own, states[i * pitch + head]).state;
    }
    const float log = head_log(softmax_merge_lanes(own, 1), head, group);
    if (lane == 0) head_logs[head] = log;
  }
}

// The key of a block of a row of `blocks`, whose entry in the block table is `entry`. `terms`
// [term_pitch] are its own, in shared or global memory.
template <int kHeads>
__device__ uint32_t block_key(const Args& a, int block, int blocks, int entry, const float* terms,
                              const float (&head_logs)[kHeads]) {
  if (is_forced(a, block, blocks)) return kForcedKey;
  if (!is_pool_block(a, entry)) return 0;
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kHeads; i += 4) {
    if (i >= a.term_pitch) break;
    const float4 four = *reinterpret_cast<const float4*>(terms + i);
    const float4 logs = *reinterpret_cast<const float4*>(head_logs + i);
    sum += (exp2_approx(four.x - logs.x) + exp2_approx(four.y - logs.y)) +
           (exp2_approx(four.z - logs.z) + exp2_approx(four.w - logs.w));
  }
  return ordered_key(sum);
}

}  // namespace sparse
}  // namespace trt_resa
