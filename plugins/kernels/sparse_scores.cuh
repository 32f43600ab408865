// Scoring blocks from their summaries.
//
// The score of a block is an upper bound of q . k over its keys k, for the mean q of the group's
// queries: sum over d of max(q_d * max_d, q_d * min_d), which is q_d times the maximum where q_d is
// not negative and times the minimum elsewhere. Computed in fp32 from 16-bit summaries; each lane
// adds up eight elements in order, then lanes are added pairwise.
#pragma once

#include "kv_append.cuh"
#include "mma.cuh"
#include "pool.cuh"
#include "sparse_args.h"
#include "sparse_plan.cuh"
#include "sparse_topk.cuh"
#include "vec.h"

namespace trt_resa {
namespace sparse {

// The mean query of one group and what of a summary it meets, eight elements per lane.
struct MeanQuery {
  float values[kVecSize];
  uint32_t take_max[kVecSize / 2];  // all ones in the halves whose element is not negative

  // `q` are the group's queries in shared memory.
  template <typename T>
  __device__ void set(const T* q, int group, int head_dim) {
    float sum[kVecSize] = {};
#pragma unroll 2
    for (int head = 0; head < group; ++head) {
      float x[kVecSize];
      Vec<T>::load(q + head * head_dim).to_floats(x);
#pragma unroll
      for (int i = 0; i < kVecSize; ++i) sum[i] += x[i];
    }
    // Divided as __fdiv_rn does, in three instructions: a quotient that is off by less than an
    // ulp and its exact remainder round as the division does where nothing underflows.
    const float count = static_cast<float>(group);
    const float inverse = __fdiv_rn(1.0f, count);
#pragma unroll
    for (int i = 0; i < kVecSize; ++i) {
      const float quotient = sum[i] * inverse;
      values[i] = fmaf(fmaf(-quotient, count, sum[i]), inverse, quotient);
    }
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

// kRingBudget: bytes of shared memory for the summaries that are on their way.
template <int kHeadDim_, int kWarps_, int kPerLane_, int kRingBudget>
struct ScoreShape {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kWarps = kWarps_;
  using L = append::Layout<kHeadDim>;
  static constexpr int kPerLane = kPerLane_;  // summaries that a lane reads per round
  static constexpr int kPerWarp = kPerLane * L::kRowsPerPass;
  static constexpr int kPerRound = kPerWarp * kWarps;
  static constexpr int kStageBytes = kWarps * kPerLane * 2 * 32 * 16;
  static constexpr int kFitting = kRingBudget / kStageBytes;
  static constexpr int kStages = kFitting > 8 ? 8 : kFitting;
  static_assert(32 % kPerWarp == 0 && kPerLane <= L::kLanes && kStages >= 3);
};

// What one thread block scores: blocks [begin, end) of a row of `blocks`.
struct ScoreRange {
  int seq;
  int kv_head;
  int blocks;
  int begin;
  int end;
  int rounds;  // that cover it
};

// Scores a range: each warp goes through its rounds of kPerWarp blocks, which follow one another. A
// lane reads back what it brought to shared memory itself: 16 bytes of the minima and of the maxima
// of each of its summaries.
template <typename T, typename Shape>
class ScoreItem {
  static constexpr int kHeadDim = Shape::kHeadDim;
  using L = typename Shape::L;

 public:
  __device__ ScoreItem(const Args& a, const ScoreRange& range, void* ring)
      : a_(a),
        rounds_(range.rounds),
        end_(range.end),
        scored_end_(min(range.end, range.blocks - a.local_blocks)),
        table_(a.block_table + static_cast<int64_t>(range.seq) * a.max_blocks_per_seq) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int lane_in_row = lane % L::kLanes;
    first_ = range.begin + warp * rounds_ * Shape::kPerWarp;
    column_ = (lane_in_row < L::kVecs ? lane_in_row : 0) * kVecSize;
    summaries_ =
        pool<const T>(a.summary, a.append.indirect) + range.kv_head * 2 * kHeadDim + column_;
    ring_ = static_cast<char*>(ring) + (warp * Shape::kPerLane * 2 * 32 + lane) * 16;
    mine_ = lane_in_row * L::kRowsPerPass + lane / L::kLanes;
    next_entries_ = rounds_ > 0 ? look_up(first_) : -1;
  }

  // Calls `keep` with each block and its key. `stage` is called when the first copies are under
  // way: after it the group's queries are in shared memory at `queries`.
  template <typename Stage, typename Keep>
  __device__ void score(const T* queries, Stage&& stage, Keep&& keep) {
    MeanQuery mean;
#pragma unroll 1
    for (int round = 1 - Shape::kStages; round < max(rounds_, 1); ++round) {
      if (round == 0) {
        stage();
        if (rounds_ > 0) mean.set(queries + column_, a_.group, kHeadDim);
      }
      if (round >= 0 && round < rounds_) {
        cp_async_wait<Shape::kStages - 2>();
        finish(round, mean, keep);
      }
      start(round + Shape::kStages - 1);
    }
  }

 private:
  __device__ char* stage(int round) const {
    return ring_ + round % Shape::kStages * Shape::kStageBytes;
  }

  // Blocks that are forced are not read: the append may be rewriting the last one's summary.
  __device__ bool is_scored(int block) const {
    return block >= a_.sink_blocks && block < scored_end_;
  }

  // The table's entry of this lane's one of 32 blocks, or -1 where its summary is not to be read.
  // Nothing waits for it yet.
  __device__ int look_up(int block) const {
    block += threadIdx.x % 32;
    return is_scored(block) ? table_[block] : -1;
  }

  // Starts the copies of a round; an empty group behind the last one, so that the number of groups
  // in flight is constant.
  __device__ void start(int round) {
    if (round < rounds_) {
      const int begin = round * Shape::kPerWarp;
      const int place = begin % 32;
      if (place == 0) {
        entries_ = next_entries_;
        next_entries_ = begin + 32 < rounds_ * Shape::kPerWarp ? look_up(first_ + begin + 32) : -1;
      }
      const int row_in_pass = threadIdx.x % 32 / L::kLanes;
#pragma unroll
      for (int i = 0; i < Shape::kPerLane; ++i) {
        const int entry =
            __shfl_sync(append::kAllLanes, entries_, place + i * L::kRowsPerPass + row_in_pass);
        const bool usable = is_pool_block(a_, entry);
        const T* summary =
            summaries_ + static_cast<int64_t>(usable ? entry : 0) * (a_.kv_heads * 2 * kHeadDim);
        const uint32_t target = shared_address(stage(round)) + i * (2 * 32 * 16);
        cp_async_16_once(target, summary, usable);
        cp_async_16_once(target + 32 * 16, summary + kHeadDim, usable);
      }
      // Whether the block whose key this lane will write can be read.
      const int own = __shfl_sync(append::kAllLanes, entries_, (place + mine_) % 32);
      const uint32_t bit = 1u << round % 32;
      readable_ = is_pool_block(a_, own) ? readable_ | bit : readable_ & ~bit;
    }
    cp_async_commit();
  }

  template <typename Keep>
  __device__ void finish(int round, const MeanQuery& mean, Keep&& keep) {
    const int lane_in_row = threadIdx.x % L::kLanes;
    const T* summaries = reinterpret_cast<const T*>(stage(round));
    float scores[Shape::kPerLane];
#pragma unroll
    for (int i = 0; i < Shape::kPerLane; ++i) {
      const T* low = summaries + i * (2 * 32 * kVecSize);
      scores[i] = lane_in_row < L::kVecs
                      ? mean.score(Vec<T>::load(low), Vec<T>::load(low + 32 * kVecSize))
                      : 0.0f;
    }
    // Lanes are added pairwise. As long as there are several scores, each of two lanes goes on with
    // half of them, so that lane i of a row ends with the i-th.
    int mask = 1;
#pragma unroll
    for (int count = Shape::kPerLane / 2; count > 0; count /= 2, mask *= 2) {
      const bool odd = (lane_in_row & mask) != 0;
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const float given = odd ? scores[2 * i] : scores[2 * i + 1];
        const float kept = odd ? scores[2 * i + 1] : scores[2 * i];
        scores[i] = kept + __shfl_xor_sync(append::kAllLanes, given, mask);
      }
    }
#pragma unroll
    for (; mask < L::kLanes; mask *= 2) {
      scores[0] += __shfl_xor_sync(append::kAllLanes, scores[0], mask);
    }
    const int block = first_ + round * Shape::kPerWarp + mine_;
    if (mine_ >= Shape::kPerWarp || block >= end_) return;
    const uint32_t key = !is_scored(block)                    ? kForcedKey
                         : (readable_ >> round % 32 & 1) == 0 ? 0u
                                                              : ordered_key(scores[0]);
    keep(block, key);
  }

  const Args& a_;
  int rounds_;
  int end_;
  int scored_end_;        // blocks from here on are forced
  int first_;             // block of the warp
  int column_;            // of this lane in a row
  int mine_;              // the block of a round whose key this lane writes; kPerWarp or more: none
  const int32_t* table_;  // of the sequence
  const T* summaries_;    // of the KV head, at this lane's column
  char* ring_;            // this lane's place in the first stage
  int entries_ = -1;      // lane l: of the l-th of 32 blocks
  int next_entries_;      // and of those behind them
  uint32_t readable_ = 0;  // bit per round under way
};

}  // namespace sparse
}  // namespace trt_resa
