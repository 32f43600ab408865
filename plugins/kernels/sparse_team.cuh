// A row's whole step by the thread blocks of one cluster, its team.
//
// Where there are few rows of similar length, a cluster takes one row each and its thread blocks
// exchange through one another's shared memory: nothing waits for a counter in global memory, no
// key or selection leaves the multiprocessors, and half of them keep the memory busy.
//
// A thread block scores its own share of the row's blocks and keeps their keys. The team finds the
// last interval of the top-k (sparse_topk.cuh) from histograms that each sends and all add up,
// from which every thread block also knows how much of the selection is whose. Each attends to what
// it has selected itself, up to its quota, an equal share of the selection; what is above goes
// to those that are below theirs, in a fixed order. Results are merged by columns.
#pragma once

#include "cluster.cuh"
#include "dependent_launch.cuh"
#include "mma.cuh"
#include "sparse_args.h"
#include "sparse_attend.cuh"
#include "sparse_plan.cuh"
#include "sparse_queries.cuh"
#include "sparse_scores.cuh"
#include "sparse_sync.cuh"
#include "sparse_topk.cuh"

namespace trt_resa {
namespace sparse {

constexpr int kMinTeam = 4;  // smaller ones have not been measured
constexpr int kMaxTeam = 16;
constexpr int kTeamBins = 512;            // of the histograms that a team adds up
constexpr int kTeamBlocks = 4096;         // of a row, per thread block
constexpr int kTeamSelected = 1024;       // of a selection, per thread block
constexpr int kMinTeamBlocks = 32;        // of all teams: fewer do not keep the memory busy
constexpr int64_t kIdleBytes = 16 << 20;  // see suits_teams

template <int kHeadDim, int kHeadTiles_, int kWarps>
struct TeamShape {
  static constexpr int kHeadTiles = kHeadTiles_;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRingBudget = 128 * 1024;
  static constexpr int kColumns = 8 * kHeadTiles * (kHeadDim / 4);  // float4s of a group
  using Attend = AttendShape<kHeadDim, kHeadTiles, kWarps, kRingBudget>;
  using Score = ScoreShape<kHeadDim, kWarps, 4, kRingBudget>;
};

template <typename Shape>
struct TeamShared {
  using Attend = typename Shape::Attend;
  using Score = typename Shape::Score;
  union {
    char summaries[Score::kStages * Score::kStageBytes];
    AttendShared<Attend> attend;
  };
  alignas(16) uint32_t keys[kTeamBlocks];  // of the own blocks
  int32_t pool_blocks[kTeamBlocks];
  int32_t entries[kTeamSelected];  // what is attended to
  uint32_t bins[kTeamBins];        // of the own keys
  // Everybody's, as each sends them: two counts of 16 bits in a word. Rounds take turns.
  alignas(16) uint32_t counts[2][kMaxTeam][kTeamBins / 2];
  // Of each rank: its keys above the interval, and inside.
  int above[kMaxTeam];
  int inside[kMaxTeam];
  // Of each rank: what it takes of the keys inside, the own blocks that it attends to, and, up to
  // and including it, how many blocks are selected, handed on and taken over.
  int equals[kMaxTeam];
  int kept[kMaxTeam];
  int selected[kMaxTeam];
  int given[kMaxTeam];
  int taken[kMaxTeam];
  int warp_sums[Shape::kThreads / 32];
  int found_bin, found_inside, found_wanted;
  // Everybody's results for this one's columns, [ranks, columns of a rank].
  alignas(16) float4 parts[Shape::kColumns + kMaxTeam];
  float2 states[Shape::kColumns + kMaxTeam];
  uint64_t counted[2];  // barriers
  uint64_t handed_on;
  uint64_t merged;
};

// What of a row is a thread block's own.
struct TeamRow {
  int seq;
  int kv_head;
  int kv_len;
  int query_row;
  int blocks;
  int wanted;
  int begin;  // own blocks
  int end;
};

// Whether every row is to have a team of its own. A team that is done waits for the longest one, so
// that rows of unlike lengths are better divided as items; and it holds a limited number of blocks.
// Each warp finds the same; `row` is what it finds of that row.
__device__ inline bool suits_teams(const Args& a, int size, int row_index, TeamRow& row) {
  const int lane = threadIdx.x % 32;
  int query_row = 0;
  const int kv_len = lane < a.batch_size ? usable_length(a, lane, &query_row) : 0;
  const int blocks = blocks_of(a, kv_len);
  const int wanted = selected_of(a, lane, kv_len);
  const int longest = __reduce_max_sync(0xffffffffu, blocks);
  const int most = __reduce_max_sync(0xffffffffu, wanted);
  const int64_t idle = static_cast<int64_t>(longest) * a.batch_size - warp_sum(blocks);
  // The time that teams would wait, as bytes: of summaries, and of an eighth of K and V.
  const int64_t bytes = (idle * 2 + idle * a.block_size / 4) * a.kv_heads * a.head_dim * 2;
  row.seq = 0;
  row.kv_head = row_index;
#pragma unroll 1
  for (; row.kv_head >= a.kv_heads; ++row.seq) row.kv_head -= a.kv_heads;
  row.kv_len = __shfl_sync(0xffffffffu, kv_len, row.seq);
  row.query_row = __shfl_sync(0xffffffffu, query_row, row.seq);
  row.blocks = __shfl_sync(0xffffffffu, blocks, row.seq);
  row.wanted = __shfl_sync(0xffffffffu, wanted, row.seq);
  return longest <= size * kTeamBlocks && most <= size * kTeamSelected && bytes <= kIdleBytes;
}

// The blocks that one of a team attends to: its own ones, then those handed on to it.
template <typename Shared>
struct TeamTiles {
  static constexpr int kLastBlock = 1 << 30;  // set in the entry of the sequence's last block

