// The tiles of 16 keys that are attended to (sparse_attend.cuh): where they lie, and their way into
// the warps' rings in shared memory. A unit of a ring is the K or the V of a tile.
#pragma once

#include "mma.cuh"
#include "pool.cuh"
#include "sparse_args.h"
#include "sparse_plan.cuh"
#include "vec.h"

namespace trt_resa {
namespace sparse {

constexpr int kSharedAlign = 512;  // of units, in shared memory: the longest row

// kRingBudget: bytes of shared memory for the rings of all warps.
template <int kHeadDim_, int kHeadTiles_, int kWarps_, int kRingBudget>
struct AttendShape {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kHeadTiles = kHeadTiles_;  // of 8 query heads
  static constexpr int kWarps = kWarps_;
  static constexpr int kChunks = kHeadDim / kVecSize;  // of 16 bytes in a row
  static constexpr int kUnitBytes = kTileKeys * kHeadDim * 2;
  static constexpr int kFitting = kRingBudget / kWarps / (2 * kUnitBytes);
  static constexpr int kRingTiles = kFitting > 3 ? 3 : kFitting;
  static constexpr int kRingBytes = 2 * kRingTiles * kUnitBytes;
  static_assert(kRingTiles >= 1);
  static constexpr int kHeads = 8 * kHeadTiles;
  // Fragments of the queries stay in registers, but where they and the accumulators would not fit.
  static constexpr bool kQueryInShared = kHeadTiles * kHeadDim == 512;
  static constexpr int kMergeStride = kHeadDim + 4;  // floats; spreads heads over the banks
  static constexpr int kSharedBytes =
      kWarps * (kRingBytes > kHeads * kMergeStride * 4 ? kRingBytes : kHeads * kMergeStride * 4);
};

// Byte offset in a unit of chunk `chunk` of row `row`: permuted so that the eight rows of a matrix
// lie in different banks. 12 chunks (head_dim 96) are permuted among four, since a row then starts
// half-way through the banks every other time.
template <int kChunks>
__device__ __forceinline__ uint32_t unit_offset(int row, int chunk) {
  const int place = kChunks % 8 == 0 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3);
  return static_cast<uint32_t>((row * kChunks + place) * 16);
}

// The same of a place that is `step` pairs of chunks behind one of `first`, the offset of the lower
// or the upper chunk of the row's first pair: where a row's length is a power of two that is one
// instruction, also on an address whose unit is aligned to a row.
template <int kChunks>
__device__ __forceinline__ uint32_t behind(uint32_t first, int step, int row, int half) {
  if constexpr (kChunks % 8 == 0) return first ^ static_cast<uint32_t>(step * 32);
  return first - unit_offset<kChunks>(row, half) + unit_offset<kChunks>(row, step * 2 + half);
}

// A tile to be read: its pool block, or -1 for one that is not to be read, its first key in the
// block, and how many may be seen.
struct Tile {
  int pool_block = -1;
  int slot = 0;
  int valid = 0;
};

// The tiles of a part of a row's selection.
struct PartTiles {
  const Args& a;
  const int32_t* selection;  // of the part, from its first block on; null: all blocks in order
  const int32_t* table;      // of the sequence
  int kv_len;
  Part part;

  __device__ int count() const { return part.end_tile - part.first_tile; }
  // The first that cannot be found before `wait` was called by all lanes of a warp.
  __device__ int known() const { return 0x7fffffff; }
  __device__ void wait() {}

  __device__ Tile find(int i) const {
    Tile tile;
    const int place = part.first_tile + i;
    const int index = place >> (a.block_shift - kTileShift);
    const int block = selection == nullptr ? index : selection[index - part.first_block];
    if (block < 0 || block >= a.max_blocks_per_seq) return tile;
    tile.pool_block = table[block];
    tile.slot = place * kTileKeys & (a.block_size - 1);
    tile.valid = kv_len - block * a.block_size - tile.slot;
    return tile;
  }
};

// The tiles of one warp, looked up 32 at a time, and their way into the ring.
template <typename T, typename Shape, typename Tiles>
class TileStream {
 public:
  // `all` are the thread block's: this warp's are those from its own number on, kWarps apart.
  __device__ TileStream(const Args& a, int kv_head, Tiles& all, uint32_t ring)
      : a_(a),
        kv_head_(kv_head),
        all_(all),
        count_(div_up(max(all.count() - warp_index(), 0), Shape::kWarps)),
        target_(
            keep_in_register(ring + unit_offset<Shape::kChunks>(lane_index() / Shape::kChunks,
                                                                lane_index() % Shape::kChunks))),
        pool_(keep_in_register(pool<const T>(a.kv, a.append.indirect) + lane_index() * kVecSize)),
        to_value_(keep_in_register(static_cast<int>(rows_to_value(a)) * Shape::kHeadDim)) {}

