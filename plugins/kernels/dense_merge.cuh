// Second kernel of dense_attention: merges the partial states of split sequences into rows of out.
#pragma once

#include "dense_schedule.cuh"
#include "dependent_launch.cuh"
#include "vec.h"

namespace trt_resa {
namespace dense {

// Few rows have many pieces.
template <typename Tile>
constexpr int kMergeThreads = Tile::kRows == 16 ? 512 : 256;

// One thread block per row of out at a time. A group of threads holds the row, four columns each;
// the groups share the pieces, then the first merges the others.
template <typename T, typename Tile>
__global__ void __launch_bounds__(kMergeThreads<Tile>)
    merge_kernel(const __grid_constant__ Args a) {
  constexpr int kThreads = kMergeThreads<Tile>;
  constexpr int kHeadDim = Tile::kHeadDim;
  constexpr int kLanes = kHeadDim / 4;
  constexpr int kGroups = kThreads / kLanes;
  __shared__ SplitScratch<kThreads> scratch;
  __shared__ SoftmaxState states[kGroups];
  __shared__ float4 columns[kGroups][kLanes];
  const int group = threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;

  const float scale = choose_split<Tile, kThreads>(a, scratch);
  for (int item = blockIdx.x;; item += gridDim.x) {
    const Found found = find_item<Tile, true>(a, scale, item);
    // So far nothing depended on what the attention kernel writes.
    if (item == static_cast<int>(blockIdx.x)) wait_for_previous_kernel();
    if (found.index < 0) break;
    const Sequence& s = found.sequence;
    const int head = found.local % a.p.q_heads;
    const int index = found.local / a.p.q_heads * a.group + head % a.group;

    // Pieces that begin behind the last visible key were not computed for this row.
    const int visible_tiles = (s.visible(index, a.group) - 1) / Tile::kKeys + 1;
    int pieces = found.pieces;
    while (s.piece_begin(pieces - 1, found.pieces) >= visible_tiles) --pieces;

    const int tiles = s.row_tiles * a.p.kv_heads;
    const int row_tile = index / Tile::kRows;
    const int first =
        found.partials_before + (s.row_tiles - 1 - row_tile) * a.p.kv_heads + head / a.group;
    SoftmaxState state;
    float merged[4] = {};
    if (group < kGroups) {
      merge_partials<kHeadDim>(a.partials, Tile::kRows, index % Tile::kRows, first + group * tiles,
                               first + pieces * tiles, kGroups * tiles, lane * 4, state, merged);
      columns[group][lane] = make_float4(merged[0], merged[1], merged[2], merged[3]);
      if (lane == 0) states[group] = state;
    }
    __syncthreads();
    if (group == 0) {
      for (int i = 1; i < min(kGroups, pieces); ++i) {
        const SoftmaxMerge merge = softmax_merge(state, states[i]);
        state = merge.state;
        const float4 other = columns[i][lane];
        const float others[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          merged[j] = merged[j] * merge.scale_a + others[j] * merge.scale_b;
        }
      }
      const float inverse = softmax_inverse(state);
      const auto low = Pair<T>::from_float(merged[0] * inverse, merged[1] * inverse);
      const auto high = Pair<T>::from_float(merged[2] * inverse, merged[3] * inverse);
      const int64_t row = static_cast<int64_t>(s.first_row) * a.p.q_heads + found.local;
      T* target = static_cast<T*>(a.p.out) + row * kHeadDim + lane * 4;
      *reinterpret_cast<uint2*>(target) = make_uint2(reinterpret_cast<const uint32_t&>(low),
                                                     reinterpret_cast<const uint32_t&>(high));
    }
    __syncthreads();
  }
}

}  // namespace dense
}  // namespace trt_resa
