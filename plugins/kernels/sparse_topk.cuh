// The exact top-k of one row's keys by one thread block, in ascending order of blocks.
//
// A key is a score as an unsigned integer of the same order. An interval of keys is known to hold
// the k-th largest: keys above it are in, keys below are out. It starts as the bin of the row's
// histogram, which the scoring thread blocks have counted, and shrinks by a factor of kBins with
// each histogram of what lies inside, until all of the inside is taken or only equal keys are left,
// of which the first blocks are taken. The result is a function of the keys alone.
#pragma once

#include "mma.cuh"
#include "sparse_args.h"
#include "sparse_plan.cuh"

namespace trt_resa {
namespace sparse {

constexpr uint32_t kForcedKey = 0xfffffffeu;  // one key is above it, see TopK::write
constexpr uint32_t kNanKey = 0xfffffffdu;     // NaN comes before every number, as in torch.sort

__device__ __forceinline__ uint32_t ordered_key(float score) {
  if (isnan(score)) return kNanKey;
  const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 becomes +0
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

// Bins of the first histogram: 64 per power of two for 2 <= |score| < 2^9, the outermost and the
// innermost ones for the rest. Which scores share a bin changes the time only.
constexpr int kBinShift = 17;
constexpr int kHalfBins = kBins / 2;
constexpr uint32_t kFirstBin = ((127u + 1u) << 23) >> kBinShift;
static_assert(kHalfBins == 8 * 64);

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
  uint32_t first;  // smallest and largest key inside
  uint32_t last;
  int inside;  // keys inside
  int wanted;  // of them to be taken, at least 1

  __device__ bool contains(uint32_t key) const { return key >= first && key <= last; }
  __device__ bool is_final() const { return inside == wanted || first == last; }
  // Bits by which a key's distance from `first` is shifted to number it among kBins bins.
  __device__ int shift() const {
    constexpr int kBinBits = 10;
    static_assert(kBins == 1 << kBinBits);
    return max(32 - __clz(static_cast<int>(last - first)) - kBinBits, 0);
  }
};

__device__ inline Interval interval_of_bin(int bin) {
  const int step = bin >= kHalfBins ? bin - kHalfBins : kHalfBins - 1 - bin;
  // Magnitudes [begin, end] of this step.
  const uint32_t begin = step == 0 ? 0u : (kFirstBin + step) << kBinShift;
  const uint32_t end =
      step == kHalfBins - 1 ? 0x7fffffffu : ((kFirstBin + step + 1) << kBinShift) - 1;
  Interval interval;
  interval.first = bin >= kHalfBins ? begin | 0x80000000u : ~end & 0x7fffffffu;
  interval.last = bin >= kHalfBins ? end | 0x80000000u : ~begin & 0x7fffffffu;
  return interval;
}

// Keys are taken in steps of 128, four per lane of a warp; the numbers of what is taken in each
// step say where its blocks go. Loops stay rolled: every thread block that attends to a row runs
// this once, and what it takes is the number of instructions, also of those to be fetched. kHeld:
// keys that are brought to shared memory, where a row has no more.
template <int kThreads, int kHeld>
struct TopK {
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kBinsPerThread = kBins / kThreads;
  static constexpr int kStep = 128;
  static constexpr int kMaxSteps = kMaxBlocks / kStep;

  alignas(16) uint32_t held[kHeld];
  int taken[kMaxSteps];  // in the steps before
  int equal[kMaxSteps];  // the same of those that are equal to the k-th key
  int warp_sums[kWarps];
  int found_bin;
  int found_inside;
  int found_wanted;

  // Of a lane's four keys of a step: those from `least` on, at most `range` above it, as bits;
  // calls `use` with the distance of each.
  template <typename Use>
  static __device__ uint32_t between(const uint32_t* keys, int blocks, int step, uint32_t least,
                                     uint32_t range, Use&& use) {
    const int block = step * kStep + static_cast<int>(threadIdx.x) % 32 * 4;
    if (block >= blocks) return 0;
    const uint4 four = *reinterpret_cast<const uint4*>(keys + block);
    const uint32_t distances[4] = {four.x - least, four.y - least, four.z - least, four.w - least};
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (distances[i] > range || block + i >= blocks) continue;
      bits |= 1u << i;
      use(distances[i]);
    }
    return bits;
  }
  static __device__ uint32_t between(const uint32_t* keys, int blocks, int step, uint32_t least,
                                     uint32_t range) {
    return between(keys, blocks, step, least, range, [](uint32_t) {});
  }

