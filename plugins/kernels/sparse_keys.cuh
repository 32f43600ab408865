// The keys of blocks, from their heads' terms (sparse_scores.cuh).
//
// A block's score is the log, in base 2, of the sum over the group's heads of the head's softmax of
// its terms over the row's scored blocks: of how much of its heads' attention the block may get. A
// head's sum over the whole row stands only when all of the row has been scored, by whatever thread
// blocks; then a key takes its own block's terms alone. Keys order scores in steps of 2^-21.
#pragma once

#include "softmax_state.cuh"
#include "sparse_args.h"
#include "sparse_plan.cuh"

namespace trt_resa {
namespace sparse {

constexpr uint32_t kForcedKey = 0xfffffffeu;  // one key is above it, see TopK::write
constexpr uint32_t kNanKey = 0xfffffffdu;     // NaN comes before every number, as in torch.sort
constexpr uint32_t kZeroKey = 0x80000000u;    // of a score of 0
constexpr int kKeyShift = 21;                 // bits of a key behind the point

// A score beyond 2^1000 or below 2^-1000 counts as that.
__device__ __forceinline__ uint32_t ordered_key(float score) {
  if (isnan(score)) return kNanKey;
  const float steps = fminf(fmaxf(score, -1000.0f), 1000.0f) * static_cast<float>(1 << kKeyShift);
  return kZeroKey + static_cast<uint32_t>(__float2int_rn(steps));
}

// The log of the sum of 2^log over a warp.
__device__ __forceinline__ float warp_log_sum(float log) {
  float max = log;
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, mask));
  }
  float sum = exp2f(log - softmax_base(max));
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  return softmax_log({max, sum});
}

// The same of what each warp has, for one head.
template <int kWarps, int kHeads>
__device__ float add_warp_logs(const float (&warp_logs)[kWarps][kHeads], int head) {
  SoftmaxState all;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) softmax_add(all, warp_logs[warp][head]);
  return softmax_log(all);
}

// The log of each head's sum over the row to `head_logs` in shared memory: of `count` logs of it
// for head h, the i-th is logs[i * pitch + h]. Heads that the group does not have get +inf, so that
// they share in nothing. A barrier must follow.
template <int kWarps, int kHeads>
__device__ void add_logs(const float* logs, int count, int pitch, int group,
                         float (&head_logs)[kHeads]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
  for (int head = static_cast<int>(threadIdx.x) / 32; head < kHeads; head += kWarps) {
    SoftmaxState own;
    if (head < group) {
#pragma unroll 1
      for (int i = lane; i < count; i += 32) softmax_add(own, logs[i * pitch + head]);
    }
    const float all = warp_log_sum(softmax_log(own));
    if (lane == 0) head_logs[head] = head < group ? all : -kNoScore;
  }
}

// The key of a block of a row of `blocks`, whose entry in the block table is `entry`. `terms`
// [term_pitch] are its own, in shared or global memory.
template <int kHeads>
__device__ uint32_t block_key(const Args& a, int block, int blocks, int entry, const float* terms,
                              const float (&head_logs)[kHeads]) {
  if (is_forced(a, block, blocks)) return kForcedKey;
  if (!is_pool_block(a, entry)) return 0;
  float shares[kHeads];
  float most = kNoScore;
#pragma unroll
  for (int i = 0; i < kHeads; i += 4) {
    float4 four = make_float4(kNoScore, kNoScore, kNoScore, kNoScore);
    if (i < a.term_pitch) four = *reinterpret_cast<const float4*>(terms + i);
    const float4 logs = *reinterpret_cast<const float4*>(head_logs + i);
    shares[i] = four.x - logs.x;
    shares[i + 1] = four.y - logs.y;
    shares[i + 2] = four.z - logs.z;
    shares[i + 3] = four.w - logs.w;
#pragma unroll
    for (int j = 0; j < 4; ++j) most = fmaxf(most, shares[i + j]);
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kHeads; ++i) sum += exp2f(shares[i] - softmax_base(most));
  return ordered_key(softmax_log({most, sum}));
}

}  // namespace sparse
}  // namespace trt_resa
