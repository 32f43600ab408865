// A row's whole step by the thread blocks of one cluster, its team.
//
// Where there are few rows of similar length, a cluster takes one row each and its thread blocks
// exchange through one another's shared memory: nothing waits for a counter in global memory, no
// key or selection leaves the multiprocessors, and half of them keep the memory busy.
//
// A thread block scores its own share of the row's blocks, and keeps their keys when all have sent
// one another what their blocks weigh for each head. The team finds the last interval of the top-k
// (sparse_topk.cuh) from histograms that each sends and all add up, from which every thread block
// also knows how much of the selection is whose (sparse_team_deal.cuh). Mostly after the first
// round few keys are left that may be in or out. What is certain is on its way to the
// multiprocessors while all compare these. Results are merged by columns.
#pragma once

#include "cluster.cuh"
#include "dependent_launch.cuh"
#include "mma.cuh"
#include "sparse_args.h"
#include "sparse_attend.cuh"
#include "sparse_keys.cuh"
#include "sparse_places.cuh"
#include "sparse_plan.cuh"
#include "sparse_queries.cuh"
#include "sparse_scores.cuh"
#include "sparse_team_deal.cuh"
#include "sparse_team_list.cuh"
#include "sparse_team_merge.cuh"
#include "sparse_team_search.cuh"
#include "sparse_team_shared.cuh"

namespace trt_resa {
namespace sparse {

template <typename T, int kHeadDim, typename Shape>
class Team {
  using Shared = TeamShared<Shape>;
  using Score = typename Shape::Score;
  using Tiles = TeamTiles<Shared>;
  static constexpr int kThreads = Shape::kThreads;
  static constexpr int kWarps = kThreads / 32;

 public:
  __device__ Team(const Args& a, Shared& shared)
      : a_(a),
        s_(shared),
        size_(cluster::size()),
        size_shift_(cluster::size_log2()),
        rank_(cluster::rank()) {}

  // Does what is this thread block's, or nothing and returns false. Allows the next kernel when the
  // cluster has drawn: that one may draw then.
  __device__ bool run(append::RopeTable<kHeadDim, 1>& rope, T* staged) {
    if (a_.settled == 0) wait_for_previous_kernel();
    if (threadIdx.x == 0) {
      cluster::make_barrier(s_.placed, 1);
      cluster::make_barrier(s_.weighed, 1);
      cluster::make_barrier(s_.counted[0], 1);
      cluster::make_barrier(s_.counted[1], 1);
      cluster::make_barrier(s_.rivals_sent, 1);
      cluster::make_barrier(s_.handed_on, 1);
      cluster::make_barrier(s_.merged, 1);
      cluster::fence_barriers();
      cluster::arrive_expecting(s_.placed, static_cast<int>(sizeof(int32_t)));
    }
    cluster::arrive();
    TeamSearch<Shape>::start(s_, rank_);
    if (rank_ != 0) {
      allow_next_kernel();
    } else if (draws()) {
      const int lane = lane_index();
      int row = 0;
      if (lane == 0) {
        row = draw_row(a_.placement, a_.counters.draws, a_.batch_size * a_.kv_heads);
      }
      row = __shfl_sync(0xffffffffu, row, 0);
      cluster::wait();
      if (lane < size_) cluster::send(&s_.row, row, s_.placed, lane);
      __syncwarp();
      allow_next_kernel();
    }
    const SequenceLength length(a_, TeamLengths::seq_of_lane(a_));
    if (!draws()) cluster::wait();
    const TeamLengths lengths(a_, length);
    if (!lengths.suit_teams(size_)) {
      drawn();  // what follows takes the memory that it is sent to
      return false;
    }
    do_row(lengths, rope, staged);
    if (row_.row(a_) == 0 && rank_ == 0) write_counts();
    return true;
  }

 private:
  // This warp, for its cluster.
  __device__ bool draws() const { return rank_ == 0 && threadIdx.x >= kThreads - 32; }

  // The index of this cluster's row, or -1.
  __device__ int drawn() const {
    cluster::wait_for(s_.placed, 0);
    return s_.row;
  }

