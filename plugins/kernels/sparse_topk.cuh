// The exact top-k of one row's keys by one thread block, in ascending order of blocks.
//
// An interval of keys is known to hold the k-th largest: keys above it are in, keys below are out.
// It starts as the bin of the row's histogram, which whoever makes keys has counted, and shrinks by
// a factor of kBins with each histogram of what lies inside, until all of the inside is taken or
// only equal keys are left, of which the first blocks are taken. The result is a function of the
// keys alone.
#pragma once

#include "mma.cuh"
#include "sparse_args.h"
#include "sparse_plan.cuh"

namespace trt_resa {
namespace sparse {

// Bins of the first histogram: 64 per power of two over 16 of them, two or three of which are above
// the score that all blocks of a row would have if they were equal. What is below is in the first
// one; what is above, forced blocks and NaN are in the last. Which keys share a bin changes the
// time only.
constexpr int kBinShift = 23 - 6;
static_assert(kBins == 16 << (23 - kBinShift));

// The first bin's first key, of a row of `blocks`.
__device__ __forceinline__ uint32_t bins_begin(int blocks) {
  return static_cast<uint32_t>(127 - 10 - (32 - __clz(blocks))) << 23;
}

__device__ __forceinline__ int bin_of(uint32_t key, uint32_t begin) {
  return key < begin ? 0 : min(static_cast<int>((key - begin) >> kBinShift), kBins - 1);
}

// Where a bin lies in the row's histogram: neighbours in different lines of 128 bytes, since
// atomics on one line wait for one another.
__device__ __forceinline__ int bin_slot(int bin) {
  constexpr int kLineWords = 32;
  return bin % (kBins / kLineWords) * kLineWords + bin / (kBins / kLineWords);
}

// The smallest key above another one; the largest one is none.
__device__ __forceinline__ uint32_t above(uint32_t key) {
  return key == 0xffffffffu ? key : key + 1;
}

struct Interval {
  uint32_t first;  // smallest and largest key inside
  uint32_t last;
  int inside;  // keys inside
  int wanted;  // of them to be taken, at least 1

  __device__ bool contains(uint32_t key) const { return key >= first && key <= last; }
  __device__ bool is_final() const { return inside == wanted || first == last; }
  // Bits by which a key's distance from `first` is shifted to number it among `bins` bins, a power
  // of two.
  __device__ int shift(int bins) const {
    return max(__clz(bins) + 1 - __clz(static_cast<int>(last - first)), 0);
  }
};

__device__ inline Interval interval_of_bin(int bin, uint32_t begin) {
  Interval interval;
  interval.first = bin == 0 ? 0u : begin + (static_cast<uint32_t>(bin) << kBinShift);
  interval.last =
      bin == kBins - 1 ? 0xffffffffu : begin + (static_cast<uint32_t>(bin + 1) << kBinShift) - 1;
  return interval;
}

// Keys are taken in steps of 128, four per lane of a warp, and a warp reads those of kBatch steps
// at once; the numbers of what is taken in each step say where its blocks go. Loops stay rolled:
// every thread block that attends to a row runs this once, and instructions are what it takes, also
// to be fetched. kHeld: keys that are brought to shared memory, where a row has no more.
template <int kThreads, int kHeld>
struct TopK {
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kBinsPerThread = kBins / kThreads;
  static constexpr int kStep = 128;
  static constexpr int kBatch = 4;
  static constexpr int kStride = kBatch * kWarps;  // steps from batch to batch
  static constexpr int kMaxSteps = kMaxBlocks / kStep;
  static constexpr int kStepsPerThread = kMaxSteps / kThreads;

  alignas(16) uint32_t held[kHeld];
  int counts[2][kMaxSteps];  // of taken and of equal keys: in each step, then in all before it
  int listed[kMaxSteps];     // steps with blocks of the part
  int num_listed;
  int warp_sums[kWarps];
  int found_bin;
  int found_inside;
  int found_wanted;

  // Where the lane's keys of the i-th step of a batch stand.
  static __device__ int block_of(int step, int i) {
    return (step + i * kWarps) * kStep + lane_index() * 4;
  }

  // Bit 4 * i + j: whether the j-th of the lane's keys of the i-th of kSteps steps is from `least`
  // on, at most `range` above it.
  template <int kSteps>
  static __device__ uint32_t between(const uint32_t* keys, int blocks, int step, uint32_t least,
                                     uint32_t range) {
    uint4 fours[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      fours[i] = make_uint4(0, 0, 0, 0);
      if (block_of(step, i) < blocks) {
        fours[i] = *reinterpret_cast<const uint4*>(keys + block_of(step, i));
      }
    }
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const uint32_t four[4] = {fours[i].x, fours[i].y, fours[i].z, fours[i].w};
      const int present = blocks - block_of(step, i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        bits |= (four[j] - least <= range && j < present ? 1u : 0u) << (4 * i + j);
      }
    }
    return bits;
  }

  // Calls `use` with the block of each bit.
  template <typename Use>
  static __device__ void for_each_block(uint32_t bits, int step, Use&& use) {
#pragma unroll 1
    for (; bits != 0; bits &= bits - 1) {
      const int bit = __ffs(static_cast<int>(bits)) - 1;
      use(block_of(step, bit / 4) + bit % 4);
    }
  }