  const Args& a;
  Shared& shared;
  int last_tokens;  // in the last block
  int own;          // blocks
  int blocks;       // with those handed on
  int known_blocks = own;

  __device__ int shift() const { return a.block_shift - kTileShift; }
  __device__ int count() const { return blocks << shift(); }
  __device__ int known() const { return known_blocks << shift(); }
  __device__ void wait() {
    cluster::wait_for(shared.handed_on, 0);
    known_blocks = blocks;
  }

  static __device__ int entry(const Args& a, int pool_block, int block, int row_blocks) {
    const bool usable = pool_block >= 0 && pool_block < a.num_blocks;
    return !usable ? -1 : block == row_blocks - 1 ? pool_block | kLastBlock : pool_block;
  }

  __device__ Tile find(int i) const {
    const int entry = shared.entries[i >> shift()];
    Tile tile;
    tile.slot = i * kTileKeys & (a.block_size - 1);
    tile.pool_block = entry < 0 ? -1 : entry & ~kLastBlock;
    tile.valid = ((entry & kLastBlock) != 0 ? last_tokens : a.block_size) - tile.slot;
    return tile;
  }
};

template <typename T, int kHeadDim, typename Shape>
class Team {
  using Shared = TeamShared<Shape>;
  using Score = typename Shape::Score;
  using Tiles = TeamTiles<Shared>;
  static constexpr int kThreads = Shape::kThreads;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kWords = kTeamBins / 2;
  static constexpr int kMerged = kBins / kTeamBins;  // bins of bin_of in one of a team's
  static_assert(kWords == kThreads);

 public:
  __device__ Team(const Args& a, Shared& shared)
      : a_(a),
        s_(shared),
        size_(cluster::size()),
        size_shift_(cluster::size_log2()),
        rank_(cluster::rank()) {}

  // Before anything else.
  __device__ void start() {
    if (threadIdx.x == 0) {
      cluster::make_barrier(s_.counted[0], 1);
      cluster::make_barrier(s_.counted[1], 1);
      cluster::make_barrier(s_.handed_on, 1);
      cluster::make_barrier(s_.merged, 1);
      cluster::fence_barriers();
    }
    cluster::arrive();
  }

