// The search for the end of a row's selection by the thread blocks of a team (sparse_team.cuh).
//
// Rounds as in sparse_topk.cuh, but for histograms that each counts of its own keys, adds up from
// the largest on, and sends to all others. What the first one leaves is mostly so little that all
// send one another those keys.
#pragma once

#include "cluster.cuh"
#include "sparse_keys.cuh"
#include "sparse_plan.cuh"
#include "sparse_team_shared.cuh"
#include "sparse_topk.cuh"

namespace trt_resa {
namespace sparse {

// Where the bins of the first round lie, around the score that the blocks of a row would have if
// they were equal: 128 per power of two from half of it to twice, 16 per power of two over 13 of
// them below, and over three above. The first one and the last but one hold all that is beyond, the
// last one what is forced, so that it is never among rivals.
class FirstBins {
  static constexpr int kFineShift = 23 - 7, kCoarseShift = 23 - 4;
  static constexpr uint32_t kLow = 13u << 23;                       // keys of the coarse bins below
  static constexpr uint32_t kHigh = kLow + (2u << 23);              // and of the fine ones
  static constexpr int kFine = kLow >> kCoarseShift;                // the first one of these
  static constexpr int kAbove = kFine + ((2 << 23) >> kFineShift);  // and of those above
  static_assert(kAbove + (3 << 23 >> kCoarseShift) == kTeamBins);

 public:
  // Of rows of `blocks` and as many heads as a group has.
  __device__ FirstBins(int group, int blocks) {
    begin_ = __float_as_uint(__fdividef(static_cast<float>(group), static_cast<float>(blocks))) -
             (14u << 23);
  }

  __device__ int of(uint32_t key) const {
    if (key < begin_) return 0;
    const uint32_t from = key - begin_;
    const int bin = from < kLow    ? static_cast<int>(from >> kCoarseShift)
                    : from < kHigh ? kFine + static_cast<int>((from - kLow) >> kFineShift)
                                   : kAbove + static_cast<int>((from - kHigh) >> kCoarseShift);
    return min(bin, key == kForcedKey ? kTeamBins - 1 : kTeamBins - 2);
  }

  __device__ uint32_t first_key(int bin) const {
    if (bin == 0) return 0;
    if (bin == kTeamBins - 1) return kForcedKey;
    return begin_ + (bin < kFine ? static_cast<uint32_t>(bin) << kCoarseShift
                     : bin < kAbove
                         ? kLow + (static_cast<uint32_t>(bin - kFine) << kFineShift)
                         : kHigh + (static_cast<uint32_t>(bin - kAbove) << kCoarseShift));
  }
  __device__ uint32_t last_key(int bin) const {
    return bin == kTeamBins - 1 ? 0xffffffffu : first_key(bin + 1) - 1;
  }

 private:
  uint32_t begin_;
};

template <typename Shape>
class TeamSearch {
  static constexpr int kThreads = Shape::kThreads;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kWords = kTeamBins / 2;
  static_assert(kWords == kThreads && kMaxRivals == kThreads);

 public:
  // For a row of `blocks`.
  __device__ TeamSearch(TeamShared<Shape>& shared, int size, int rank, int group, int blocks)
      : s_(shared), size_(size), rank_(rank), bins_(group, blocks) {}

  // Before the first key; a barrier must follow.
  static __device__ void start(TeamShared<Shape>& shared, int rank) {
    clear(shared.counts(0)[rank]);
    if (threadIdx.x == 0) {
      shared.likely_bin = kTeamBins - 1;
      shared.own_rivals = 0;
    }
  }
  // An own key, for the first round.
  __device__ void count(uint32_t key) { own_counts(0).add(bins_.of(key)); }

