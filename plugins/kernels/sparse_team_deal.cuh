// Who of a team attends to what (sparse_team.cuh): each to blocks that it has selected itself, up
// to its quota; what is above goes to those that are below theirs, in a fixed order.
//
// Blocks are dealt out twice: those that are certain when the first round of the search is done,
// and those that are found to be in when it ends. A rank's entries are in the order in which they
// come: own ones and handed on ones of the first deal, then those of the second.
#pragma once

#include "cluster.cuh"
#include "sparse_plan.cuh"
#include "sparse_team_shared.cuh"

namespace trt_resa {
namespace sparse {

// What a rank does with the blocks of a deal that it has selected itself.
struct Portion {
  int deal = 0;
  int surplus = 0;  // the first ones are handed on
  int number = 0;   // of the first one that is handed on, among all of the team's
  int begin = 0;    // the entry where the others go
  int kept = 0;     // and how many they are
};

template <typename Shape>
class TeamDeal {
 public:
  // `quota` is lane l's rank's.
  __device__ TeamDeal(TeamShared<Shape>& shared, int size, int rank, int quota)
      : s_(shared), size_(size), rank_(rank), room_(quota) {}

  // Deals out `selected` blocks of lane l's rank. Called by all threads, and a barrier must follow
  // before one is handed on.
  __device__ Portion deal(int selected) {
    const int rank = static_cast<int>(threadIdx.x) % 32;
    const int kept = min(selected, room_);
    const int surplus = selected - kept, room = room_ - kept;
    const int surplus_upto = warp_inclusive_sum<kMaxTeam>(surplus);
    const int room_upto = warp_inclusive_sum<kMaxTeam>(room);
    const int handed_on = __shfl_sync(0xffffffffu, surplus_upto, kMaxTeam - 1);
    const int taken = max(min(handed_on - (room_upto - room), room), 0);
    if (threadIdx.x < size_) {
      s_.room_upto[rank] = room_upto;
      s_.room_begin[rank] = filled_ + kept;
    }
    if (threadIdx.x == rank_) {
      cluster::arrive_expecting(s_.handed_on[deals_], taken * static_cast<int>(sizeof(int32_t)));
    }
    Portion own;
    own.deal = deals_++;
    own.surplus = __shfl_sync(0xffffffffu, surplus, rank_);
    own.number = __shfl_sync(0xffffffffu, surplus_upto, rank_) - own.surplus;
    own.begin = __shfl_sync(0xffffffffu, filled_, rank_);
    own.kept = __shfl_sync(0xffffffffu, kept, rank_);
    filled_ += kept + taken;
    room_ = room - taken;
    return own;
  }

  // Puts the entry of the `place`-th own block of a deal where it belongs.
  __device__ void put(const Portion& own, int place, int32_t entry) const {
    if (place >= own.surplus) {
      s_.entries()[own.begin + place - own.surplus] = entry;
      return;
    }
    const int number = own.number + place;
    int to = 0, before = 0;  // who takes it, and what ranks before that take
#pragma unroll 1
    for (int half = size_ / 2; half > 0; half /= 2) {
      const int upto = s_.room_upto[to + half - 1];
      if (upto > number) continue;
      to += half;
      before = upto;
    }
    cluster::send(s_.entries() + s_.room_begin[to] + number - before, entry, s_.handed_on[own.deal],
                  to);
  }

 private:
  TeamShared<Shape>& s_;
  const int size_;
  const int rank_;
  int deals_ = 0;
  int room_;        // lane l's rank: blocks that it may still be dealt
  int filled_ = 0;  // and has been dealt
};

}  // namespace sparse
}  // namespace trt_resa