  // All that others send here is waited for, so that the thread block may end.
  __device__ void do_row(const TeamLengths& lengths, append::RopeTable<kHeadDim, 1>& rope,
                         T* staged) {
    // A sequence alone is known before the row.
    const bool is_alone = a_.batch_size == 1;
    row_ = lengths.row(is_alone ? 0 : drawn());
    row_.begin = row_.share(row_.blocks, rank_, size_shift_);
    row_.end = row_.share(row_.blocks, rank_ + 1, size_shift_);
    const int quota = row_.quota(rank_, size_shift_);
    const int own = row_.end - row_.begin;
    const bool attends = (a_.roles & kAttend) != 0;
    const bool scores = row_.wanted < row_.blocks;

    // Who has no blocks says so too: a round of none leaves sums of nothing.
    ScoreItem<T, Score> score(a_,
                              {row_.seq, row_.blocks, row_.begin, row_.end,
                               scores ? div_up(max(own, 1), Score::kPerRound) : 0},
                              s_.summaries);
    GroupQueries<T, kHeadDim, Shape::kHeadTiles, kWarps> queries(a_, row_.query_row);
    Held held;
    if ((scores || attends) && row_.kv_len > 0) queries.prepare(row_.seq, rope, held);
    if (is_alone) row_.kv_head = drawn();
    const bool is_taken = row_.kv_head >= 0 && row_.kv_len > 0;
    if (is_taken && scores) {
      const int32_t* pool_blocks = table() + row_.begin;
#pragma unroll 1
      for (int i = threadIdx.x; i < own; i += kThreads) {
        cp_async_4(shared_address(s_.pool_blocks + i), pool_blocks + i);
      }
    }
    wait_for_previous_kernel();
    if (!is_taken) return;
    if (scores || attends) queries.load(row_.kv_head);
    score.begin(row_.kv_head);
    if (scores || attends) queries.stage(rope, staged);
    score.go_on();
    // The last block is the last rank's own, and forced: that one attends to it.
    const bool appends = (a_.roles & kAppend) != 0 && rank_ == size_ - 1;
    NewToken<T, kHeadDim, kWarps> token(a_, appends, row_.query_row, row_.kv_len, row_.kv_head);
    token.load(table());
    TeamSearch<Shape> search(s_, size_, rank_, a_.group, row_.blocks);
    float* terms = terms_of(own);
    score.finish(staged, terms, s_.of_warps);
    cp_async_wait<0>();
    TeamList<Shape> list(a_, s_, row_, size_, size_shift_, rank_);
    Interval interval;
    bool has_rivals = false;
    if (scores) {
      const float* own_terms = weigh(terms, own);
#pragma unroll 1
      for (int i = threadIdx.x; i < own; i += kThreads) {
        const uint32_t key = block_key(a_, row_.begin + i, row_.blocks, s_.pool_blocks[i],
                                       own_terms + i * a_.term_pitch, s_.head_logs[warp_index()]);
        s_.keys[i] = key;
        search.count(key);
      }
      RankKeys of_rank;  // lane l's
      const int likely = attends ? min(quota / 6, kLikelyBytes / block_bytes()) : 0;
      interval = search.find_interval(own, row_.wanted, attends ? kMaxRivals : kMaxQuickRivals,
                                      likely, of_rank, [&](uint32_t least) {
                                        if (attends) prefetch(own, least);
                                        token.store(rope, staged);
                                      });
      has_rivals = !interval.is_final();
      if (has_rivals) {
        search.send_rivals(own, row_.begin, interval, of_rank,
                           [&](int i) { return list.entry_of(i); });
      }
      list.choose(interval, of_rank, has_rivals);
      if (has_rivals && !attends) list.take_rivals(search, interval);
      list.write();
    } else {
      token.store(rope, staged);
      list.write_all(table());
    }
    __syncthreads();
    if (!attends) return;
    TeamDeal<Shape>& deal = list.deal();
    deal.hand_on();
    Tiles tiles{a_,
                s_,
                row_.kv_len - (row_.blocks - 1) * a_.block_size,
                deal.surplus(),
                scores ? deal.kept() : own,
                quota};
    Attention<T, typename Shape::Attend, Tiles> attention(a_, row_.kv_head, tiles, s_.attend);
    attention.start();
    if (has_rivals) {
      search.place_rivals(
          interval, [&](const Rival& rival, int before) { deal.put_rival(before, rival.entry); });
      __syncthreads();
    }
    TeamMerge<T, kHeadDim, Shape> merge(s_, size_, size_shift_, rank_, a_.group);
    attention.run(staged, [&](int head, int column, const SoftmaxState& state,
                              const float (&sum)[4]) { merge.send(head, column, state, sum); });
    token.summarise();
    merge.wait();
    merge.write(static_cast<T*>(a_.out) +
                (static_cast<int64_t>(row_.query_row) * a_.q_heads + row_.kv_head * a_.group) *
                    kHeadDim);
  }