  // The last interval of the row's keys, see TopK, or one of at most `most_rivals` keys in which
  // the selection ends; `of_rank` is set to what lane l's rank has of it. `own` are this rank's
  // keys. `meanwhile` is called with a key that less than `likely` of these reach. Begins with a
  // barrier.
  template <typename Meanwhile>
  __device__ Interval find_interval(int own, int wanted, int most_rivals, int likely,
                                    RankKeys& of_rank, Meanwhile&& meanwhile) {
    Interval interval;
    int shift = 0;
#pragma unroll 1
    for (int round = 0;; ++round) {
      add_up(own_counts(round), likely);
      send_counts(round);
      if (round == 0) meanwhile(above(bins_.last_key(s_.likely_bin)));
      receive_counts(round);
      const int bin = find_bin(s_.counts(round), wanted, of_rank);
      if (round == 0) {
        interval.first = bins_.first_key(bin);
        interval.last = bins_.last_key(bin);
      } else {
        interval.first += static_cast<uint32_t>(bin) << shift;
        interval.last = interval.first + min(interval.last - interval.first, (1u << shift) - 1);
      }
      interval.inside = warp_sum(of_rank.inside);
      interval.wanted = wanted - warp_sum(of_rank.above);
      if (interval.is_final() || interval.inside <= most_rivals) return interval;
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
      if (lane_index() == 0) atomicAdd(&next.words[kWords], static_cast<uint32_t>(above));
    }
  }

  // Sends the own keys inside to all: rivals for what is wanted of the interval. `entry_of` is
  // called with the number of an own key, `begin` is the first one's block. A barrier must follow.
  template <typename EntryOf>
  __device__ void send_rivals(int own, int begin, const Interval& interval, const RankKeys& of_rank,
                              EntryOf&& entry_of) {
    const int upto = warp_inclusive_sum<kMaxTeam>(of_rank.inside);
    const int count = __shfl_sync(0xffffffffu, of_rank.inside, rank_);
    Rival* rivals = s_.rivals + __shfl_sync(0xffffffffu, upto, rank_) - count;
    if (threadIdx.x == 0) {
      cluster::arrive_expecting(s_.rivals_sent,
                                (interval.inside - count) * static_cast<int>(sizeof(Rival)));
    }
    const int lane = lane_index();
    const int peer = lane % kMaxTeam;
#pragma unroll 1
    for (int base = static_cast<int>(threadIdx.x) - lane; base < own; base += kThreads) {
      const int i = base + lane;
      const uint32_t key = i < own ? s_.keys[i] : 0;
      const bool is_rival = i < own && interval.contains(key);
      const uint32_t all = __ballot_sync(0xffffffffu, is_rival);
      if (all == 0) continue;
      int at = lane == 0 ? atomicAdd(&s_.own_rivals, __popc(all)) : 0;
      at = __shfl_sync(0xffffffffu, at, 0);
      if (is_rival) {
        Rival& rival = rivals[at + __popc(all & ((1u << lane) - 1))];
        rival.order = static_cast<uint64_t>(key) << 32 | ~static_cast<uint32_t>(begin + i);
        rival.entry = entry_of(i);
        rival.rank = rank_;
      }
      __syncwarp();
      // Half a warp sends one to all others.
      const int end = at + __popc(all);
#pragma unroll 1
      for (int j = at + lane / kMaxTeam; j < end && peer < size_ && peer != rank_; j += 2) {
        const auto& words = reinterpret_cast<const uint4&>(rivals[j]);
        cluster::send(reinterpret_cast<uint4*>(rivals + j), words, s_.rivals_sent, peer);
      }
    }
  }

  // Calls `use` with each rival that is taken, by a thread each, and how many are before it. All
  // threads have met since they sent theirs.
  template <typename Use>
  __device__ void place_rivals(const Interval& interval, Use&& use) {
    const int count = interval.inside;
    // So many threads for each, a power of two of a warp's lanes.
    const int shift = min(__clz(count - 1) - __clz(kThreads - 1), 5);
    const int own = static_cast<int>(threadIdx.x) >> shift;
    const int first = static_cast<int>(threadIdx.x) & ((1 << shift) - 1);
    cluster::wait_for(s_.rivals_sent, 0);
    const Rival rival = s_.rivals[min(own, count - 1)];
    int before = 0;
#pragma unroll 4
    for (int i = first; i < count; i += 1 << shift) {
      before += s_.rivals[i].order > rival.order ? 1 : 0;
    }
#pragma unroll 1
    for (int mask = 1 << shift >> 1; mask > 0; mask /= 2) {
      before += __shfl_xor_sync(0xffffffffu, before, mask);
    }
    if (own < count && first == 0 && before < interval.wanted) use(rival, before);
  }

