// Scoring blocks from their summaries.
//
// The score of a block is an upper bound of q . k over its keys k, for the mean q of the group's
// queries: sum over d of max(q_d * max_d, q_d * min_d), which is q_d times the maximum where q_d is
// not negative and times the minimum elsewhere. Computed in fp32 from 16-bit summaries; each lane
// adds up eight elements in order, then lanes are added pairwise.
#pragma once

#include "kv_append.cuh"
#include "pool.cuh"
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

  // `q` are the group's queries in shared memory.
  template <typename T>
  __device__ void set(const T* q, int group, int head_dim) {
    float sum[kVecSize] = {};
    for (int head = 0; head < group; ++head) {
      float x[kVecSize];
      Vec<T>::load(q + head * head_dim).to_floats(x);
#pragma unroll
      for (int i = 0; i < kVecSize; ++i) sum[i] += x[i];
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

template <int kHeadDim, int kWarps>
struct ScoreShape {
  using L = append::Layout<kHeadDim>;
  static constexpr int kPerLane = 4;  // summaries that a lane loads per round
  static constexpr int kPerWarp = kPerLane * L::kRowsPerPass;
  static constexpr int kPerRound = kPerWarp * kWarps;
  static_assert(32 % kPerWarp == 0 && kPerLane <= L::kLanes);
};

// The summaries of one round of a warp.
template <typename T, typename Shape>
struct ScoreRound {
  Vec<T> low[Shape::kPerLane];
  Vec<T> high[Shape::kPerLane];
  int pool_block;  // of the block whose key this lane will write; below 0: its score is ignored
};

// A warp's blocks of a score item: plan.score_rounds rounds of kPerWarp, one after another.
template <typename T, int kHeadDim, int kWarps>
struct ScoreStream {
  using Shape = ScoreShape<kHeadDim, kWarps>;
  using L = typename Shape::L;
  using Round = ScoreRound<T, Shape>;

  const Args& a;
  int first;         // block
  int scored_begin;  // blocks before and behind these are forced and not read: the append may be
  int scored_end;    // rewriting the last one's summary
  const int32_t* table;  // of the sequence
  const T* summaries;    // of the KV head, at this lane's column
  int lane_in_row;
  int row_in_pass;
  int pool_blocks = -1;       // lane l: of the l-th of 32 blocks
  int next_pool_blocks = -1;  // and of those behind them

  __device__ int look_up(int block) const {
    block += threadIdx.x % 32;
    if (block < scored_begin || block >= scored_end) return -1;
    const int pool_block = table[block];
    return pool_block < a.num_blocks ? pool_block : -1;
  }

  // All lanes read something: where the score does not matter, the first block of the pool.
  __device__ void load(int round, Round& out) {
    const int begin = round * Shape::kPerWarp;
    const int place = begin % 32;
    if (place == 0) {
      pool_blocks = begin == 0 ? look_up(first) : next_pool_blocks;
      next_pool_blocks = look_up(first + begin + 32);
    }
#pragma unroll
    for (int i = 0; i < Shape::kPerLane; ++i) {
      const int source =
          __shfl_sync(append::kAllLanes, pool_blocks, place + i * L::kRowsPerPass + row_in_pass);
      const T* summary =
          summaries + static_cast<int64_t>(max(source, 0)) * (a.kv_heads * 2 * kHeadDim);
      out.low[i] = Vec<T>::load(summary);
      out.high[i] = Vec<T>::load(summary + kHeadDim);
    }
    out.pool_block = __shfl_sync(append::kAllLanes, pool_blocks, (place + index_in_round()) % 32);
  }

  // The block of a round whose key this lane writes; kPerWarp or more: none.
  __device__ int index_in_round() const { return lane_in_row * L::kRowsPerPass + row_in_pass; }

  // The score of that block.
  __device__ float score(const MeanQuery& mean, const Round& round) const {
    float scores[Shape::kPerLane];
#pragma unroll
    for (int i = 0; i < Shape::kPerLane; ++i) {
      scores[i] = lane_in_row < L::kVecs ? mean.score(round.low[i], round.high[i]) : 0.0f;
    }
    float mine = 0.0f;
#pragma unroll
    for (int mask = 1; mask < L::kLanes; mask *= 2) {
#pragma unroll
      for (int i = 0; i < Shape::kPerLane; ++i) {
        scores[i] += __shfl_xor_sync(append::kAllLanes, scores[i], mask);
      }
    }
#pragma unroll
    for (int i = 0; i < Shape::kPerLane; ++i) {
      if (lane_in_row == i) mine = scores[i];
    }
    return mine;
  }
};

// Keys of a chunk of blocks of a row to the workspace and the row's histogram. The queries stand
// when `written` counts up to `writes` (0: they stand already). The loads of a round are in flight
// while the round before is scored. Shared memory: `bins`, since keys crowd in few bins and an
// atomic per key on the row's histogram would take longer than the summaries; `staged` for the
// group's queries.
template <typename T, int kHeadDim, int kWarps>
__device__ void score_chunk(const Args& a, const Plan& plan, const RowItem& item,
                            const int32_t* written, int writes, uint32_t (&bins)[kBins],
                            T* staged) {
  using Stream = ScoreStream<T, kHeadDim, kWarps>;
  using Shape = typename Stream::Shape;
  using L = typename Stream::L;
  constexpr int kThreads = 32 * kWarps;
  const int lane_in_row = threadIdx.x % L::kLanes;
  const int column = (lane_in_row < L::kVecs ? lane_in_row : 0) * kVecSize;
  const int blocks = blocks_of(a, plan.kv_len[item.seq]);
  const int rounds = plan.score_rounds;
  const int64_t row = item.row(a);

  Stream stream{
      a,
      (item.piece * kWarps + static_cast<int>(threadIdx.x) / 32) * rounds * Shape::kPerWarp,
      a.sink_blocks,
      blocks - a.local_blocks,
      a.block_table + static_cast<int64_t>(item.seq) * a.max_blocks_per_seq,
      pool<const T>(a.summary, a.append.indirect) + item.kv_head * 2 * kHeadDim + column,
      lane_in_row,
      static_cast<int>(threadIdx.x) % 32 / L::kLanes,
  };
  typename Stream::Round even, odd;
  stream.load(0, even);

  for (int i = threadIdx.x; i < kBins; i += kThreads) bins[i] = 0;
  if (writes > 0) wait(written, writes);
  const int group = a.q_heads / a.kv_heads;
  const T* q = static_cast<const T*>(a.q) +
               (static_cast<int64_t>(plan.query_row[item.seq]) * a.q_heads + item.kv_head * group) *
                   kHeadDim;
  for (int i = threadIdx.x; i < group * L::kVecs; i += kThreads) {
    Vec<T>::load(q + i * kVecSize).store(staged + i * kVecSize);
  }
  __syncthreads();
  MeanQuery mean;
  mean.set(staged + column, group, kHeadDim);

  const auto finish = [&](int round, const typename Stream::Round& loaded) {
    const float score = stream.score(mean, loaded);
    const int index = stream.index_in_round();
    const int block = stream.first + round * Shape::kPerWarp + index;
    if (index >= Shape::kPerWarp || block >= blocks) return;
    const bool forced = block < stream.scored_begin || block >= stream.scored_end;
    const uint32_t key = forced ? kForcedKey : loaded.pool_block < 0 ? 0u : ordered_key(score);
    a.keys[row * a.key_pitch + block] = key;
    atomicAdd(&bins[bin_of(key)], 1u);
  };
  for (int round = 0; round < rounds; round += 2) {
    if (round + 1 < rounds) stream.load(round + 1, odd);
    finish(round, even);
    if (round + 1 == rounds) break;
    if (round + 2 < rounds) stream.load(round + 2, even);
    finish(round + 1, odd);
  }
  __syncthreads();
  uint32_t* histogram = a.counters.histogram + row * kBins;
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    if (bins[i] != 0) atomicAdd(histogram + bin_slot(i), bins[i]);
  }
}

}  // namespace sparse
}  // namespace trt_resa
