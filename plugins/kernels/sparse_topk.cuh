// Where the exact top-k of one row's scores ends, found by one thread block.
//
// A key is a score as an unsigned integer of the same order, a rank a key with its block, so that no
// two are equal: of equal keys the lower block comes first. An interval of ranks is known to hold
// the k-th largest: what lies above it is taken, what lies below is not. It starts as the bin of the
// row's histogram, which the scoring thread blocks have counted, and shrinks by a factor of kBins
// with each histogram of what lies inside, until all of the inside is taken. The result is a
// function of the keys alone.
#pragma once

#include "sparse_args.h"
#include "sparse_plan.cuh"

namespace trt_resa {
namespace sparse {

constexpr uint32_t kForcedKey = 0xffffffffu;
constexpr uint32_t kNanKey = 0xfffffffeu;  // NaN comes before every number, as in torch.sort

__device__ __forceinline__ uint32_t ordered_key(float score) {
  if (isnan(score)) return kNanKey;
  const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 becomes +0
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

constexpr int kBlockBits = 16;
constexpr uint64_t kLastRank = (uint64_t{0xffffffffu} << kBlockBits) | 0xffffu;
static_assert(kMaxBlocks == 1 << kBlockBits);

__device__ __forceinline__ uint64_t rank_of(uint32_t key, int block) {
  return (uint64_t{key} << kBlockBits) | static_cast<uint32_t>(kMaxBlocks - 1 - block);
}

// Bins of the first histogram: 64 per power of two for 2 <= |score| < 2^17, the outermost and the
// innermost ones for the rest. Which scores share a bin changes the time only.
constexpr int kBinShift = 17;
constexpr int kHalfBins = kBins / 2;
constexpr uint32_t kFirstBin = ((127u + 1u) << 23) >> kBinShift;
static_assert(kHalfBins == 16 * 64);

__device__ __forceinline__ int bin_of(uint32_t key) {
  const bool positive = (key >> 31) != 0;
  const uint32_t magnitude = (positive ? key ^ 0x80000000u : ~key & 0x7fffffffu) >> kBinShift;
  const int step =
      magnitude <= kFirstBin ? 0 : min(static_cast<int>(magnitude - kFirstBin), kHalfBins - 1);
  return positive ? kHalfBins + step : kHalfBins - 1 - step;
}

// Where a bin lies in the row's histogram: neighbours in different lines of 128 bytes, since
// atomics on one line wait for one another.
__device__ __forceinline__ int bin_slot(int bin) {
  constexpr int kLineWords = 32;
  return bin % (kBins / kLineWords) * kLineWords + bin / (kBins / kLineWords);
}

struct Interval {
  uint64_t first;  // smallest and largest rank inside
  uint64_t last;
  int inside;  // ranks inside
  int wanted;  // of them to be taken, at least 1

  __device__ bool contains(uint64_t rank) const { return rank - first <= last - first; }
  // Bits by which a rank's distance from `first` is shifted to number it among kBins bins.
  __device__ int shift() const {
    constexpr int kBinBits = 11;
    static_assert(kBins == 1 << kBinBits);
    return max(64 - __clzll(static_cast<long long>(last - first)) - kBinBits, 0);
  }
};

__device__ inline void set_to_bin(Interval& interval, int bin) {
  const int step = bin >= kHalfBins ? bin - kHalfBins : kHalfBins - 1 - bin;
  // Magnitudes [begin, end] of this step.
  const uint32_t begin = step == 0 ? 0u : (kFirstBin + step) << kBinShift;
  const uint32_t end =
      step == kHalfBins - 1 ? 0x7fffffffu : ((kFirstBin + step + 1) << kBinShift) - 1;
  const uint32_t first = bin >= kHalfBins ? begin | 0x80000000u : ~end & 0x7fffffffu;
  const uint32_t last = bin >= kHalfBins ? end | 0x80000000u : ~begin & 0x7fffffffu;
  interval.first = rank_of(first, kMaxBlocks - 1);
  interval.last = rank_of(last, 0);
}

// Loops stay rolled: this runs once per item, and instructions are what it takes, also to be
// fetched.
template <int kThreads, int kListed>
struct TopK {
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kBinsPerThread = kBins / kThreads;
  static constexpr int kStep = 128;    // keys that a warp reads at once: four per lane
  static constexpr int kBatch = 4;     // steps that are on their way together

  uint64_t listed[kListed];  // ranks inside the interval, where there are no more
  int num_listed;
  int warp_sums[kWarps];
  int found_bin;
  int found_inside;
  int found_wanted;

  // Sum of what the threads before this one give. All call it; a barrier must follow before the
  // next call.
  __device__ int sum_before(int mine) {
    const int warp = threadIdx.x / 32;
    const int upto = warp_inclusive_sum(mine);
    if (threadIdx.x % 32 == 31) warp_sums[warp] = upto;
    __syncthreads();
    int before = upto - mine;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) before += i < warp ? warp_sums[i] : 0;
    return before;
  }

  // Finds the bin that holds the wanted-th largest, counted from the last bin.
  __device__ void find_bin(const uint32_t (&histogram)[kBins], int wanted) {
    const int top = kBins - 1 - static_cast<int>(threadIdx.x) * kBinsPerThread;
    int inside[kBinsPerThread], sum = 0;
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      inside[i] = static_cast<int>(histogram[top - i]);
      sum += inside[i];
    }
    int before = sum_before(sum);
    if (before < wanted && wanted <= before + sum) {
#pragma unroll
      for (int i = 0; i < kBinsPerThread; ++i) {
        if (before < wanted && wanted <= before + inside[i]) {
          found_bin = top - i;
          found_inside = inside[i];
          found_wanted = wanted - before;
        }
        before += inside[i];
      }
    }
    __syncthreads();
  }

