// Merging the parts of a row, by the thread block that finished the last of them.
#pragma once

#include "sparse_args.h"
#include "sparse_attend.cuh"
#include "sparse_plan.cuh"

namespace trt_resa {
namespace sparse {

template <int kThreads>
struct MergeShared {
  SoftmaxState states[kMaxParts * kMaxGroup];  // [parts, group]
  float scales[kMaxParts * kMaxGroup];         // of the parts' accumulators, the same
  float inverse[kMaxGroup];
  float4 columns[kThreads];
};

// Merges the partials of slots [first, first + parts) into the group's rows of `out`. A thread
// holds four columns of a head; where there are threads enough, several share the parts of the same
// columns, and the first of them adds up the shares, always in the same order.
template <typename T, int kHeadDim, int kThreads>
__device__ void merge_parts(const Args& a, int64_t first_head, int first, int parts,
                            MergeShared<kThreads>& shared) {
  constexpr int kBatch = 16;  // accumulators in flight per thread
  constexpr int kHeadColumns = kHeadDim / 4;
  const int thread = threadIdx.x;
  const int group = a.q_heads / a.kv_heads;
  const int all_columns = group * kHeadColumns;
  const int shares = max(kThreads / all_columns, 1);
  const int share = shares == 1 ? 0 : thread / all_columns;
  const int end = share < shares ? all_columns : 0;
  const float4* accumulators =
      reinterpret_cast<const float4*>(a.partials.accumulators) +
      static_cast<int64_t>(first) * all_columns;  // [parts, group, kHeadColumns]

  const SoftmaxState* states = a.partials.states + static_cast<int64_t>(first) * group;
#pragma unroll 1
  for (int i = thread; i < parts * group; i += kThreads) shared.states[i] = states[i];
  __syncthreads();
#pragma unroll 1
  for (int head = thread / 32; head < group; head += kThreads / 32) {
    const SoftmaxState state =
        merge_states(shared.states + head, parts, group, shared.scales + head);
    if (thread % 32 == 0) shared.inverse[head] = softmax_inverse(state);
  }
  __syncthreads();

  T* out = static_cast<T*>(a.out) + first_head * kHeadDim;
#pragma unroll 1
  for (int at = shares == 1 ? thread : thread % all_columns; at < end; at += kThreads) {
    const int head = at / kHeadColumns;
    float sum[4] = {};
#pragma unroll 1
    for (int part = share; part < parts; part += kBatch * shares) {
      float4 batch[kBatch];
      const float4* from = accumulators + (part * all_columns + at);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        batch[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (part + i * shares < parts) batch[i] = from[i * shares * all_columns];
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int mine = min(part + i * shares, parts - 1);
        const float scale = shared.scales[mine * group + head];
        const float column[4] = {batch[i].x, batch[i].y, batch[i].z, batch[i].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[j] += column[j] * scale;
      }
    }
    if (shares == 1) {
      store_four(out + at * 4, sum, shared.inverse[head]);
    } else {
      shared.columns[thread] = make_float4(sum[0], sum[1], sum[2], sum[3]);
      break;
    }
  }
  if (shares == 1) return;
  __syncthreads();
  if (thread >= all_columns) return;
  float sum[4] = {};
#pragma unroll 1
  for (int i = 0; i < shares; ++i) {
    const float4 column = shared.columns[thread + i * all_columns];
    const float columns[4] = {column.x, column.y, column.z, column.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[j] += columns[j];
  }
  store_four(out + thread * 4, sum, shared.inverse[thread / kHeadColumns]);
}

}  // namespace sparse
}  // namespace trt_resa
