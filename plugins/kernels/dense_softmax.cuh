// The running softmax of two rows, in the accumulator layout that mma.sync and wgmma share.
#pragma once

#include "softmax_state.cuh"

namespace trt_resa {
namespace dense {

// A quad of lanes holds two rows; lane q of it the columns 8 * i + 2 * q and the next: element
// 4 * i + {0, 1} of row 0 and 4 * i + {2, 3} of row 1. The maximum is that of the raw scores and
// the same in the whole quad, the sum is the lane's own part. A row that has seen nothing has the
// maximum -inf and the sum 0.
struct RowPair {
  float max[2] = {kNoScore, kNoScore};
  float sum[2] = {0.0f, 0.0f};

  // Turns scores into exponentials; `rescale` is what the accumulators so far are multiplied by.
  // A masked score is -inf. scale_log2 is positive.
  template <int kElements>
  __device__ void update(float (&scores)[kElements], float scale_log2, float (&rescale)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float highest = max[row];
#pragma unroll
      for (int i = 2 * row; i < kElements; i += 4) {
        highest = fmaxf(highest, fmaxf(scores[i], scores[i + 1]));
      }
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
      const float shift = softmax_base(__fmul_rn(highest, scale_log2));
      // Rounded like the shift: exactly 1 while the maximum stays, so that no error accumulates.
      rescale[row] = exp2_approx(__fmul_rn(max[row], scale_log2) - shift);
      max[row] = highest;
      float added = 0.0f;
#pragma unroll
      for (int i = 2 * row; i < kElements; i += 4) {
        scores[i] = exp2_approx(fmaf(scores[i], scale_log2, -shift));
        scores[i + 1] = exp2_approx(fmaf(scores[i + 1], scale_log2, -shift));
        added += scores[i] + scores[i + 1];
      }
      sum[row] = fmaf(sum[row], rescale[row], added);
    }
  }

  // The state of a whole row, in all lanes of the quad.
  __device__ SoftmaxState state(int row, float scale_log2) const {
    float total = sum[row] + __shfl_xor_sync(0xffffffffu, sum[row], 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    return SoftmaxState{__fmul_rn(max[row], scale_log2), total};
  }
};

template <int kElements>
__device__ void rescale_rows(float (&accumulator)[kElements], const float (&rescale)[2]) {
#pragma unroll
  for (int i = 0; i < kElements; ++i) accumulator[i] *= rescale[i % 4 / 2];
}

// Sets the scores of keys that a row must not see to -inf. `first_key` is the key of element 0.
template <int kElements>
__device__ void mask_scores(float (&scores)[kElements], int first_key, const int (&visible)[2]) {
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    const int key = first_key + i / 4 * 8 + i % 2;
    if (key >= visible[i % 4 / 2]) scores[i] = kNoScore;
  }
}

}  // namespace dense
}  // namespace trt_resa