  // Calls `use` with the block of each key of the interval's keys, by all threads together.
  template <typename Use>
  static __device__ void for_each_inside(const uint32_t* keys, int blocks,
                                         const Interval& interval, Use&& use) {
    const auto least = static_cast<uint32_t>(interval.first >> kBlockBits);
    const auto range = static_cast<uint32_t>(interval.last >> kBlockBits) - least;
#pragma unroll 1
    for (int base = static_cast<int>(threadIdx.x) * 4; base < blocks;
         base += kBatch * kThreads * 4) {
      uint4 fours[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int block = base + i * kThreads * 4;
        fours[i] = make_uint4(0, 0, 0, 0);
        if (block < blocks) fours[i] = *reinterpret_cast<const uint4*>(keys + block);
      }
      uint32_t bits = 0;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const uint32_t four[4] = {fours[i].x, fours[i].y, fours[i].z, fours[i].w};
        const int present = blocks - (base + i * kThreads * 4);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          bits |= (four[j] - least <= range && j < present ? 1u : 0u) << (4 * i + j);
        }
      }
#pragma unroll 1
      for (; bits != 0; bits &= bits - 1) {
        const int bit = __ffs(static_cast<int>(bits)) - 1;
        use(base + bit / 4 * (kThreads * 4) + bit % 4);
      }
    }
  }

  // The first interval. `counted` is the keys' histogram by bin_of, in the order of bin_slot,
  // `histogram` scratch; `meanwhile` is called while it is on its way. All threads call this and the
  // following; 1 <= wanted < number of keys.
  template <typename Meanwhile>
  __device__ Interval start(const int32_t* counted, int wanted, uint32_t (&histogram)[kBins],
                            Meanwhile&& meanwhile) {
    int32_t counts[kBinsPerThread];
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      counts[i] = counted[bin_slot(i * kThreads + static_cast<int>(threadIdx.x))];
    }
    if (threadIdx.x == 0) num_listed = 0;
    meanwhile();
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      histogram[i * kThreads + threadIdx.x] = static_cast<uint32_t>(counts[i]);
    }
    __syncthreads();
    find_bin(histogram, wanted);
    Interval interval;
    set_to_bin(interval, found_bin);
    interval.inside = found_inside;
    interval.wanted = found_wanted;
    return interval;
  }

  // Lists a rank inside the interval that `start` has found, where there is room.
  __device__ void add(uint64_t rank) {
    const int at = atomicAdd(&num_listed, 1);
    if (at < kListed) listed[at] = rank;
  }

  // The least rank that is taken. Where not all of the interval has been added, the keys are read,
  // which are aligned to 16 bytes and have room up to a multiple of four. A barrier must come before.
  __device__ uint64_t least(const uint32_t* keys, int blocks, Interval interval,
                            uint32_t (&histogram)[kBins]) {
    bool all_listed = num_listed == interval.inside && num_listed <= kListed;
#pragma unroll 1
    while (interval.inside != interval.wanted) {
      __syncthreads();  // the histogram and the number of what is listed have been read
#pragma unroll 1
      for (int i = threadIdx.x; i < kBins; i += kThreads) histogram[i] = 0;
      if (!all_listed && threadIdx.x == 0) num_listed = 0;
      __syncthreads();
      const int shift = interval.shift();
      if (all_listed) {
#pragma unroll 1
        for (int i = threadIdx.x; i < num_listed; i += kThreads) {
          const uint64_t rank = listed[i];
          if (interval.contains(rank)) atomicAdd(&histogram[(rank - interval.first) >> shift], 1u);
        }
      } else {
        for_each_inside(keys, blocks, interval, [&](int block) {
          const uint64_t rank = rank_of(keys[block], block);
          if (!interval.contains(rank)) return;
          atomicAdd(&histogram[(rank - interval.first) >> shift], 1u);
          add(rank);
        });
      }
      __syncthreads();
      all_listed = all_listed || num_listed <= kListed;
      find_bin(histogram, interval.wanted);
      interval.first += static_cast<uint64_t>(found_bin) << shift;
      interval.last = interval.first + min(interval.last - interval.first,
                                           (uint64_t{1} << shift) - 1);
      interval.inside = found_inside;
      interval.wanted = found_wanted;
    }
    return interval.first;
  }

  // Blocks whose rank is `least` or more, in ascending order. Each warp has an equal share of the
  // steps of 128 keys.
  __device__ void write(const uint32_t* keys, int blocks, uint64_t least, int32_t* selection) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int steps = div_up(div_up(blocks, kStep), kWarps);
    int place = 0;
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
      int taken = 0;  // in the first pass by this lane, in the second by the warp
#pragma unroll 2
      for (int i = 0; i < steps; ++i) {
        const int block = (warp * steps + i) * kStep + lane * 4;
        uint4 keys4 = make_uint4(0, 0, 0, 0);
        if (block < blocks) keys4 = *reinterpret_cast<const uint4*>(keys + block);
        const uint32_t four[4] = {keys4.x, keys4.y, keys4.z, keys4.w};
        uint32_t bits = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const bool takes = block + j < blocks && rank_of(four[j], block + j) >= least;
          bits |= (takes ? 1u : 0u) << j;
        }
        if (pass == 0) {
          taken += __popc(bits);
          continue;
        }
        const int upto = warp_inclusive_sum(__popc(bits));
        int at = place + taken + upto - __popc(bits);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if ((bits >> j & 1) != 0) selection[at++] = block + j;
        }
        taken += __shfl_sync(0xffffffffu, upto, 31);
      }
      if (pass == 0) place = __shfl_sync(0xffffffffu, sum_before(taken), 0);
    }
  }
};

}  // namespace sparse
}  // namespace trt_resa