  // Does what is this thread block's, or nothing and returns false. The first clusters append, for
  // a row per thread block, the next ones are teams.
  __device__ bool run(append::RopeTable<kHeadDim, 1>& rope, T* staged) {
    const int rows = a_.batch_size * a_.kv_heads;
    const int appending = (a_.roles & kAppend) != 0 ? (rows + size_ - 1) >> size_shift_ : 0;
    const bool appends = cluster::id() < appending;
    const int index =
        appends ? cluster::id() * size_ + rank_ : static_cast<int>(cluster::id()) - appending;
    const bool suits = suits_teams(a_, size_, index < rows ? index : 0, row_);
    if (suits && index < rows && row_.kv_len > 0) {
      if (appends) {
        append(rope);
      } else {
        do_row(rope, staged);
      }
    }
    if (suits && cluster::id() == appending && rank_ == 0) write_counts();
    cluster::wait();  // no thread block ends while another may write to its shared memory
    return suits;
  }

 private:
  __device__ void append(append::RopeTable<kHeadDim, 1>& rope) {
    Held held;
    append_row<T, kHeadDim, kWarps>(a_, row_.seq, row_.query_row, row_.kv_len, row_.kv_head, rope,
                                    held);
    __syncthreads();
    if (threadIdx.x == 0) add_release(counters() + kAppendedWord, 1);
  }

  // Leaves the cluster's barrier arrived at once more.
  __device__ void do_row(append::RopeTable<kHeadDim, 1>& rope, T* staged) {
    row_.begin = share(row_.blocks, rank_);
    row_.end = share(row_.blocks, rank_ + 1);
    const int own = row_.end - row_.begin;
    const bool attends = (a_.roles & kAttend) != 0;
    const bool scores = row_.wanted < row_.blocks;

    GroupQueries<T, kHeadDim, Shape::kHeadTiles, kWarps> queries(a_, row_.query_row, row_.kv_head);
    Held held;
    if (scores || attends) queries.load(row_.seq, rope, held);
    if (scores) {
#pragma unroll 1
      for (int i = threadIdx.x; i < kTeamBins; i += kThreads) s_.bins[i] = 0;
      if (threadIdx.x < kMaxTeam) s_.above[threadIdx.x] = 0;
      const int32_t* pool_blocks = table() + row_.begin;
#pragma unroll 1
      for (int i = threadIdx.x; i < own; i += kThreads) {
        cp_async_4(shared_address(s_.pool_blocks + i), pool_blocks + i);
      }
    }
    ScoreItem<T, Score> score(a_,
                              {row_.seq, row_.kv_head, row_.blocks, row_.begin, row_.end,
                               scores ? div_up(own, Score::kPerRound) : 0},
                              s_.summaries);
    score.score(
        staged,
        [&] {
          if (scores || attends) queries.stage(rope, staged);
        },
        [&](int block, uint32_t key) {
          s_.keys[block - row_.begin] = key;
          atomicAdd(&s_.bins[bin_of(key) / kMerged], 1u);
        });
    cp_async_wait<0>();
    cluster::wait();
    if (scores) {
      const Interval interval = find_interval();
      divide(interval.wanted);
      list(interval);
    } else {
      take_all();
    }
    __syncthreads();
    if (attends) attend_and_merge(staged);
    cluster::arrive();
  }

  // The first of `count` things that are a rank's.
  __device__ int share(int count, int rank) const { return count * rank >> size_shift_; }
  __device__ int32_t* counters() const {
    return row_counters(a_, row_.seq * a_.kv_heads + row_.kv_head);
  }
  __device__ const int32_t* table() const {
    return a_.block_table + static_cast<int64_t>(row_.seq) * a_.max_blocks_per_seq;
  }
  __device__ int32_t* selection() const {
    return a_.selection +
           (static_cast<int64_t>(row_.seq) * a_.kv_heads + row_.kv_head) * a_.max_selected;
  }

  __device__ void write_counts() const {
    if (a_.counts == nullptr || threadIdx.x >= a_.batch_size) return;
    const int seq = static_cast<int>(threadIdx.x);
    int query_row;
    a_.counts[seq] = selected_of(a_, seq, usable_length(a_, seq, &query_row));
  }

