// Merging what the thread blocks of a team have of a row's result (sparse_team.cuh): each owns some
// four columns of it, dealt out to the ranks one after another, and gets everybody's part of these.
#pragma once

#include "cluster.cuh"
#include "softmax_state.cuh"
#include "sparse_team_shared.cuh"
#include "vec.h"

namespace trt_resa {
namespace sparse {

template <typename T, int kHeadDim, typename Shape>
class TeamMerge {
  static constexpr int kThreads = Shape::kThreads;
  static constexpr int kHeadColumns = kHeadDim / 4;

 public:
  // `size` is a power of two; called by all threads, as the others are.
  __device__ TeamMerge(TeamShared<Shape>& shared, int size, int size_shift, int rank, int group)
      : s_(shared), size_(size), size_shift_(size_shift), rank_(rank) {
    const int columns = group * kHeadColumns;
    per_rank_ = (columns + size - 1) >> size_shift;
    mine_ = (columns - rank + size - 1) >> size_shift;
    if (threadIdx.x == 0) {
      constexpr int kPart = sizeof(float4), kState = sizeof(SoftmaxState);
      cluster::arrive_expecting(s_.merged, size * (mine_ * kPart + group * kState));
    }
  }

  // Four columns of a head from `column` on, and the head's state.
  __device__ void send(int head, int column, const SoftmaxState& state,
                       const float (&sum)[4]) const {
    const int at = head * kHeadColumns + column / 4;
    const int owner = at & (size_ - 1);
    const int slot = rank_ * per_rank_ + (at >> size_shift_);
    cluster::send(s_.parts + slot, make_float4(sum[0], sum[1], sum[2], sum[3]), s_.merged, owner);
    // Each gets the state of every head.
    if (column / 4 < size_) send_state(s_.states[rank_][head], state, s_.merged, column / 4);
  }

  // For everybody's parts.
  __device__ void wait() const { cluster::wait_for(s_.merged, 0); }

  // Adds them up and writes the own columns to `out` [group, kHeadDim].
  __device__ void write(T* out) const {
    // A thread per half of four columns and kMinTeam ranks; neighbours have the other ranks.
    const int shift = size_shift_ - kMinTeamShift;
    const int neighbours = 1 << shift;
    const int first_rank = (static_cast<int>(threadIdx.x) & (neighbours - 1)) * kMinTeam;
#pragma unroll 1
    for (int first = 0; first < 2 * mine_; first += kThreads >> shift) {
      const int half = first + (static_cast<int>(threadIdx.x) >> shift);
      const int i = min(half / 2, mine_ - 1);
      const int at = (i << size_shift_) + rank_;
      SoftmaxState states[kMinTeam];
      float2 parts[kMinTeam];
#pragma unroll
      for (int r = 0; r < kMinTeam; ++r) {
        states[r] = s_.states[first_rank + r][at / kHeadColumns];
        parts[r] =
            reinterpret_cast<const float2*>(s_.parts + (first_rank + r) * per_rank_ + i)[half % 2];
      }
      float scales[kMinTeam];
      SoftmaxState all = softmax_merge(states, scales);
      float x = 0.0f, y = 0.0f;
#pragma unroll
      for (int r = 0; r < kMinTeam; ++r) {
        x += parts[r].x * scales[r];
        y += parts[r].y * scales[r];
      }
      const float max = all.max;
#pragma unroll
      for (int mask = 1; mask < kMaxTeam / kMinTeam; mask *= 2) {
        if (mask == neighbours) break;
        all.max = fmaxf(all.max, __shfl_xor_sync(0xffffffffu, all.max, mask));
      }
      const float scale = softmax_rescale(max, all.max);
      all.sum *= scale;
      x *= scale;
      y *= scale;
#pragma unroll
      for (int mask = 1; mask < kMaxTeam / kMinTeam; mask *= 2) {
        if (mask == neighbours) break;
        all.sum += __shfl_xor_sync(0xffffffffu, all.sum, mask);
        x += __shfl_xor_sync(0xffffffffu, x, mask);
        y += __shfl_xor_sync(0xffffffffu, y, mask);
      }
      if (first_rank == 0 && half < 2 * mine_) {
        const float inverse = softmax_inverse(all);
        const auto pair = Pair<T>::from_float(x * inverse, y * inverse);
        *reinterpret_cast<uint32_t*>(out + at * 4 + half % 2 * 2) =
            reinterpret_cast<const uint32_t&>(pair);
      }
    }
  }

 private:
  TeamShared<Shape>& s_;
  const int size_;
  const int size_shift_;
  const int rank_;
  int per_rank_;  // at most: four columns each
  int mine_;
};

}  // namespace sparse
}  // namespace trt_resa
