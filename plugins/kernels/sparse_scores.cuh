// Scoring blocks from their summaries.
//
// The score of a block is an upper bound of q . k over its keys k, for the mean q of the group's
// queries: sum over d of max(q_d * max_d, q_d * min_d), which is q_d times the maximum where q_d is
// not negative and times the minimum elsewhere. Computed in fp32 from 16-bit summaries; each lane
// adds up eight elements in order, then lanes are added pairwise.
#pragma once

#include "kv_append.cuh"
#include "sparse_args.h"
#include "sparse_plan.cuh"
#include "sparse_sync.cuh"
#include "sparse_topk.cuh"
#include "vec.h"

namespace trt_resa {
namespace sparse {

// The mean query of one group and what of a summary it meets, eight elements per lane.
struct MeanQuery {
  float values[kVecSize];
  uint32_t take_max[kVecSize / 2];  // all ones in the halves whose element is not negative

  template <typename T>
  __device__ void load(const T* q, int group, int head_dim, bool has_vec) {
    float sum[kVecSize] = {};
    if (has_vec) {
#pragma unroll 8
      for (int head = 0; head < group; ++head) {
        float x[kVecSize];
        Vec<T>::load(q + head * head_dim).to_floats(x);
#pragma unroll
        for (int i = 0; i < kVecSize; ++i) sum[i] += x[i];
      }
    }
    const float count = static_cast<float>(group);
#pragma unroll
    for (int i = 0; i < kVecSize; ++i) values[i] = __fdiv_rn(sum[i], count);
#pragma unroll
    for (int i = 0; i < kVecSize / 2; ++i) {
      take_max[i] = (values[2 * i] >= 0.0f ? 0x0000ffffu : 0u) |
                    (values[2 * i + 1] >= 0.0f ? 0xffff0000u : 0u);
    }
  }

  template <typename T>
  __device__ float score(const Vec<T>& low, const Vec<T>& high) const {
    Vec<T> met;
#pragma unroll
    for (int i = 0; i < kVecSize / 2; ++i) {
      met.words[i] = (high.words[i] & take_max[i]) | (low.words[i] & ~take_max[i]);
    }
    float x[kVecSize];
    met.to_floats(x);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kVecSize; ++i) sum = fmaf(values[i], x[i], sum);
    return sum;
  }
};

constexpr int kScoreRounds = 1;  // of loads per score item

template <int kHeadDim, int kWarps>
struct ScoreShape {
  using L = append::Layout<kHeadDim>;
  static constexpr int kPerLane = 8;  // summaries in flight per lane
  static constexpr int kPerWarp = kPerLane * L::kRowsPerPass;
  static constexpr int kPerRound = kPerWarp * kWarps;
  static constexpr int kChunk = kPerRound * kScoreRounds;  // blocks of a score item
  static_assert(kPerWarp <= 32 && kPerLane <= L::kLanes);
};

// Keys of the blocks [first, first + kChunk) of a row to the workspace and the row's histogram.
// `appended` is reached when the queries stand (0: they stand already); the summaries of forced
// blocks, among them the one that the append rewrites, are not read.
template <typename T, int kHeadDim, int kWarps>
__device__ void score_chunk(const Args& a, const Plan& plan, const RowItem& item, int appended) {
  using Shape = ScoreShape<kHeadDim, kWarps>;
  using L = typename Shape::L;
  const int lane = threadIdx.x % 32;
  const int lane_in_row = lane % L::kLanes;
  const int row_in_pass = lane / L::kLanes;
  const bool has_vec = lane_in_row < L::kVecs;
  const int column = lane_in_row * kVecSize;
  const int blocks = static_cast<int>(num_blocks(plan.kv_len[item.seq], a.block_size));
  const int scored_end = blocks - a.local_blocks;
  const int64_t row = item.row(a);
  const int32_t* table = a.block_table + static_cast<int64_t>(item.seq) * a.max_blocks_per_seq;
  const T* summaries = static_cast<const T*>(a.summary) + column;

  MeanQuery mean;
#pragma unroll 1
  for (int round = 0; round < kScoreRounds; ++round) {
    const int first =
        item.piece * Shape::kChunk + round * Shape::kPerRound + threadIdx.x / 32 * Shape::kPerWarp;
    // Lane l looks up the pool block of the warp's l-th block: -1 where it is not to be read.
    int pool_block = -1;
    if (lane < Shape::kPerWarp && first + lane >= a.sink_blocks && first + lane < scored_end) {
      pool_block = table[first + lane];
      if (pool_block >= a.num_blocks) pool_block = -1;
    }
    Vec<T> low[Shape::kPerLane], high[Shape::kPerLane];
#pragma unroll
    for (int i = 0; i < Shape::kPerLane; ++i) {
      const int64_t source =
          __shfl_sync(append::kAllLanes, pool_block, i * L::kRowsPerPass + row_in_pass);
      if (has_vec && source >= 0) {
        const T* summary = summaries + (source * a.kv_heads + item.kv_head) * 2 * kHeadDim;
        low[i] = Vec<T>::load(summary);
        high[i] = Vec<T>::load(summary + kHeadDim);
      }
    }
    if (round == 0) {
      if (appended > 0) wait(a.counters.appended + item.seq, appended);
      const int group = a.q_heads / a.kv_heads;
      const T* q =
          static_cast<const T*>(a.q) + column +
          (static_cast<int64_t>(plan.query_row[item.seq]) * a.q_heads + item.kv_head * group) *
              kHeadDim;
      mean.load(q, group, kHeadDim, has_vec);
    }
    float scores[Shape::kPerLane];
#pragma unroll
    for (int i = 0; i < Shape::kPerLane; ++i) scores[i] = mean.score(low[i], high[i]);
    float mine = 0.0f;
#pragma unroll
    for (int i = 0; i < Shape::kPerLane; ++i) {
#pragma unroll
      for (int mask = 1; mask < L::kLanes; mask *= 2) {
        scores[i] += __shfl_xor_sync(append::kAllLanes, scores[i], mask);
      }
      if (lane_in_row == i) mine = scores[i];
    }

    // The first lanes of each group hold the warp's scores: one block each.
    const int index = lane_in_row * L::kRowsPerPass + row_in_pass;
    const int block = first + index;
    const int known = __shfl_sync(append::kAllLanes, pool_block, index % Shape::kPerWarp);
    const bool present = lane_in_row < Shape::kPerLane && block < blocks;
    const unsigned lanes = __ballot_sync(append::kAllLanes, present);
    if (present) {
      const bool forced = block < a.sink_blocks || block >= scored_end;
      const uint32_t key = forced ? kForcedKey : known < 0 ? 0u : ordered_key(mine);
      a.keys[row * a.key_pitch + block] = key;
      const int bin = bin_of(key);
      const unsigned same = __match_any_sync(lanes, bin);
      if (lane == __ffs(same) - 1) {
        atomicAdd(a.counters.histogram + row * kBins + bin, static_cast<uint32_t>(__popc(same)));
      }
    }
  }
}

}  // namespace sparse
}  // namespace trt_resa