  // The last interval of the row's keys, see TopK.
  __device__ Interval find_interval() {
    const int word = kWords - 1 - static_cast<int>(threadIdx.x);  // from the largest keys on
    const int own = row_.end - row_.begin;
    Interval interval;
    interval.wanted = row_.wanted;
    int shift = -1;
#pragma unroll 1
    for (int round = 0;; ++round) {
      auto& counts = s_.counts[round % 2];
      uint64_t& counted = s_.counted[round % 2];
      __syncthreads();
      counts[rank_][word] = s_.bins[2 * word] | s_.bins[2 * word + 1] << 16;
      s_.bins[2 * word] = s_.bins[2 * word + 1] = 0;
      cluster::fence_before_send();
      __syncthreads();
      const int peer = static_cast<int>(threadIdx.x);
      if (peer == 0) cluster::arrive_expecting(counted, (size_ - 1) * kWords * 4);
      if (peer < size_ && peer != rank_) {
        cluster::send_bytes(counts[rank_], kWords * 4, counted, peer);
      }
      cluster::wait_for(counted, round / 2 % 2);

      int low = 0, high = 0;
#pragma unroll 1
      for (int rank = 0; rank < size_; rank += 2) {
        const uint32_t first = counts[rank][word], second = counts[rank + 1][word];
        low += (first & 0xffff) + (second & 0xffff);
        high += (first >> 16) + (second >> 16);
      }
      find_word(word, low, high, interval.wanted);
      const int bin = s_.found_bin;
      interval.inside = s_.found_inside;
      interval.wanted = s_.found_wanted;
      count_ranks(counts, bin);
      if (shift < 0) {
        interval.first = interval_of_bin(bin * kMerged).first;
        interval.last = interval_of_bin(bin * kMerged + kMerged - 1).last;
      } else {
        interval.first += static_cast<uint32_t>(bin) << shift;
        interval.last = interval.first + min(interval.last - interval.first, (1u << shift) - 1);
      }
      if (interval.is_final()) return interval;
      shift = interval.shift(kTeamBins);
#pragma unroll 1
      for (int i = threadIdx.x; i < own; i += kThreads) {
        const uint32_t key = s_.keys[i];
        if (interval.contains(key)) atomicAdd(&s_.bins[(key - interval.first) >> shift], 1u);
      }
    }
  }

  // Finds the bin that holds the wanted-th largest key; each thread has the sums of two bins, the
  // first thread those of the largest keys.
  __device__ void find_word(int word, int low, int high, int wanted) {
    const int warp = threadIdx.x / 32;
    const int upto = warp_inclusive_sum(low + high);
    if (threadIdx.x % 32 == 31) s_.warp_sums[warp] = upto;
    __syncthreads();
    int before = upto - low - high;
#pragma unroll 1
    for (int i = 0; i < warp; ++i) before += s_.warp_sums[i];
    if (before < wanted && wanted <= before + low + high) {
      const bool is_high = wanted <= before + high;
      s_.found_bin = 2 * word + (is_high ? 1 : 0);
      s_.found_inside = is_high ? high : low;
      s_.found_wanted = wanted - before - (is_high ? 0 : high);
    }
    __syncthreads();
  }

  // Adds up the keys of each rank above the bin, and counts those in it.
  __device__ void count_ranks(const uint32_t (&counts)[kMaxTeam][kWords], int bin) {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int rank = threadIdx.x / 32; rank < size_; rank += kWarps) {
      int above = 0, inside = 0;
#pragma unroll 2
      for (int word = lane; word < kWords; word += 32) {
        const int low = static_cast<int>(counts[rank][word] & 0xffff);
        const int high = static_cast<int>(counts[rank][word] >> 16);
        above += (2 * word > bin ? low : 0) + (2 * word + 1 > bin ? high : 0);
        inside += (2 * word == bin ? low : 0) + (2 * word + 1 == bin ? high : 0);
      }
      above = warp_sum(above);
      inside = warp_sum(inside);
      if (lane == 0) s_.above[rank] += above;
      if (lane == 0) s_.inside[rank] = inside;
    }
  }

