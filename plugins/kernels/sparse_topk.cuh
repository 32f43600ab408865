// The exact top-k of one row's keys by one thread block, in ascending order of blocks.
//
// A key is a score as an unsigned integer of the same order. An interval of keys is known to hold
// the k-th largest: keys above it are in, keys below are out. It starts as the bin of the row's
// histogram, which the scoring thread blocks have counted, and shrinks by a factor of kBins with
// each histogram of what lies inside, until all of the inside is taken or only equal keys are left,
// of which the first blocks are taken. The result is a function of the keys alone.
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

template <int kThreads>
struct TopK {
  static constexpr int kBytes = kMaxBlocks / 8;
  static constexpr int kCandidates = 2048;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kBinsPerThread = kBins / kThreads;

  uint32_t histogram[kBins];
  alignas(4) uint8_t above[kBytes];   // bit per block: its key is above the interval
  alignas(4) uint8_t inside[kBytes];  // bit per block: its key is in the interval
  uint2 candidates[kCandidates];      // key and block of each inside, where there are few
  int num_candidates;
  int warp_sums[2][kWarps];
  int found_bin;
  int found_inside;
  int found_wanted;

  // Sums over the threads before this one, of two counts; all threads call it.
  __device__ int2 exclusive_sums(int first, int second) {
    const int warp = threadIdx.x / 32;
    const int2 upto = make_int2(warp_inclusive_sum(first), warp_inclusive_sum(second));
    if (threadIdx.x % 32 == 31) {
      warp_sums[0][warp] = upto.x;
      warp_sums[1][warp] = upto.y;
    }
    __syncthreads();
    int2 before = make_int2(upto.x - first, upto.y - second);
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      if (i < warp) {
        before.x += warp_sums[0][i];
        before.y += warp_sums[1][i];
      }
    }
    return before;
  }

  // The bin that holds the wanted-th largest, counted from the last bin. `counts` are this thread's
  // bins, the last ones for thread 0, each thread's from the highest down.
  __device__ void find_bin(const uint32_t (&counts)[kBinsPerThread], int wanted) {
    int sum = 0;
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) sum += static_cast<int>(counts[i]);
    int before = exclusive_sums(sum, 0).x;
    if (before < wanted && wanted <= before + sum) {
#pragma unroll
      for (int i = 0; i < kBinsPerThread; ++i) {
        const int count = static_cast<int>(counts[i]);
        if (before < wanted && wanted <= before + count) {
          found_bin = kBins - 1 - (static_cast<int>(threadIdx.x) * kBinsPerThread + i);
          found_inside = count;
          found_wanted = wanted - before;
        }
        before += count;
      }
    }
    __syncthreads();
  }

  // Shrinks the interval. `visit(f)` calls f with each key of a set that holds all keys inside.
  template <typename Visit>
  __device__ void refine(Interval& interval, Visit&& visit) {
    for (int i = threadIdx.x; i < kBins; i += kThreads) histogram[i] = 0;
    __syncthreads();
    const int shift = interval.shift();
    visit([&](uint32_t key) {
      if (interval.contains(key)) atomicAdd(&histogram[(key - interval.first) >> shift], 1u);
    });
    __syncthreads();
    uint32_t counts[kBinsPerThread];
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      counts[i] = histogram[kBins - 1 - (threadIdx.x * kBinsPerThread + i)];
    }
    find_bin(counts, interval.wanted);
    const uint32_t first = interval.first + (static_cast<uint32_t>(found_bin) << shift);
    interval.last = first + min(interval.last - first, (1u << shift) - 1);
    interval.first = first;
    interval.inside = found_inside;
    interval.wanted = found_wanted;
    __syncthreads();
  }

  // Four keys from a multiple of four on; zeros behind the last one.
  static __device__ uint4 load_keys(const uint32_t* keys, int block, int blocks) {
    if (block + 4 <= blocks) return *reinterpret_cast<const uint4*>(keys + block);
    uint4 out = make_uint4(0, 0, 0, 0);
    if (block < blocks) out.x = keys[block];
    if (block + 1 < blocks) out.y = keys[block + 1];
    if (block + 2 < blocks) out.z = keys[block + 2];
    return out;
  }

  // The keys that a lane classifies at a time: four of each of kLoads groups of 128 that follow one
  // another from `base` on, a multiple of kBatchKeys.
  static constexpr int kLoads = 4;
  static constexpr int kBatchKeys = kLoads * 128;
  struct Loaded {
    uint4 keys[kLoads];

    __device__ void load(const uint32_t* source, int base, int blocks) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        keys[i] = load_keys(source, base + i * 128 + threadIdx.x % 32 * 4, blocks);
      }
    }
  };
  static __device__ int first_base() { return static_cast<int>(threadIdx.x) / 32 * kBatchKeys; }

  __device__ void classify_batch(const Interval& interval, const Loaded& loaded, int base,
                                 int blocks, bool listed) {
    const int lane = threadIdx.x % 32;
    uint32_t inside_bits = 0;  // four bits per group
    uint32_t above_bits = 0;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const uint32_t group[4] = {loaded.keys[i].x, loaded.keys[i].y, loaded.keys[i].z,
                                 loaded.keys[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool present = base + i * 128 + lane * 4 + j < blocks;
        above_bits |= (present && group[j] > interval.last ? 1u : 0u) << (4 * i + j);
        inside_bits |= (present && interval.contains(group[j]) ? 1u : 0u) << (4 * i + j);
      }
    }
    if (listed && __any_sync(0xffffffffu, inside_bits != 0)) {
      const int count = __popc(inside_bits);
      const int upto = warp_inclusive_sum(count);
      int place = 0;
      if (lane == 31) place = atomicAdd(&num_candidates, upto);
      place = __shfl_sync(0xffffffffu, place, 31) + upto - count;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const uint32_t group[4] = {loaded.keys[i].x, loaded.keys[i].y, loaded.keys[i].z,
                                   loaded.keys[i].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if ((inside_bits >> (4 * i + j) & 1) == 0) continue;
          candidates[place++] =
              make_uint2(group[j], static_cast<uint32_t>(base + i * 128 + lane * 4 + j));
        }
      }
    }
    // Two lanes make the bytes of their eight blocks.
    const uint32_t above_next = __shfl_down_sync(0xffffffffu, above_bits, 1);
    const uint32_t inside_next = __shfl_down_sync(0xffffffffu, inside_bits, 1);
    if (lane % 2 != 0) return;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = (base + i * 128 + lane * 4) / 8;
      above[at] = (above_bits >> 4 * i & 15) | (above_next >> 4 * i & 15) << 4;
      inside[at] = (inside_bits >> 4 * i & 15) | (inside_next >> 4 * i & 15) << 4;
    }
  }

  // Sets the bits of all blocks, and zeros behind them up to a multiple of kBatchKeys; lists the
  // inside where it fits. `loaded` are the keys from first_base() on. The loads of a batch are in
  // flight while the batch before is classified.
  __device__ void classify(const Interval& interval, const uint32_t* keys, int blocks,
                           Loaded& loaded) {
    constexpr int kStep = kWarps * kBatchKeys;
    const bool listed = interval.inside <= kCandidates;
    if (threadIdx.x == 0) num_candidates = 0;
    __syncthreads();
    for (int base = first_base(); base < blocks; base += kStep) {
      const Loaded present = loaded;
      if (base + kStep < blocks) loaded.load(keys, base + kStep, blocks);
      classify_batch(interval, present, base, blocks, listed);
    }
    __syncthreads();
  }

  // Narrows a listed inside to its last interval and moves the bits accordingly.
  __device__ void settle_candidates(Interval& interval) {
    const Interval before = interval;
    while (!interval.is_final()) {
      refine(interval, [&](auto&& count) {
        for (int i = threadIdx.x; i < before.inside; i += kThreads) count(candidates[i].x);
      });
    }
    for (int i = threadIdx.x; i < before.inside; i += kThreads) {
      const uint2 candidate = candidates[i];
      if (interval.contains(candidate.x)) continue;
      const uint32_t bit = 1u << (candidate.y % 32);
      atomicAnd(reinterpret_cast<uint32_t*>(inside) + candidate.y / 32, ~bit);
      if (candidate.x > interval.last) {
        atomicOr(reinterpret_cast<uint32_t*>(above) + candidate.y / 32, bit);
      }
    }
    __syncthreads();
  }

  // Writes the blocks above and the first `wanted` of those inside.
  __device__ void write(int blocks, int wanted, int32_t* selection) {
    const int bytes = div_up(blocks, 8);
    const int per_thread = div_up(bytes, kThreads);
    const int begin = min(static_cast<int>(threadIdx.x) * per_thread, bytes);
    const int end = min(begin + per_thread, bytes);
    int num_above = 0, num_inside = 0;
    for (int i = begin; i < end; ++i) {
      num_above += __popc(above[i]);
      num_inside += __popc(inside[i]);
    }
    const int2 before = exclusive_sums(num_above, num_inside);
    int left = max(wanted - before.y, 0);
    int32_t* target = selection + before.x + min(before.y, wanted);
    for (int i = begin; i < end; ++i) {
      const uint32_t equal = inside[i];
      for (uint32_t bits = above[i] | equal; bits != 0; bits &= bits - 1) {
        const uint32_t bit = bits & -bits;
        if ((equal & bit) != 0 && --left < 0) continue;
        *target++ = i * 8 + __ffs(static_cast<int>(bit)) - 1;
      }
    }
  }

  // The `wanted` largest of the keys of `blocks` blocks, 1 <= wanted < blocks. `counted` is their
  // histogram by bin_of, in the order of bin_slot, and is zero afterwards. All threads call it; a
  // barrier must follow.
  __device__ void select(const uint32_t* keys, uint32_t* counted, int blocks, int wanted,
                         int32_t* selection) {
    Loaded loaded;
    loaded.load(keys, first_base(), blocks);
    uint32_t counts[kBinsPerThread];
    const auto slot = [](int i) {
      return bin_slot(kBins - 1 - (static_cast<int>(threadIdx.x) * kBinsPerThread + i));
    };
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) counts[i] = counted[slot(i)];
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) counted[slot(i)] = 0;
    find_bin(counts, wanted);
    Interval interval = interval_of_bin(found_bin);
    interval.inside = found_inside;
    interval.wanted = found_wanted;
    __syncthreads();

    while (interval.inside > kCandidates && !interval.is_final()) {
      refine(interval, [&](auto&& count) {
        for (int i = threadIdx.x; i < blocks; i += kThreads) count(keys[i]);
      });
    }
    classify(interval, keys, blocks, loaded);
    if (!interval.is_final()) settle_candidates(interval);
    write(blocks, interval.wanted, selection);
  }
};

}  // namespace sparse
}  // namespace trt_resa
