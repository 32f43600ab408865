// The state of an online softmax in base 2, and the merge of results over parts of the keys.
//
// Scores enter as s = (q . k) * log2(e) / sqrt(head_dim), so that 2^x is the only exponential.
// After some keys a query row has
//   max = the largest s,   sum = sum of 2^(s - max),   accumulator[d] = sum of 2^(s - max) * v[d],
// all in fp32, and its result is accumulator / sum.
//
// The empty state (no key yet, or every key masked: s = -inf) has max = -inf, sum = 0 and
// accumulator = 0. It is neutral: merging it changes no bit of the other state, two empty states
// merge to the empty state, and its result is 0. A NaN score reaches the result through the sum.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trt_resa {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kNoScore = -__builtin_huge_valf();  // the score of a masked key

// One instruction each; what is below 2^-126 counts as 0.
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
__device__ __forceinline__ float log2_approx(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return log2f(x);
#endif
}
__device__ __forceinline__ float sqrt_approx(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return sqrtf(x);
#endif
}

struct alignas(8) SoftmaxState {
  float max = kNoScore;
  float sum = 0.0f;
};

// What is subtracted from scores before 2^x: the maximum, or 0 where there is none yet, since
// -inf - -inf would be NaN. Masked keys then weigh 2^-inf = 0.
__device__ __forceinline__ float softmax_base(float max) {
  return max == kNoScore ? 0.0f : max;
}

// Factor of a state's sum and accumulator when its maximum rises from `from` to `to`.
__device__ __forceinline__ float softmax_rescale(float from, float to) {
  return exp2_approx(from - softmax_base(to));
}

// One more score; a masked one or NaN changes nothing.
__device__ __forceinline__ void softmax_add(SoftmaxState& state, float score) {
  if (!(score > kNoScore)) return;
  const float weight = exp2_approx(-fabsf(score - state.max));
  state.sum = score > state.max ? state.sum * weight + 1.0f : state.sum + weight;
  state.max = fmaxf(state.max, score);
}

struct SoftmaxMerge {
  SoftmaxState state;
  float scale_a;  // factors of the two accumulators, to be added afterwards
  float scale_b;
};

__device__ __forceinline__ SoftmaxMerge softmax_merge(const SoftmaxState& a,
                                                      const SoftmaxState& b) {
  SoftmaxMerge out;
  out.state.max = fmaxf(a.max, b.max);
  out.scale_a = softmax_rescale(a.max, out.state.max);
  out.scale_b = softmax_rescale(b.max, out.state.max);
  out.state.sum = a.sum * out.scale_a + b.sum * out.scale_b;
  return out;
}

// The same of several states at once: their exponentials do not wait for one another.
template <int kCount>
__device__ __forceinline__ SoftmaxState softmax_merge(const SoftmaxState (&states)[kCount],
                                                      float (&scales)[kCount]) {
  SoftmaxState out;
#pragma unroll
  for (int i = 0; i < kCount; ++i) out.max = fmaxf(out.max, states[i].max);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    scales[i] = softmax_rescale(states[i].max, out.max);
    out.sum += states[i].sum * scales[i];
  }
  return out;
}

// The same of the states of lanes that differ in the bits from `least` up to 16 of their number.
__device__ __forceinline__ SoftmaxState softmax_merge_lanes(const SoftmaxState& own, int least) {
  SoftmaxState all = own;
#pragma unroll
  for (int mask = 16; mask >= least; mask /= 2) {
    all.max = fmaxf(all.max, __shfl_xor_sync(0xffffffffu, all.max, mask));
  }
  all.sum *= softmax_rescale(own.max, all.max);
#pragma unroll
  for (int mask = 16; mask >= least; mask /= 2) {
    all.sum += __shfl_xor_sync(0xffffffffu, all.sum, mask);
  }
  return all;
}

// The logarithm of the sum of 2^s.
__device__ __forceinline__ float softmax_log(const SoftmaxState& state) {
  return state.max + log2_approx(state.sum);
}

// Factor that turns an accumulator into the result.
__device__ __forceinline__ float softmax_inverse(const SoftmaxState& state) {
  return state.sum == 0.0f ? 0.0f : 1.0f / state.sum;
}

// Results over parts of the keys, one slot per part, not normalised. `rows` query rows per slot.
struct SoftmaxPartials {
  SoftmaxState* states;  // [slots, rows]
  float* accumulators;   // [slots, rows, head_dim]
};

// Merges the slots first, first + step, ... below `end` of one row into `state` and the four
// columns from `column` on: kBatch slots at a time, in this order.
template <int kHeadDim>
__device__ void merge_partials(const SoftmaxPartials& partials, int rows, int row, int first,
                               int end, int step, int column, SoftmaxState& state,
                               float (&accumulator)[4]) {
  constexpr int kBatch = 8;
  for (int base = first; base < end; base += kBatch * step) {
    SoftmaxState states[kBatch + 1];
    float4 columns[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      columns[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      const int slot = base + i * step;
      if (slot < end) {
        const int64_t at = static_cast<int64_t>(slot) * rows + row;
        states[i] = partials.states[at];
        columns[i] =
            *reinterpret_cast<const float4*>(partials.accumulators + at * kHeadDim + column);
      }
    }
    float scales[kBatch + 1];
    states[kBatch] = state;
    state = softmax_merge(states, scales);
#pragma unroll
    for (int j = 0; j < 4; ++j) accumulator[j] *= scales[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float other[4] = {columns[i].x, columns[i].y, columns[i].z, columns[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) accumulator[j] += other[j] * scales[i];
    }
  }
}

}  // namespace trt_resa