 private:
  // The own counts of a round, where the others have them too.
  __device__ TeamCounts& own_counts(int round) const { return s_.counts(round)[rank_]; }

  static __device__ void clear(TeamCounts& counts) {
    counts.words[threadIdx.x] = 0;
    if (threadIdx.x == 0) counts.words[kWords] = 0;
  }

  // Adds to each count those of all larger keys; leaves the bin of the `likely`-th largest one, if
  // there are so many. Begins with a barrier; another one must follow.
  __device__ void add_up(TeamCounts& counts, int likely) {
    const int warp = warp_index(), lane = lane_index();
    const int word = kWords - 1 - static_cast<int>(threadIdx.x);  // from the largest keys on
    __syncthreads();
    const uint32_t both = counts.words[word];
    const int low = static_cast<int>(both & 0xffff);
    int upto = warp_inclusive_sum(low + static_cast<int>(both >> 16));
    if (lane == 31) s_.warp_sums[warp] = upto;
    __syncthreads();
    upto += static_cast<int>(counts.words[kWords]);
#pragma unroll
    for (int i = 0; i < kWarps; ++i) upto += i < warp ? s_.warp_sums[i] : 0;
    counts.words[word] = static_cast<uint32_t>(upto | (upto - low) << 16);
    const int high = static_cast<int>(both >> 16);
    if (upto >= likely && upto - low - high < likely) {
      s_.likely_bin = 2 * word + (upto - low >= likely ? 1 : 0);
    }
  }

  // Sends the own counts to all others. Begins with a barrier.
  __device__ void send_counts(int round) {
    constexpr int kBytes = static_cast<int>(sizeof(TeamCounts));
    cluster::fence_before_send();
    __syncthreads();
    uint64_t& counted = s_.counted[round % 2];
    if (threadIdx.x == 0) cluster::arrive_expecting(counted, (size_ - 1) * kBytes);
    // Lanes would send one after another, warps do so at once.
    if (lane_index() == 0) {
#pragma unroll 1
      for (int peer = warp_index(); peer < size_; peer += kWarps) {
        if (peer != rank_) cluster::send_bytes(&own_counts(round), kBytes, counted, peer);
      }
    }
  }
  __device__ void receive_counts(int round) {
    cluster::wait_for(s_.counted[round % 2], round / 2 % 2);
    // All others have what was sent in the round before: they have sent something after it.
    clear(own_counts(round + 1));
  }

  // Finds the bin that holds the wanted-th largest key, and what of each rank's is above and in it.
  __device__ int find_bin(const TeamCounts* counts, int wanted, RankKeys& of_rank) {
    const int rank = lane_index();
    int upto = 0;  // to the lower one of the thread's bins
#pragma unroll
    for (int first = 0; first < kMaxTeam; first += kMinTeam) {
      if (first == size_) break;
#pragma unroll
      for (int i = 0; i < kMinTeam; ++i) {
        upto += static_cast<int>(counts[first + i].words[threadIdx.x] & 0xffff);
      }
    }
    // Those that reach it are the first ones, since counts grow towards smaller keys.
    const int word = __syncthreads_count(upto >= wanted) - 1;
    const bool exists = rank < size_;
    const uint32_t both = exists ? counts[rank].words[word] : 0;
    const int next = exists ? static_cast<int>(counts[rank].words[word + 1] & 0xffff) : 0;
    const int low = static_cast<int>(both & 0xffff), high = static_cast<int>(both >> 16);
    const bool is_high = warp_sum(high) >= wanted;
    of_rank.above = is_high ? next : high;
    of_rank.inside = (is_high ? high : low) - of_rank.above;
    return 2 * word + (is_high ? 1 : 0);
  }

  TeamShared<Shape>& s_;
  const int size_;
  const int rank_;
  const FirstBins bins_;
};

}  // namespace sparse
}  // namespace trt_resa
