// The tiles that one item attends to, in shared memory.
//
// An item owns a part of its row's tiles (sparse_plan.cuh) and goes through them in batches. Of the
// first batch it lists at once what lies above the bin of the k-th key, so that K and V are on their
// way while the exact end of the selection is searched; then what of that bin is taken.
//
// For the search the row's parts tell one another the ranks that they own inside the bin, kShared
// at most. A part that has waited long, or is told too little, reads the row's keys instead: so none
// depends on others being at work, and the result is the same.
#pragma once

#include "mma.cuh"
#include "sparse_args.h"
#include "sparse_plan.cuh"
#include "sparse_sync.cuh"
#include "sparse_topk.cuh"

namespace trt_resa {
namespace sparse {

struct Tile {
  int place;       // in the sequence: its first key is number place * kTileKeys
  int pool_block;  // or -1: nothing of it is to be read
};

template <int kThreads, int kCapacity_>
struct TileList {
  static constexpr int kCapacity = kCapacity_;
  static constexpr int kWarps = kThreads / 32;
  static_assert(kCapacity <= 1 << 16);

  TopK<kThreads, kCapacity> topk;
  int32_t pool_blocks[kCapacity];  // of the batch's tiles
  uint32_t keys[kCapacity];        // of the batch's tiles; their places where they have no keys
  uint16_t listed[kCapacity];      // tiles of the batch that are taken, where they have keys
  uint64_t shared[kShared];
  int warp_sums[2][kWarps];
};

// Fills the list stage by stage. Called by all threads.
template <int kThreads, int kCapacity>
class TileChoice {
 public:
  using List = TileList<kThreads, kCapacity>;

  // `counters` are the row's, `histogram` is scratch.
  __device__ TileChoice(const Args& a, const Plan& plan, const RowItem& item,
                        const int32_t* counters, List& list, uint32_t (&histogram)[kBins])
      : a_(a),
        table_(a.block_table + static_cast<int64_t>(item.seq) * a.max_blocks_per_seq),
        given_((a.roles & kSelect) != 0
                   ? nullptr
                   : a.selection + static_cast<int64_t>(item.row(a)) * a.max_selected),
        keys_(row_keys(a, item.row(a))),
        keyed_(sparse::is_keyed(a, plan, item.seq)),
        blocks_(blocks_of(a, plan.kv_len[item.seq])),
        part_(part_of(a, plan, item)),
        ranks_(a.counters.ranks + static_cast<int64_t>(item.first) * kShared),
        list_(list),
        histogram_(histogram) {
    if (keyed_) {
      interval_ = list.topk.start(counters + kHistogramWord, plan.selected[item.seq], histogram,
                                  [&] { look_up(); });
    } else {
      look_up();
    }
  }

  // Stage 0: of the first batch, what is certain. Stage 1: the same and the rest. From stage 2 on:
  // the following batches, one by one, each in the place of the one before. Returns how many tiles
  // there are.
  __device__ int fill(int stage) {
    if (stage == 1) {
      if (!keyed_) return count_;
      hear();
      least_ = list_.topk.least(keys_, blocks_, interval_, histogram_);
    } else {
      if (stage > 1) {
        begin_ += kCapacity;
        look_up();
      }
      cp_async_wait<0>();
      __syncthreads();
      if (!keyed_) return count_ = batch();
      count_ = 0;
    }
    const uint64_t least = stage == 0 ? interval_.last + 1 : least_;
    const int told = take(least, stage == 1 ? interval_.last : kLastRank,
                          stage == 0 ? interval_.first : least);
    __syncthreads();
    if (stage == 0) tell(told);
    return count_;
  }

  __device__ bool ends() const { return part_.tiles - begin_ <= kCapacity; }
  __device__ bool is_keyed() const { return keyed_; }
  __device__ bool owns(int place) const { return part_.owns(place); }

  // One of the tiles of the present stage.
  __device__ Tile tile(int i) const {
    const int at = keyed_ ? list_.listed[i] : i;
    const int pool_block = list_.pool_blocks[at];
    return Tile{keyed_ ? part_.place_of(begin_ + at) : static_cast<int>(list_.keys[at]),
                pool_block < a_.num_blocks ? max(pool_block, -1) : -1};
  }

 private:
  static constexpr int kWarps = kThreads / 32;
  static constexpr uint64_t kNothing = 1;  // ranks are told with two added, as 0 is not told yet

  __device__ int batch() const { return min(part_.tiles - begin_, kCapacity); }