  // Sum of what the threads before this one give. All call it; a barrier must follow before the
  // next call.
  __device__ int sum_before(int mine) {
    const int warp = warp_index();
    const int upto = warp_inclusive_sum(mine);
    if (lane_index() == 31) warp_sums[warp] = upto;
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
        interval = interval_of_bin(found_bin, bins_begin(blocks));
      } else {
        const uint32_t first = interval.first + (static_cast<uint32_t>(found_bin) << shift);
        interval.last = first + min(interval.last - first, (1u << shift) - 1);
        interval.first = first;
      }
      interval.inside = found_inside;
      interval.wanted = found_wanted;
      if (interval.is_final()) return interval;
      shift = interval.shift(kBins);
#pragma unroll 1
      for (int i = threadIdx.x; i < kBins; i += kThreads) histogram[i] = 0;
      cp_async_wait<0>();  // the keys, the first time
      __syncthreads();
#pragma unroll 1
      for (int step = warp_index(); step * kStep < blocks; step += kStride) {
        const uint32_t inside =
            between<kBatch>(keys, blocks, step, interval.first, interval.last - interval.first);
        for_each_block(inside, step, [&](int block) {
          atomicAdd(&histogram[(keys[block] - interval.first) >> shift], 1u);
        });
      }
    }
  }

  // The numbers of keys from `least` on, at most `range` above it, in each step.
  __device__ void count(const uint32_t* keys, int blocks, uint32_t least, uint32_t range,
                        int (&steps)[kMaxSteps]) {
    const int lane = lane_index();
#pragma unroll 1
    for (int step = warp_index(); step * kStep < blocks; step += kStride) {
      // Numbers of set bits of four, then a byte each: a warp has at most 128.
      uint32_t bits = between<kBatch>(keys, blocks, step, least, range);
      bits -= bits >> 1 & 0x5555u;
      bits = (bits & 0x3333u) + (bits >> 2 & 0x3333u);
      bits = (bits | bits << 8) & 0x00ff00ffu;
      bits = (bits | bits << 4) & 0x0f0f0f0fu;
      const uint32_t all = __reduce_add_sync(0xffffffffu, bits);
      const int mine = step + lane * kWarps;
      if (lane < kBatch && mine < kMaxSteps) steps[mine] = static_cast<int>(all >> 8 * lane & 255);
    }
  }

  // Makes the numbers of the steps those of all steps before.
  __device__ void add_up(int blocks, int (&steps)[kMaxSteps]) {
    const int first = static_cast<int>(threadIdx.x) * kStepsPerThread;
    int mine[kStepsPerThread], sum = 0;
#pragma unroll
    for (int i = 0; i < kStepsPerThread; ++i) {
      mine[i] = (first + i) * kStep < blocks ? steps[first + i] : 0;
      sum += mine[i];
    }
    int before = sum_before(sum);
#pragma unroll
    for (int i = 0; i < kStepsPerThread; ++i) {
      steps[first + i] = before;
      before += mine[i];
    }
    __syncthreads();
  }

  // Of the blocks with keys from `least` on and the first `equals` of those with the key just below
  // it, in ascending order, those from place `begin` on below `end`, to `selection`.
  __device__ void write(const uint32_t* keys, int blocks, uint32_t least, int equals, int begin,
                        int end, int32_t* selection) {
    const int kinds = equals > 0 ? 2 : 1;
    if (threadIdx.x == 0) num_listed = 0;
#pragma unroll 1
    for (int kind = 0; kind < kinds; ++kind) {
      count(keys, blocks, least - kind, kind == 0 ? ~least : 0u, counts[kind]);
      __syncthreads();
      add_up(blocks, counts[kind]);
    }
    const auto place_of = [&](int step) {
      return counts[0][step] + (equals > 0 ? min(counts[1][step], equals) : 0);
    };
    const int steps = (blocks + kStep - 1) / kStep;
#pragma unroll 1
    for (int step = threadIdx.x; step < steps; step += kThreads) {
      const int next = step + 1 < steps ? place_of(step + 1) : end + 1;
      if (place_of(step) < end && next > begin) listed[atomicAdd(&num_listed, 1)] = step;
    }
    __syncthreads();
#pragma unroll 1
    for (int i = warp_index(); i < num_listed; i += kWarps) {
      const int step = listed[i];
      const uint32_t takes = between<1>(keys, blocks, step, least, ~least);
      const uint32_t ties = equals > 0 ? between<1>(keys, blocks, step, least - 1, 0) : 0u;
      const int mine = __popc(takes) + (__popc(ties) << 16);
      const int before = warp_inclusive_sum(mine) - mine;
      const int tied = equals > 0 ? counts[1][step] + (before >> 16) : 0;
      int place = counts[0][step] + (before & 0xffff) + min(tied, equals);
      int left = max(equals - tied, 0);
      for_each_block(takes | ties, step, [&](int block) {
        if ((ties >> block % 4 & 1) != 0 && --left < 0) return;
        if (place >= begin && place < end) selection[place - begin] = block;
        ++place;
      });
    }
  }

  // The `wanted` largest of the keys of `blocks` blocks, 1 <= wanted < blocks: those from place
  // `begin` of the ascending order on below `end`. `counted` is the keys' histogram by bin_of, in
  // the order of bin_slot, `histogram` scratch; `keys` is aligned to 16 bytes and has room up to a
  // multiple of four. All threads call it; a barrier must follow.
  __device__ void select(const uint32_t* keys, const int32_t* counted, int blocks, int wanted,
                         int begin, int end, int32_t* selection, uint32_t (&histogram)[kBins]) {
    int32_t first_counts[kBinsPerThread];
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      first_counts[i] = counted[bin_slot(i * kThreads + static_cast<int>(threadIdx.x))];
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
      histogram[i * kThreads + threadIdx.x] = static_cast<uint32_t>(first_counts[i]);
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
