// What of a row's selection each of a team lists: the entries of what it attends to, or the part of
// the selection that its own blocks are (sparse_team.cuh).
#pragma once

#include "sparse_keys.cuh"
#include "sparse_team_deal.cuh"
#include "sparse_team_search.cuh"
#include "sparse_team_shared.cuh"

namespace trt_resa {
namespace sparse {

template <typename Shape>
class TeamList {
  using Tiles = TeamTiles<TeamShared<Shape>>;
  static constexpr int kThreads = Shape::kThreads;
  static constexpr int kWarps = kThreads / 32;

 public:
  __device__ TeamList(const Args& a, TeamShared<Shape>& shared, const TeamRow& row, int size,
                      int size_shift, int rank)
      : a_(a),
        s_(shared),
        row_(row),
        size_shift_(size_shift),
        rank_(rank),
        attends_((a.roles & kAttend) != 0),
        deal_(shared, size) {}

  // Who attends to what, when it has been chosen.
  __device__ TeamDeal<Shape>& deal() { return deal_; }

  // Chooses what is selected of the own keys, or, of an interval that `has_rivals`, what is above
  // it. The team knows then who attends to what of it, or where it stands in the row's selection.
  __device__ void choose(const Interval& interval, const RankKeys& of_rank, bool has_rivals) {
    least_ = above(interval.last);
    int selected = of_rank.above;
    if (!has_rivals) {
      const int before = warp_inclusive_sum<kMaxTeam>(of_rank.inside) - of_rank.inside;
      const int inside = max(min(interval.wanted - before, of_rank.inside), 0);
      selected += inside;
      if (interval.first != interval.last) {
        least_ = interval.first;
      } else {
        take_ties(interval.last, __shfl_sync(0xffffffffu, inside, rank_));
      }
    }
    if (attends_) {
      const int rank = lane_index();
      deal_.deal(rank_, rank < 1 << size_shift_ ? row_.quota(rank, size_shift_) : 0, selected);
    } else {
      const int before = warp_inclusive_sum<kMaxTeam>(selected) - selected;
      selected_before_ = __shfl_sync(0xffffffffu, before, rank_);
    }
  }

  // Where blocks are only selected: the own ones of the rivals that are taken are chosen too.
  __device__ void take_rivals(TeamSearch<Shape>& search, const Interval& interval) {
    bool comes_before = false;  // one of another rank
    __syncthreads();
    search.place_rivals(interval, [&](const Rival& rival, int) {
      comes_before = rival.rank < rank_;
      if (rival.rank == rank_) s_.keys[rival.block() - row_.begin] = kForcedKey;
    });
    selected_before_ += __syncthreads_count(comes_before);
  }

  // Gives the chosen blocks their places, in ascending order. A barrier must follow.
  __device__ void write() {
    const int own = row_.end - row_.begin;
    // A warp's keys follow one another, up to 4 times 32 at a time.
    constexpr int kSteps = 4;
    const int steps = own <= kThreads ? 1 : own <= 2 * kThreads ? 2 : kSteps;
    int before = 0;  // blocks that are chosen
#pragma unroll 1
    for (int base = 0; base < own; base += steps * kThreads) {
      const int first = base + warp_index() * steps * 32 + lane_index();
      uint32_t chosen[kSteps];  // a bit for each lane
      int count = 0;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        if (i == steps) break;
        const int at = first + i * 32;
        chosen[i] = __ballot_sync(0xffffffffu, at < own && s_.keys[at] >= least_);
        count += __popc(chosen[i]);
      }
      if (base > 0) __syncthreads();
      if (lane_index() == 0) s_.warp_sums[warp_index()] = count;
      __syncthreads();
      int place = before;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) {
        place += i < warp_index() ? s_.warp_sums[i] : 0;
        before += s_.warp_sums[i];
      }
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        if (i == steps) break;
        if ((chosen[i] >> lane_index() & 1) != 0) {
          put(first + i * 32, place + __popc(chosen[i] & lower_lanes()));
        }
        place += __popc(chosen[i]);
      }
    }
  }

  // The same where all blocks are selected, and each attends to its own ones.
  __device__ void write_all(const int32_t* table) const {
    const int begin = row_.begin, end = row_.end;
#pragma unroll 1
    for (int block = begin + static_cast<int>(threadIdx.x); block < end; block += kThreads) {
      if (attends_) {
        s_.own_entries()[block - begin] = Tiles::entry(a_, table[block], block, row_.blocks);
      } else {
        selection()[block] = block;
      }
    }
  }

  // Of an own block.
  __device__ int32_t entry_of(int at) const {
    return Tiles::entry(a_, s_.pool_blocks[at], row_.begin + at, row_.blocks);
  }

 private:
  static __device__ uint32_t lower_lanes() { return (1u << lane_index()) - 1; }

  // Chooses the first own keys that equal `tie`, so many. Begins and ends with a barrier where
  // there are any.
  __device__ void take_ties(uint32_t tie, int count) {
    if (count == 0) return;
    __syncthreads();
    const int own = row_.end - row_.begin;
    int before = 0;
#pragma unroll 1
    for (int i = lane_index(); warp_index() == 0 && before < count; i += 32) {
      const bool ties = i < own && s_.keys[i] == tie;
      const uint32_t all = __ballot_sync(0xffffffffu, ties);
      if (ties && before + __popc(all & lower_lanes()) < count) s_.keys[i] = kForcedKey;
      before += __popc(all);
    }
    __syncthreads();
  }

  // An own block that is the `place`-th of those listed, which is not behind its own place.
  __device__ void put(int at, int place) const {
    if (attends_) {
      s_.own_entries()[place] = entry_of(at);
    } else {
      selection()[selected_before_ + place] = row_.begin + at;
    }
  }
  __device__ int32_t* selection() const { return a_.selection + row_.row(a_) * a_.max_selected; }

  const Args& a_;
  TeamShared<Shape>& s_;
  const TeamRow& row_;
  const int size_shift_;
  const int rank_;
  const bool attends_;
  TeamDeal<Shape> deal_;
  uint32_t least_ = 0;       // key that is chosen
  int selected_before_ = 0;  // of the row's selection, by the ranks before this one
};

}  // namespace sparse
}  // namespace trt_resa
