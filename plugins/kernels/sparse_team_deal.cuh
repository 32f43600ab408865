// Who of a team attends to what (sparse_team.cuh): each to blocks that it has selected itself, up
// to its quota; what is above goes to those that are below theirs, in a fixed order. That holds for
// what is certain when it is dealt out. Rivals, which all know by then, fill what room is left.
#pragma once

#include "cluster.cuh"
#include "sparse_plan.cuh"
#include "sparse_team_shared.cuh"

namespace trt_resa {
namespace sparse {

template <typename Shape>
class TeamDeal {
 public:
  __device__ TeamDeal(TeamShared<Shape>& shared, int size) : s_(shared), size_(size) {}

  // Deals out `selected` blocks of lane l's rank, whose quota is `quota`. `rank` is this one.
  // Called by all threads; a barrier must follow before one is handed on.
  __device__ void deal(int rank, int quota, int selected) {
    const int lane = lane_index();
    const int kept = min(selected, quota);
    const int surplus = selected - kept, room = quota - kept;
    const int surplus_upto = warp_inclusive_sum<kMaxTeam>(surplus);
    const int room_upto = warp_inclusive_sum<kMaxTeam>(room);
    const int handed_on = __shfl_sync(0xffffffffu, surplus_upto, kMaxTeam - 1);
    if (threadIdx.x < size_) s_.room_upto[lane] = room_upto;
    kept_ = __shfl_sync(0xffffffffu, kept, rank);
    surplus_ = __shfl_sync(0xffffffffu, surplus, rank);
    number_ = __shfl_sync(0xffffffffu, surplus_upto, rank) - surplus_;
    const int own_upto = __shfl_sync(0xffffffffu, room_upto, rank);
    const int own_room = __shfl_sync(0xffffffffu, room, rank);
    const int taken = max(min(handed_on - (own_upto - own_room), own_room), 0);
    if (threadIdx.x == 0) {
      cluster::arrive_expecting(s_.handed_on, taken * static_cast<int>(sizeof(int32_t)));
    }
    // Rivals follow in the same room.
    first_rival_ = max(own_upto - own_room - handed_on, 0);
    end_rival_ = max(own_upto - handed_on, 0);
    rivals_begin_ = taken;
  }

  // Of the own blocks, in order: those that are handed on, and those attended to behind them.
  __device__ int surplus() const { return surplus_; }
  __device__ int kept() const { return kept_; }

  // When the own entries stand.
  __device__ void hand_on() const {
#pragma unroll 1
    for (int i = threadIdx.x; i < surplus_; i += Shape::kThreads) {
      const int number = number_ + i;
      int to = 0, before = 0;  // who takes it, and what ranks before that take
#pragma unroll 1
      for (int half = size_ / 2; half > 0; half /= 2) {
        const int upto = s_.room_upto[to + half - 1];
        if (upto > number) continue;
        to += half;
        before = upto;
      }
      cluster::send(s_.other_entries() + number - before, s_.own_entries()[i], s_.handed_on, to);
    }
  }

  // Puts the entry of the rival that so many come before to this rank's, where it is for this one.
  __device__ void put_rival(int before, int32_t entry) const {
    if (before < first_rival_ || before >= end_rival_) return;
    s_.other_entries()[rivals_begin_ + before - first_rival_] = entry;
  }

 private:
  TeamShared<Shape>& s_;
  const int size_;
  int kept_ = 0;
  int surplus_ = 0;
  int number_ = 0;        // of the first one, among all of the team's
  int rivals_begin_ = 0;  // the first rival's entry
  int first_rival_ = 0;
  int end_rival_ = 0;
};

}  // namespace sparse
}  // namespace trt_resa