  // Brings what is known of the batch's tiles, in asynchronous copies where they have keys.
  __device__ void look_up() {
    const int shift = a_.block_shift - kTileShift;
    const int end = batch();
#pragma unroll 1
    for (int i = threadIdx.x; i < end; i += kThreads) {
      const int place = part_.place_of(begin_ + i);
      int block = place >> shift;
      if (keyed_) {
        cp_async_4(shared_address(list_.pool_blocks + i), table_ + block);
        cp_async_4(shared_address(list_.keys + i), keys_ + block);
        continue;
      }
      if (given_ != nullptr) block = given_[block];
      const bool has = block >= 0 && block < a_.max_blocks_per_seq;
      list_.keys[i] = static_cast<uint32_t>(block << shift | (place & ((1 << shift) - 1)));
      list_.pool_blocks[i] = has ? table_[block] : -1;
    }
    cp_async_commit();
  }

  // Lists the tiles of the batch whose ranks are between `least` and `most`. Those from `told` on
  // below `least` are left in `shared`, a block once; returns how many there are.
  __device__ int take(uint64_t least, uint64_t most, uint64_t told) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int shift = a_.block_shift - kTileShift;
    const uint32_t below = (1u << lane) - 1;
    const int end = batch();
    int turn = 0;
    int before = count_;  // and what is told, in the upper half
#pragma unroll 1
    for (int base = 0; base < end; base += kThreads) {
      const int i = base + static_cast<int>(threadIdx.x);
      const int place = part_.place_of(begin_ + i);
      bool takes = false, tells = false;
      uint64_t rank = 0;
      if (i < end) {
        rank = rank_of(list_.keys[i], place >> shift);
        takes = rank >= least && rank <= most;
        tells = rank >= told && rank < least && (place & ((1 << shift) - 1)) == 0;
      }
      const uint32_t taking = __ballot_sync(0xffffffffu, takes);
      const uint32_t telling = __ballot_sync(0xffffffffu, tells);
      if (lane == 0) list_.warp_sums[turn][warp] = __popc(taking) + (__popc(telling) << 16);
      __syncthreads();
      int at = before;
#pragma unroll
      for (int other = 0; other < kWarps; ++other) {
        const int sum = list_.warp_sums[turn][other];
        at += other < warp ? sum : 0;
        before += sum;
      }
      if (takes) list_.listed[(at & 0xffff) + __popc(taking & below)] = static_cast<uint16_t>(i);
      if (tells) {
        const int to = (at >> 16) + __popc(telling & below);
        if (to < kShared) list_.shared[to] = rank + 2;
      }
      turn ^= 1;
    }
    count_ = before & 0xffff;
    return before >> 16;
  }

  __device__ void tell(int told) {
    const int i = threadIdx.x;
    if (i < kShared) {
      store_relaxed(ranks_ + part_.first * kShared + i, i < told ? list_.shared[i] : kNothing);
    }
  }

  // Lists what the row's parts tell. A barrier ends it.
  __device__ void hear() {
    constexpr int kAtOnce = 5;  // parts per warp, of which each lane reads two ranks
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int patience = kPatience;
#pragma unroll 1
    for (int base = warp; base < part_.step; base += kAtOnce * kWarps) {
      ulonglong2 pairs[kAtOnce];
      bool all;
      do {
        bool told = true;
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int part = base + i * kWarps;
          pairs[i].x = pairs[i].y = kNothing;
          if (part < part_.step) pairs[i] = load_relaxed(ranks_ + part * kShared + lane * 2);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) told = told && pairs[i].x != 0 && pairs[i].y != 0;
        all = __ballot_sync(0xffffffffu, told) == 0xffffffffu;
      } while (!all && --patience > 0);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (pairs[i].x > kNothing) list_.topk.add(pairs[i].x - 2);
        if (pairs[i].y > kNothing) list_.topk.add(pairs[i].y - 2);
      }
    }
    __syncthreads();
  }

  const Args& a_;
  const int32_t* table_;  // of the sequence
  const int32_t* given_;  // blocks of the row's selection, or null: all blocks
  const uint32_t* keys_;  // of the row's blocks
  bool keyed_;            // else all is taken
  int blocks_;
  Part part_;
  uint64_t* ranks_;  // [parts of the row, kShared]
  List& list_;
  uint32_t (&histogram_)[kBins];
  Interval interval_;
  uint64_t least_ = 0;
  int begin_ = 0;
  int count_ = 0;
};

}  // namespace sparse
}  // namespace trt_resa
