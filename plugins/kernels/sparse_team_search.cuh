// The search for the end of a row's selection by the thread blocks of a team (sparse_team.cuh).
//
// Rounds as in sparse_topk.cuh, but for histograms that each counts of its own keys, and sends to
// all others.
#pragma once

#include "cluster.cuh"
#include "sparse_plan.cuh"
#include "sparse_team_shared.cuh"
#include "sparse_topk.cuh"

namespace trt_resa {
namespace sparse {

template <typename Shape>
class TeamSearch {
  static constexpr int kThreads = Shape::kThreads;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kWords = kTeamBins / 2;
  static constexpr int kMerged = kBins / kTeamBins;  // bins of bin_of in one of a team's
  static_assert(kWords == kThreads);

 public:
  __device__ TeamSearch(TeamShared<Shape>& shared, int size, int rank, int blocks)
      : s_(shared), size_(size), rank_(rank), begin_(bins_begin(blocks)) {}

  // Before the first key; a barrier must follow.
  __device__ void start() {
#pragma unroll 1
    for (int i = threadIdx.x; i < kWords; i += kThreads) own_counts(0).words[i] = 0;
    if (threadIdx.x == 0) own_counts(0).above = 0;
  }
  // An own key, for the first round.
  __device__ void count(uint32_t key) { own_counts(0).add(bin_of(key, begin_) / kMerged); }

  // The last interval of the row's keys, of which `own` are this rank's, see TopK; leaves how many
  // of each rank's are above it and inside. Begins with a barrier.
  __device__ Interval find_interval(int own, int wanted) {
    Interval interval;
    interval.wanted = wanted;
    int shift = -1;
#pragma unroll 1
    for (int round = 0;; ++round) {
      exchange_counts(round);
      const int bin = find_bin(s_.counts(round), interval);
      if (shift < 0) {
        interval.first = interval_of_bin(bin * kMerged, begin_).first;
        interval.last = interval_of_bin(bin * kMerged + kMerged - 1, begin_).last;
      } else {
        interval.first += static_cast<uint32_t>(bin) << shift;
        interval.last = interval.first + min(interval.last - interval.first, (1u << shift) - 1);
      }
      if (interval.is_final()) {
        count_ranks(round, bin);
        return interval;
      }
      // The next round's bins, and how many of the own keys are above them.
      TeamCounts& next = own_counts(round + 1);
      shift = interval.shift(kTeamBins);
      int above = 0;
#pragma unroll 1
      for (int base = 0; base < own; base += kThreads) {
        const int i = base + static_cast<int>(threadIdx.x);
        const uint32_t key = i < own ? s_.keys[i] : 0;
        above += __popc(__ballot_sync(0xffffffffu, key > interval.last));
        if (interval.contains(key) && i < own) {
          next.add(static_cast<int>((key - interval.first) >> shift));
        }
      }
      if (threadIdx.x % 32 == 0) atomicAdd(&next.above, above);
    }
  }

 private:
  // The own counts of a round, where the others have them too.
  __device__ TeamCounts& own_counts(int round) const { return s_.counts(round)[rank_]; }

  // Sends the own counts to all others, and waits for theirs. Begins with a barrier.
  __device__ void exchange_counts(int round) {
    constexpr int kBytes = static_cast<int>(sizeof(TeamCounts));
    uint64_t& counted = s_.counted[round % 2];
    cluster::fence_before_send();
    __syncthreads();
    if (threadIdx.x == 0) cluster::arrive_expecting(counted, (size_ - 1) * kBytes);
    // Lanes would send one after another, warps do so at once.
    if (threadIdx.x % 32 == 0) {
#pragma unroll 1
      for (int peer = static_cast<int>(threadIdx.x) / 32; peer < size_; peer += kWarps) {
        if (peer != rank_) cluster::send_bytes(&own_counts(round), kBytes, counted, peer);
      }
    }
    cluster::wait_for(counted, round / 2 % 2);
    // All others have what was sent in the round before: they have sent something after it.
    TeamCounts& next = own_counts(round + 1);
    next.words[threadIdx.x] = 0;
    if (threadIdx.x == 0) next.above = 0;
  }

  // Finds the bin that holds the wanted-th largest key, and sets what is inside and wanted of it.
  __device__ int find_bin(const TeamCounts* counts, Interval& interval) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int word = kWords - 1 - static_cast<int>(threadIdx.x);  // from the largest keys on
    int low = 0, high = 0;
#pragma unroll 1
    for (int rank = 0; rank < size_; rank += kMinTeam) {
      uint32_t both = 0;
#pragma unroll
      for (int i = 0; i < kMinTeam; ++i) both += counts[rank + i].words[word];
      low += static_cast<int>(both & 0xffff);
      high += static_cast<int>(both >> 16);
    }
    s_.sums[threadIdx.x] = make_int2(low, high);
    const int all = warp_sum(low + high);
    if (lane == 0) s_.warp_sums[warp] = all;
    __syncthreads();
    // The first warp whose words reach it, then the first word.
    int holder = 0, before = 0, upto = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      upto += s_.warp_sums[i];
      if (upto < interval.wanted) {
        holder = i + 1;
        before = upto;
      }
    }
    const int2 sums = s_.sums[holder * 32 + lane];
    upto = before + warp_inclusive_sum(sums.x + sums.y);
    const int wanted = interval.wanted - (upto - sums.x - sums.y);  // of this word
    const int source = __ffs(__ballot_sync(0xffffffffu, upto >= interval.wanted)) - 1;
    const bool is_high = wanted <= sums.y;
    interval.inside = __shfl_sync(0xffffffffu, is_high ? sums.y : sums.x, source);
    interval.wanted = __shfl_sync(0xffffffffu, is_high ? wanted : wanted - sums.y, source);
    const int bin = 2 * (kWords - 1 - holder * 32 - lane) + (is_high ? 1 : 0);
    return __shfl_sync(0xffffffffu, bin, source);
  }

  // Of each rank: its keys above the bin of the last round, and in it.
  __device__ void count_ranks(int round, int bin) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int word = bin / 2;
#pragma unroll 2
    for (int rank = static_cast<int>(threadIdx.x) / 32; rank < size_; rank += kWarps) {
      const uint32_t* counts = s_.counts(round)[rank].words;
      uint32_t both = 0;  // of the words above
#pragma unroll
      for (int i = 0; i < kWords; i += 128) {
        const int first = i + 4 * lane;
        const uint4 four = *reinterpret_cast<const uint4*>(counts + first);
        both += (first > word ? four.x : 0) + (first + 1 > word ? four.y : 0) +
                (first + 2 > word ? four.z : 0) + (first + 3 > word ? four.w : 0);
      }
      both = static_cast<uint32_t>(warp_sum(static_cast<int>(both)));
      const int low = static_cast<int>(counts[word] & 0xffff);
      const int high = static_cast<int>(counts[word] >> 16);
      if (lane == 0) {
        s_.all_above[rank] = s_.counts(round)[rank].above + static_cast<int>(both & 0xffff) +
                             static_cast<int>(both >> 16) + (bin % 2 == 0 ? high : 0);
        s_.inside[rank] = bin % 2 == 0 ? low : high;
      }
    }
  }

  TeamShared<Shape>& s_;
  const int size_;
  const int rank_;
  const uint32_t begin_;  // of the bins
};

}  // namespace sparse
}  // namespace trt_resa