  // Finds the bin that holds the wanted-th largest, counted from the last bin.
  __device__ void find_bin(const uint32_t (&histogram)[kBins], int wanted) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int top = kBins - 1 - static_cast<int>(threadIdx.x) * kBinsPerThread;
    int counts[kBinsPerThread], sum = 0;
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      counts[i] = static_cast<int>(histogram[top - i]);
      sum += counts[i];
    }
    const int upto = warp_inclusive_sum(sum);
    if (lane == 31) warp_sums[warp] = upto;
    __syncthreads();
    int before = upto - sum;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) before += i < warp ? warp_sums[i] : 0;
    if (before < wanted && wanted <= before + sum) {
#pragma unroll
      for (int i = 0; i < kBinsPerThread; ++i) {
        if (before < wanted && wanted <= before + counts[i]) {
          found_bin = top - i;
          found_inside = counts[i];
          found_wanted = wanted - before;
        }
        before += counts[i];
      }
    }
    __syncthreads();
  }

  // The last interval: the wanted-th largest key is in it, and all of the inside is wanted or
  // equal. `histogram` is that of the keys by bin_of, and scratch from then on.
  __device__ Interval find_interval(const uint32_t* keys, int blocks, int wanted,
                                    uint32_t (&histogram)[kBins]) {
    Interval interval;
    interval.wanted = wanted;
    for (int shift = -1;;) {
      __syncthreads();
      find_bin(histogram, interval.wanted);
      if (shift < 0) {
        interval = interval_of_bin(found_bin);
      } else {
        const uint32_t first = interval.first + (static_cast<uint32_t>(found_bin) << shift);
        interval.last = first + min(interval.last - first, (1u << shift) - 1);
        interval.first = first;
      }
      interval.inside = found_inside;
      interval.wanted = found_wanted;
      if (interval.is_final()) return interval;
      shift = interval.shift();
#pragma unroll 1
      for (int i = threadIdx.x; i < kBins; i += kThreads) histogram[i] = 0;
      cp_async_wait<0>();  // the keys, the first time
      __syncthreads();
#pragma unroll 1
      for (int step = threadIdx.x / 32; step * kStep < blocks; step += kWarps) {
        between(keys, blocks, step, interval.first, interval.last - interval.first,
                [&](uint32_t distance) { atomicAdd(&histogram[distance >> shift], 1u); });
      }
    }
  }

  // Makes `counts` the sums of what was before, by one warp.
  static __device__ void scan(int* counts, int steps) {
    const int lane = threadIdx.x % 32;
    int before = 0;
#pragma unroll 1
    for (int base = 0; base < steps; base += 32) {
      const int mine = base + lane < steps ? counts[base + lane] : 0;
      const int upto = warp_inclusive_sum(mine);
      if (base + lane < steps) counts[base + lane] = before + upto - mine;
      before += __shfl_sync(0xffffffffu, upto, 31);
    }
  }

  // Of the blocks with keys from `least` on and the first `equals` of those with the key just below
  // it, in ascending order, those from place `begin` on below `end`, to `selection`.
  __device__ void write(const uint32_t* keys, int blocks, uint32_t least, int equals, int begin,
                        int end, int32_t* selection) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int steps = (blocks + kStep - 1) / kStep;
#pragma unroll 1
    for (int step = warp; step < steps; step += kWarps) {
      const int takes = __popc(between(keys, blocks, step, least, ~least));
      const int ties = equals == 0 ? 0 : __popc(between(keys, blocks, step, least - 1, 0));
      const int both = warp_sum(takes + (ties << 16));
      if (lane == 0) {
        taken[step] = both & 0xffff;
        equal[step] = both >> 16;
      }
    }
    __syncthreads();
    if (warp == 0) scan(taken, steps);
    if (warp == 1) scan(equal, steps);
    __syncthreads();
#pragma unroll 1
    for (int step = warp; step < steps; step += kWarps) {
      const int first = taken[step] + min(equal[step], equals);
      const int next =
          step + 1 < steps ? taken[step + 1] + min(equal[step + 1], equals) : first + kStep;
      if (first >= end || next <= begin) continue;
      const uint32_t takes = between(keys, blocks, step, least, ~least);
      const uint32_t ties = equals == 0 ? 0u : between(keys, blocks, step, least - 1, 0);
      const int mine = __popc(takes) + (__popc(ties) << 16);
      const int before = warp_inclusive_sum(mine) - mine;
      const int tied = equal[step] + (before >> 16);
      int place = taken[step] + (before & 0xffff) + min(tied, equals);
      int left = max(equals - tied, 0);
#pragma unroll 1
      for (uint32_t bits = takes | ties; bits != 0; bits &= bits - 1) {
        const uint32_t bit = bits & -bits;
        if ((ties & bit) != 0 && --left < 0) continue;
        if (place >= begin && place < end) {
          selection[place - begin] = step * kStep + lane * 4 + __ffs(static_cast<int>(bit)) - 1;
        }
        ++place;
      }
    }
  }

  // The `wanted` largest of the keys of `blocks` blocks, 1 <= wanted < blocks: those from place
  // `begin` of the ascending order on below `end`. `counted` is the keys' histogram by bin_of, in
  // the order of bin_slot, `histogram` scratch; `keys` is aligned to 16 bytes and has room up to a
  // multiple of four. All threads call it; a barrier must follow.
  __device__ void select(const uint32_t* keys, const int32_t* counted, int blocks, int wanted,
                         int begin, int end, int32_t* selection, uint32_t (&histogram)[kBins]) {
    int32_t counts[kBinsPerThread];
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      counts[i] = counted[bin_slot(i * kThreads + static_cast<int>(threadIdx.x))];
    }
    if (blocks <= kHeld) {
#pragma unroll 1
      for (int at = threadIdx.x * 4; at < blocks; at += kThreads * 4) {
        cp_async_16(shared_address(held + at), keys + at, min(blocks - at, 4) * 4);
      }
      keys = held;
    }
    cp_async_commit();
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      histogram[i * kThreads + threadIdx.x] = static_cast<uint32_t>(counts[i]);
    }
    const Interval interval = find_interval(keys, blocks, wanted, histogram);
    cp_async_wait<0>();
    __syncthreads();
    const bool whole = interval.inside == interval.wanted;
    write(keys, blocks, whole ? interval.first : interval.last + 1, whole ? 0 : interval.wanted,
          begin, end, selection);
  }
};

}  // namespace sparse
}  // namespace trt_resa
