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
#include "sparse_plan.cuh"
#include "sparse_queries.cuh"
#include "sparse_scores.cuh"
#include "sparse_sync.cuh"
#include "sparse_team_deal.cuh"
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

  // Before anything else.
  __device__ void start() {
    if (threadIdx.x == 0) {
      cluster::make_barrier(s_.weighed, 1);
      cluster::make_barrier(s_.counted[0], 1);
      cluster::make_barrier(s_.counted[1], 1);
      cluster::make_barrier(s_.rivals_sent, 1);
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
    const bool has_row = suits && index < rows && row_.kv_len > 0;
    if (has_row && !appends) {
      do_row(rope, staged);
    } else {
      if (has_row) append(rope);
      cluster::wait();
    }
    if (suits && cluster::id() == appending && rank_ == 0) write_counts();
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

  // All that others send here is waited for, so that the thread block may end.
  __device__ void do_row(append::RopeTable<kHeadDim, 1>& rope, T* staged) {
    row_.begin = share(row_.blocks, rank_);
    row_.end = share(row_.blocks, rank_ + 1);
    const int own = row_.end - row_.begin;
    const bool attends = (a_.roles & kAttend) != 0;
    const bool scores = row_.wanted < row_.blocks;

    // Who has no blocks says so too: a round of none leaves sums of nothing.
    ScoreItem<T, Score> score(a_,
                              {row_.seq, row_.kv_head, row_.blocks, row_.begin, row_.end,
                               scores ? div_up(max(own, 1), Score::kPerRound) : 0},
                              s_.summaries);
    GroupQueries<T, kHeadDim, Shape::kHeadTiles, kWarps> queries(a_, row_.query_row, row_.kv_head);
    TeamSearch<Shape> search(s_, size_, rank_, a_.group, row_.blocks);
    Held held;
    if (scores || attends) queries.load(row_.seq, rope, held);
    if (scores) {
      search.start();
      const int32_t* pool_blocks = table() + row_.begin;
#pragma unroll 1
      for (int i = threadIdx.x; i < own; i += kThreads) {
        cp_async_4(shared_address(s_.pool_blocks + i), pool_blocks + i);
      }
    }
    float* terms = terms_of(own);
    score.score(
        staged,
        [&] {
          if (scores || attends) queries.stage(rope, staged);
        },
        terms, s_.of_warps);
    cp_async_wait<0>();
    cluster::wait();
    TeamDeal<Shape> deal(s_, size_);
    Interval interval;
    bool has_rivals = false;
    if (scores) {
      const float* own_terms = weigh(terms, own);
#pragma unroll 1
      for (int i = threadIdx.x; i < own; i += kThreads) {
        const uint32_t key =
            block_key(a_, row_.begin + i, row_.blocks, s_.pool_blocks[i],
                      own_terms + i * a_.term_pitch, s_.head_logs[threadIdx.x / 32]);
        s_.keys[i] = key;
        search.count(key);
      }
      RankKeys of_rank;  // lane l's
      const int likely = attends ? min(quota(rank_), kLikelyBytes / block_bytes()) : 0;
      interval = search.find_interval(own, row_.wanted, attends ? kMaxRivals : kMaxQuickRivals,
                                      likely, of_rank, [&](uint32_t least) {
                                        if (attends) prefetch(own, least);
                                      });
      has_rivals = !interval.is_final();
      if (has_rivals) {
        search.send_rivals(own, row_.begin, interval, of_rank, [&](int i) { return entry_of(i); });
        if (!attends) search.close(interval, of_rank);
      }
      list(choose(interval, of_rank, has_rivals && attends, deal));
    } else {
      take_all();
    }
    __syncthreads();
    if (!attends) return;
    deal.hand_on();
    if ((a_.roles & kAppend) != 0 && rank_ == size_ - 1) await_append();
    Tiles tiles{a_,
                s_,
                row_.kv_len - (row_.blocks - 1) * a_.block_size,
                deal.surplus(),
                scores ? deal.kept() : own,
                quota(rank_)};
    Attention<T, typename Shape::Attend, Tiles> attention(a_, row_.kv_head, tiles, s_.attend);
    attention.start();
    if (has_rivals) {
      search.place_rivals(interval, [&](const Rival& rival, int before) {
        const bool is_mine = deal.put_rival(before, rival.entry);
        if (is_mine && Tiles::is_last(rival.entry)) s_.has_last_block = true;
      });
      __syncthreads();
      if ((a_.roles & kAppend) != 0 && s_.has_last_block) await_append();
    }
    attend_and_merge(attention, staged);
  }

  __device__ int block_bytes() const {  // of K and V
    return 2 * a_.block_size * kHeadDim * static_cast<int>(sizeof(T));
  }

  // Brings K and V of the own blocks whose keys are from `least` on to the L2 cache.
  __device__ void prefetch(int own, uint32_t least) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const char* kv = reinterpret_cast<const char*>(pool<const T>(a_.kv, a_.append.indirect));
    const int half = block_bytes() / 2;
    const int64_t to_value = rows_to_value(a_) * kHeadDim * static_cast<int64_t>(sizeof(T));
#pragma unroll 1
    for (int base = 0; base < own; base += kThreads) {
      const int i = base + static_cast<int>(threadIdx.x);
      const bool is_likely = i < own && s_.keys[i] >= least && is_pool_block(a_, s_.pool_blocks[i]);
#pragma unroll 1
      for (uint32_t bits = __ballot_sync(0xffffffffu, is_likely); bits != 0; bits &= bits - 1) {
        const int at = i - lane + __ffs(static_cast<int>(bits)) - 1;
        const char* keys =
            kv + key_row(a_, s_.pool_blocks[at], row_.kv_head) * (kHeadDim * sizeof(T));
#pragma unroll 1
        for (int line = lane * kLineBytes; line < half; line += 32 * kLineBytes) {
          prefetch_line(keys + line);
          prefetch_line(keys + to_value + line);
        }
      }
    }
  }

  // Called by all threads of who attends to the last block.
  __device__ void await_append() const { wait(counters() + kAppendedWord, 1); }

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
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
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
      s_.head_logs[warp][head] = head < a_.group ? softmax_log(all) : -kNoScore;
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

  // The first of `count` things that are a rank's.
  __device__ int share(int count, int rank) const { return count * rank >> size_shift_; }
  // Blocks that a rank attends to.
  __device__ int quota(int rank) const {
    return rank < size_ ? share(row_.wanted, rank + 1) - share(row_.wanted, rank) : 0;
  }
  __device__ int32_t* counters() const { return row_counters(a_, static_cast<int>(row_.row(a_))); }
  __device__ const int32_t* table() const { return table_of(a_, row_.seq); }
  __device__ int32_t* selection() const { return a_.selection + row_.row(a_) * a_.max_selected; }

  __device__ void write_counts() const {
    if (a_.counts == nullptr || threadIdx.x >= a_.batch_size) return;
    const int seq = static_cast<int>(threadIdx.x);
    int query_row;
    a_.counts[seq] = selected_of(a_, seq, usable_length(a_, seq, &query_row));
  }

  // Which of the own keys are listed: from `least` on, and the first ones that equal `tie`.
  struct Choice {
    uint32_t least;
    uint32_t tie = 0xffffffffu;  // no key
    int ties = 0;
  };

  // What is taken of the own keys: all that is selected, or what is above the interval. The team
  // knows then who attends to what of it, or where it stands in the row's selection.
  __device__ Choice choose(const Interval& interval, const RankKeys& of_rank, bool only_above,
                           TeamDeal<Shape>& deal) {
    Choice choice;
    choice.least = above(interval.last);
    int selected = of_rank.above;
    if (!only_above) {
      const int before = warp_inclusive_sum<kMaxTeam>(of_rank.inside) - of_rank.inside;
      const int inside = max(min(interval.wanted - before, of_rank.inside), 0);
      selected += inside;
      if (interval.first != interval.last) {
        choice.least = interval.first;
      } else {
        choice.tie = interval.last;
        choice.ties = __shfl_sync(0xffffffffu, inside, rank_);
      }
    }
    if ((a_.roles & kAttend) != 0) {
      deal.deal(rank_, quota(static_cast<int>(threadIdx.x) % 32), selected);
    } else {
      const int before = warp_inclusive_sum<kMaxTeam>(selected) - selected;
      selected_before_ = __shfl_sync(0xffffffffu, before, rank_);
    }
    return choice;
  }

  // Gives the blocks of the chosen keys their places, in ascending order. A barrier must follow.
  __device__ void list(const Choice& choice) {
    const int own = row_.end - row_.begin;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    // A warp's keys follow one another, up to 4 times 32 at a time.
    const int steps = own <= kThreads ? 1 : own <= 2 * kThreads ? 2 : 4;
    // Numbers of keys that are taken, and in the upper half of those that tie.
    int before = 0;
#pragma unroll 1
    for (int base = 0; base < own; base += steps * kThreads) {
      const int first = base + warp * steps * 32 + lane;
      uint32_t takes = 0, ties = 0;  // a bit for each step
      int count = 0;
#pragma unroll 1
      for (int i = 0; i < steps; ++i) {
        const bool exists = first + i * 32 < own;
        const uint32_t key = exists ? s_.keys[first + i * 32] : 0;
        const bool take = exists && key >= choice.least;
        const bool tie = exists && key == choice.tie;
        count += __popc(__ballot_sync(0xffffffffu, take)) | __popc(__ballot_sync(0xffffffffu, tie))
                                                                << 16;
        takes |= (take ? 1u : 0u) << i;
        ties |= (tie ? 1u : 0u) << i;
      }
      if (base > 0) __syncthreads();
      if (lane == 0) s_.warp_sums[warp] = count;
      __syncthreads();
      int upto = before;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) {
        upto += i < warp ? s_.warp_sums[i] : 0;
        before += s_.warp_sums[i];
      }
      int taken = upto & 0xffff, tied = upto >> 16;
#pragma unroll 1
      for (int i = 0; i < steps; ++i) {
        const bool take = (takes >> i & 1) != 0, tie = (ties >> i & 1) != 0;
        const uint32_t all_takes = __ballot_sync(0xffffffffu, take);
        const uint32_t all_ties = __ballot_sync(0xffffffffu, tie);
        const uint32_t lower = (1u << lane) - 1;
        const int ties_before = min(tied + __popc(all_ties & lower), choice.ties);
        if (take || (tie && ties_before < choice.ties)) {
          put(first + i * 32, taken + __popc(all_takes & lower) + ties_before);
        }
        taken += __popc(all_takes);
        tied += __popc(all_ties);
      }
    }
  }

  // An own block that is the `place`-th of those listed, which is not behind its own place.
  __device__ void put(int at, int place) const {
    if ((a_.roles & kAttend) == 0) {
      selection()[selected_before_ + place] = row_.begin + at;
    } else {
      s_.own_entries()[place] = entry_of(at);
    }
  }
  __device__ int32_t entry_of(int at) const {
    return Tiles::entry(a_, s_.pool_blocks[at], row_.begin + at, row_.blocks);
  }

  // All blocks are selected: the own ones are this rank's part.
  __device__ void take_all() {
    const bool attends = (a_.roles & kAttend) != 0;
    const int begin = row_.begin, end = row_.end;
#pragma unroll 1
    for (int block = begin + static_cast<int>(threadIdx.x); block < end; block += kThreads) {
      if (attends) {
        s_.own_entries()[block - begin] = Tiles::entry(a_, table()[block], block, row_.blocks);
      } else {
        selection()[block] = block;
      }
    }
  }

  template <typename Attention>
  __device__ void attend_and_merge(Attention& attention, const T* staged) {
    TeamMerge<T, kHeadDim, Shape> merge(s_, size_, size_shift_, rank_, a_.group);
    attention.run(staged, [&](int head, int column, const SoftmaxState& state,
                              const float (&sum)[4]) { merge.send(head, column, state, sum); });
    merge.wait();
    // Everybody has attended to its part by now.
    if ((a_.roles & kAppend) != 0 && rank_ == size_ - 1 && threadIdx.x == 0) {
      counters()[kAppendedWord] = 0;
    }
    merge.write(static_cast<T*>(a_.out) +
                (static_cast<int64_t>(row_.query_row) * a_.q_heads + row_.kv_head * a_.group) *
                    kHeadDim);
  }

  const Args& a_;
  Shared& s_;
  const int size_;  // a power of two
  const int size_shift_;
  const int rank_;
  TeamRow row_;
  int selected_before_ = 0;  // of the row's selection, by the ranks before this one
};

}  // namespace sparse
}  // namespace trt_resa