  __device__ int block_bytes() const {  // of K and V
    return 2 * a_.block_size * kHeadDim * static_cast<int>(sizeof(T));
  }

  // Brings K and V of the own blocks whose keys are from `least` on to the L2 cache.
  __device__ void prefetch(int own, uint32_t least) const {
    const T* kv = pool<const T>(a_.kv, a_.append.indirect);
    const int64_t to_value = rows_to_value(a_) * kHeadDim;
#pragma unroll 1
    for (int i = threadIdx.x; i < own; i += kThreads) {
      if (s_.keys[i] < least || !is_pool_block(a_, s_.pool_blocks[i])) continue;
      const T* keys = kv + key_row(a_, s_.pool_blocks[i], row_.kv_head) * kHeadDim;
      prefetch_bytes(keys, block_bytes() / 2);
      prefetch_bytes(keys + to_value, block_bytes() / 2);
    }
  }

  // Where the terms of `own` blocks go: to shared memory where they are few, or to the workspace.
  __device__ float* terms_of(int own) const {
    if (s_.holds_terms(own, a_.term_pitch)) return s_.held_terms(own);
    return a_.terms + (row_.row(a_) * a_.key_pitch + row_.begin) * a_.term_pitch;
  }

  // Makes the row's head_logs from what everybody has summed up; returns where the `own` blocks'
  // terms are by then. Begins with a barrier.
  __device__ const float* weigh(const float* terms, int own) {
    constexpr int kHeads = Score::kHeads;
    static_assert(kMaxTeam * kHeads <= kThreads);
    __syncthreads();
    const int head = static_cast<int>(threadIdx.x) % kHeads;
    const int to = static_cast<int>(threadIdx.x) / kHeads;
    if (threadIdx.x == 0) {
      cluster::arrive_expecting(s_.weighed, size_ * kHeads * static_cast<int>(sizeof(float2)));
    }
    if (to < size_) {
      send_state(s_.of_ranks[rank_][head], merge_warps(s_.of_warps, head), s_.weighed, to);
    }
    // Meanwhile terms come back from the workspace.
    const int count = own * a_.term_pitch;
    if (!s_.holds_terms(own, a_.term_pitch) && count <= Shared::kFetchedTerms) {
#pragma unroll 1
      for (int i = 4 * static_cast<int>(threadIdx.x); i < count; i += 4 * kThreads) {
        cp_async_16(shared_address(s_.fetched_terms() + i), terms + i, 16);
      }
      cp_async_wait<0>();
      __syncthreads();
      discard(terms, count);
      terms = s_.fetched_terms();
    }
    cluster::wait_for(s_.weighed, 0);
    make_head_logs();
    return terms;
  }

  // Each warp makes its own copy, from what a rank after another has for the lane's head.
  __device__ void make_head_logs() {
    constexpr int kHeads = Score::kHeads;
    constexpr int kRanks = 32 / kHeads;  // at a time
    const int warp = warp_index(), lane = lane_index();
    const int head = lane % kHeads;
    SoftmaxState states[kMaxTeam / kRanks];
#pragma unroll
    for (int i = 0; i < kMaxTeam / kRanks; ++i) {
      const int rank = i * kRanks + lane / kHeads;
      if (rank < size_) states[i] = s_.of_ranks[rank][head];
    }
    float scales[kMaxTeam / kRanks];
    const SoftmaxState all = softmax_merge_lanes(softmax_merge(states, scales), kHeads);
    if (lane < kHeads) {
      s_.head_logs[warp][head] = head_log(all, head, a_.group);
    }
    __syncwarp();
  }

  // Terms that nobody will read again: their lines need not go to memory. Neighbours may be in the
  // first and the last one.
  __device__ void discard(const float* terms, int count) const {
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(terms) + kLineBytes - 1) / kLineBytes;
    const uintptr_t end = reinterpret_cast<uintptr_t>(terms + count) / kLineBytes;
#pragma unroll 1
    for (uintptr_t line = begin + threadIdx.x; line < end; line += kThreads) {
      discard_line(reinterpret_cast<void*>(line * kLineBytes));
    }
  }

  __device__ const int32_t* table() const { return table_of(a_, row_.seq); }

  __device__ void write_counts() const {
    if (a_.counts == nullptr || threadIdx.x >= a_.batch_size) return;
    const int seq = static_cast<int>(threadIdx.x);
    a_.counts[seq] = selected_of(a_, seq, SequenceLength(a_, seq).usable(a_));
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