  __device__ int count() const { return count_; }
  // Whether there is such a tile, and it is known without `wait`.
  __device__ bool knows(int tile) const { return tile < count_ && in_all(tile) < all_.known(); }

  // Start the copies of a tile's K, and then of its V, to its place in the ring; tiles follow one
  // another. A group each, an empty one behind the last tile, so that the number of groups in
  // flight is constant. The first returns how many keys may be seen.
  __device__ int start_keys(int tile, int slot) {
    rows_ = 0;
    if (tile < count_) {
      const int lane = lane_index();
      if (tile % 32 == 0 || in_all(tile) >= looked_up_) {
        if (in_all(tile) >= all_.known()) all_.wait();
        look_up(tile / 32 * 32 + lane);
      }
      rows_ = __shfl_sync(0xffffffffu, valid_, tile % 32);
      from_ = pool_ +
              static_cast<uint64_t>(__shfl_sync(0xffffffffu, row_, tile % 32)) * Shape::kHeadDim;
      to_ = opaque_address(target_ + slot * (2 * Shape::kUnitBytes));
      copy_unit(to_, from_, rows_);
    }
    cp_async_commit();
    return rows_;
  }
  __device__ void start_values(int tile) {
    if (tile < count_) copy_unit(to_ + Shape::kUnitBytes, from_ + to_value_, rows_);
    cp_async_commit();
  }

 private:
  __device__ int in_all(int tile) const { return tile * Shape::kWarps + warp_index(); }

  __device__ void look_up(int tile) {
    row_ = 0;
    valid_ = 0;
    looked_up_ = all_.known();
    if (tile >= count_ || in_all(tile) >= looked_up_) return;
    const Tile found = all_.find(in_all(tile));
    if (!is_pool_block(a_, found.pool_block)) return;
    row_ = static_cast<uint32_t>(key_row(a_, found.pool_block, kv_head_) + found.slot);
    valid_ = max(min(found.valid, kTileKeys), 0);
  }

  // This lane's pieces of a unit of which `rows` are read, from its first one on, `to` and `from`.
  __device__ static void copy_unit(uint32_t to, const T* from, int rows) {
    constexpr int kChunks = Shape::kChunks;
    const int lane = lane_index();
#pragma unroll
    for (int i = 0; i < kTileKeys * kChunks / 32; ++i) {
      uint32_t target;
      int row;
      if constexpr (32 % kChunks == 0) {
        // Whole rows apart.
        constexpr int kRows = 32 / kChunks;
        target = (to ^ static_cast<uint32_t>((i * kRows & 7) * 16)) + i * 512;
        row = lane / kChunks + i * kRows;
      } else {
        const int at = i * 32 + lane;
        row = at / kChunks;
        target = to - unit_offset<kChunks>(lane / kChunks, lane % kChunks) +
                 unit_offset<kChunks>(row, at % kChunks);
      }
      cp_async_16_once(target, from + i * 32 * kVecSize, row < rows);
    }
  }

  const Args& a_;
  const int kv_head_;
  Tiles& all_;
  const int count_;
  const uint32_t target_;  // this lane's first piece of the first unit
  const T* const pool_;    // and of the pool's first row
  const int to_value_;     // elements from a key to its value
  uint32_t row_ = 0;       // lane l: the pool's row of the first key of tile 32 * i + l
  int valid_ = 0;          // and its keys that may be seen, 0 where it is not to be read
  int looked_up_ = 0;      // tiles of the thread block that were known then
  uint32_t to_ = 0;        // of the tile whose K was started last
  const T* from_ = nullptr;
  int rows_ = 0;
};

}  // namespace sparse
}  // namespace trt_resa