  // How much of the selection is whose, and who attends to it: by the first warp, a lane per rank.
  // `wanted` of the keys in the interval are to be taken, the first ones where not all are.
  __device__ void divide(int wanted) {
    __syncthreads();
    if (threadIdx.x < 32) {
      const int rank = static_cast<int>(threadIdx.x);
      const bool exists = rank < size_;
      const int inside = exists ? s_.inside[rank] : 0;
      const int equals = max(min(wanted - (warp_inclusive_sum(inside) - inside), inside), 0);
      const int selected = exists ? s_.above[rank] + equals : 0;
      const int quota = exists ? share(row_.wanted, rank + 1) - share(row_.wanted, rank) : 0;
      const int kept = min(selected, quota);
      const int all_selected = warp_inclusive_sum(selected);
      const int all_kept = warp_inclusive_sum(kept);
      const int all_taken = warp_inclusive_sum(quota) - all_kept;
      if (exists) {
        s_.equals[rank] = equals;
        s_.kept[rank] = kept;
        s_.selected[rank] = all_selected;
        s_.given[rank] = all_selected - all_kept;
        s_.taken[rank] = all_taken;
      }
    }
    __syncthreads();
  }

  __device__ int before(const int (&sums)[kMaxTeam]) const {
    return rank_ == 0 ? 0 : sums[rank_ - 1];
  }

  // The own blocks that are selected, in ascending order: written out, or to be attended to but for
  // the first ones, which are handed on.
  __device__ void list(const Interval& interval) {
    const bool attends = (a_.roles & kAttend) != 0;
    const int selected = s_.selected[rank_] - before(s_.selected);
    const int surplus = selected - s_.kept[rank_];
    const int given = before(s_.given);
    const int comes = s_.taken[rank_] - before(s_.taken);
    if (attends && comes > 0 && threadIdx.x == 0) {
      cluster::arrive_expecting(s_.handed_on, comes * static_cast<int>(sizeof(int32_t)));
    }
    const int equals = s_.equals[rank_];
    const bool whole = interval.inside == interval.wanted;
    const uint32_t least = whole ? interval.first : interval.last + 1;
    const int own = row_.end - row_.begin;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int per_warp = (own + kThreads - 1) / kThreads * 32;
    const int first = warp * per_warp, end = min(first + per_warp, own);
    // Twice over the warp's keys: to count, and to list.
    int takes = 0, ties = 0;
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
#pragma unroll 1
      for (int base = first; base < end; base += 32) {
        const int at = base + lane;
        const uint32_t key = at < end ? s_.keys[at] : 0;
        const bool is_taken = at < end && key >= least;
        const bool is_tie = at < end && !whole && key == interval.last;
        const uint32_t taken_lanes = __ballot_sync(0xffffffffu, is_taken);
        const uint32_t tie_lanes = __ballot_sync(0xffffffffu, is_tie);
        const uint32_t lanes_before = (1u << lane) - 1;
        const int tied = ties + __popc(tie_lanes & lanes_before);
        if (pass == 1 && (is_taken || (is_tie && tied < equals))) {
          const int place = takes + __popc(taken_lanes & lanes_before) + min(tied, equals);
          put(at, place, attends, surplus, given);
        }
        takes += __popc(taken_lanes);
        ties += __popc(tie_lanes);
      }
      if (pass == 1) break;
      if (lane == 0) s_.warp_sums[warp] = takes | ties << 16;
      __syncthreads();
      takes = ties = 0;
#pragma unroll 1
      for (int i = 0; i < warp; ++i) {
        takes += s_.warp_sums[i] & 0xffff;
        ties += s_.warp_sums[i] >> 16;
      }
    }
  }

  // An own block that is the `place`-th of those selected.
  __device__ void put(int at, int place, bool attends, int surplus, int given) {
    const int block = row_.begin + at;
    if (!attends) {
      selection()[before(s_.selected) + place] = block;
      return;
    }
    const int entry = Tiles::entry(a_, s_.pool_blocks[at], block, row_.blocks);
    if (place >= surplus) {
      s_.entries[place - surplus] = entry;
      return;
    }
    const int number = given + place;
    int to = 0, taken = 0;
#pragma unroll 1
    for (; s_.taken[to] <= number; ++to) taken = s_.taken[to];
    cluster::send(s_.entries + s_.kept[to] + number - taken, entry, s_.handed_on, to);
  }

  // All blocks are selected: the own ones are this rank's part.
  __device__ void take_all() {
    const bool attends = (a_.roles & kAttend) != 0;
    const int begin = row_.begin, end = row_.end;
#pragma unroll 1
    for (int block = begin + static_cast<int>(threadIdx.x); block < end; block += kThreads) {
      if (attends) {
        s_.entries[block - begin] = Tiles::entry(a_, table()[block], block, row_.blocks);
      } else {
        selection()[block] = block;
      }
    }
    if (threadIdx.x == 0) {
      s_.kept[rank_] = end - begin;
      s_.taken[rank_] = 0;
      if (rank_ > 0) s_.taken[rank_ - 1] = 0;
    }
  }

  __device__ void attend_and_merge(const T* staged) {
    constexpr int kHeadColumns = kHeadDim / 4;
    const int columns = a_.group * kHeadColumns;  // dealt out to the ranks
    const int per_rank = (columns + size_ - 1) >> size_shift_;
    const int mine = (columns - rank_ + size_ - 1) >> size_shift_;
    if (threadIdx.x == 0) {
      cluster::arrive_expecting(s_.merged, size_ * mine * static_cast<int>(sizeof(float4) + 8));
    }
    if ((a_.roles & kAppend) != 0 && rank_ == size_ - 1) {
      wait(counters() + kAppendedWord, 1);  // the last block is in this thread block's part
      if (threadIdx.x == 0) counters()[kAppendedWord] = 0;
    }
    const int kept = s_.kept[rank_];
    Tiles tiles{a_, s_, row_.kv_len - (row_.blocks - 1) * a_.block_size, kept,
                kept + s_.taken[rank_] - before(s_.taken)};
    attend<T>(a_, row_.kv_head, tiles, staged, s_.attend,
              [&](int head, int column, const SoftmaxState& state, const float (&sum)[4]) {
                const int at = head * kHeadColumns + column / 4;
                const int owner = at & (size_ - 1);
                const int slot = rank_ * per_rank + (at >> size_shift_);
                cluster::send(s_.parts + slot, make_float4(sum[0], sum[1], sum[2], sum[3]),
                              s_.merged, owner);
                cluster::send(s_.states + slot, make_float2(state.max, state.sum), s_.merged,
                              owner);
              });
    cluster::wait_for(s_.merged, 0);
    // A lane per rank and column.
    const int lane_rank = static_cast<int>(threadIdx.x) & (size_ - 1);
    T* out =
        static_cast<T*>(a_.out) +
        (static_cast<int64_t>(row_.query_row) * a_.q_heads + row_.kv_head * a_.group) * kHeadDim;
#pragma unroll 1
    for (int first = 0; first < mine; first += kThreads >> size_shift_) {
      const int i = first + (static_cast<int>(threadIdx.x) >> size_shift_);
      const int slot = lane_rank * per_rank + min(i, mine - 1);
      const float2 state = s_.states[slot];
      const float4 four = s_.parts[slot];
      SoftmaxState all{state.x, state.y};
      float sum[4] = {four.x, four.y, four.z, four.w};
#pragma unroll 1
      for (int mask = 1; mask < size_; mask *= 2) {
        const float max = fmaxf(all.max, __shfl_xor_sync(0xffffffffu, all.max, mask));
        const float scale = softmax_rescale(all.max, max);
        all.max = max;
        all.sum *= scale;
        all.sum += __shfl_xor_sync(0xffffffffu, all.sum, mask);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sum[j] *= scale;
          sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], mask);
        }
      }
      if (i < mine && lane_rank == 0) {
        store_four(out + ((i << size_shift_) + rank_) * 4, sum, softmax_inverse(all));
      }
    }
  }

  const Args& a_;
  Shared& s_;
  const int size_;  // a power of two
  const int size_shift_;
  const int rank_;
  TeamRow row_;
};

}  // namespace sparse
}  // namespace trt_resa
