// Attention of one group of query heads over a part of a row's selection.
//
// A part is dealt out to the warps in tiles of 16 keys. Each warp streams its tiles through a ring
// of its own in shared memory (a unit is the K or the V of a tile) and keeps its own softmax state,
// so warps meet only at the end. Products are taken transposed, with keys and then head_dim as the
// 16 rows of a tensor core tile and 8 query heads as its columns: a group of up to 8 pads nothing
// but columns. Keys of the last block beyond kv_len are zeros in shared memory, never read, and
// masked: what lies there may be NaN.
#pragma once

#include "mma.cuh"
#include "pool.cuh"
#include "sparse_args.h"
#include "sparse_plan.cuh"
#include "sparse_queries.cuh"
#include "vec.h"

namespace trt_resa {
namespace sparse {

// kRingBudget: bytes of shared memory for the rings of all warps.
template <int kHeadDim_, int kHeadTiles_, int kWarps_, int kRingBudget>
struct AttendShape {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kHeadTiles = kHeadTiles_;  // of 8 query heads
  static constexpr int kWarps = kWarps_;
  static constexpr int kChunks = kHeadDim / kVecSize;  // of 16 bytes in a row
  static constexpr int kUnitBytes = kTileKeys * kHeadDim * 2;
  // Three units keep a tile in flight while another is worked on.
  static constexpr int kFitting = kRingBudget / kWarps / kUnitBytes;
  static constexpr int kUnits = kFitting > 6 ? 6 : kFitting;
  static constexpr int kRingBytes = kUnits * kUnitBytes;
  static_assert(kUnits >= 2 && kUnits <= 6);  // ring_valid serves up to four tiles
  static constexpr int kHeads = 8 * kHeadTiles;
  // Fragments of the queries stay in registers, but where they and the accumulators would not fit.
  static constexpr bool kQueryInShared = kHeadTiles * kHeadDim == 512;
  static constexpr int kQueryBytes = kQueryInShared ? kHeads * kHeadDim * 2 : 16;
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
struct TileStream {
  const Args& a;
  int kv_head;
  Tiles& all;  // of the thread block; this warp's are those from its own number on, kWarps apart
  uint32_t ring;
  int* ring_valid;  // [4] of the tiles in the ring: tile % 4
  int tiles = div_up(max(all.count() - static_cast<int>(threadIdx.x) / 32, 0), Shape::kWarps);
  int next_unit = 0;
  int next_slot = 0;
  int64_t source = -1;  // lane l: element offset of the K of tile 32 * i + l, or -1: read nothing
  int valid = 0;        // and its keys that may be seen

  __device__ int in_all(int tile) const {
    return tile * Shape::kWarps + static_cast<int>(threadIdx.x) / 32;
  }

  __device__ void look_up(int tile) {
    source = -1;
    valid = 0;
    if (tile >= tiles || in_all(tile) >= all.known()) return;
    const Tile found = all.find(in_all(tile));
    if (!is_pool_block(a, found.pool_block)) return;
    source = (key_row(a, found.pool_block, kv_head) + found.slot) * Shape::kHeadDim;
    valid = max(min(found.valid, kTileKeys), 0);
  }

  // Starts the copy of the next unit, K and V in turn; an empty group behind the last one, so that
  // the number of groups in flight is constant.
  __device__ void start_next() {
    const int tile = next_unit / 2;
    if (tile < tiles) {
      const int lane = threadIdx.x % 32;
      const bool is_value = next_unit % 2 != 0;
      const bool waits = in_all(tile) >= all.known();
      if (!is_value && (tile % 32 == 0 || waits)) {
        if (waits) all.wait();
        look_up(tile / 32 * 32 + lane);
      }
      const int64_t offset = __shfl_sync(0xffffffffu, source, tile % 32);
      const int rows = offset < 0 ? 0 : __shfl_sync(0xffffffffu, valid, tile % 32);
      const T* from = pool<const T>(a.kv, a.append.indirect) + max(offset, int64_t{0}) +
                      (is_value ? rows_to_value(a) * Shape::kHeadDim : 0);
      const uint32_t to = opaque_address(ring + next_slot * Shape::kUnitBytes);
      if (!is_value && lane == 0) ring_valid[tile % 4] = rows;
#pragma unroll
      for (int i = 0; i < kTileKeys * Shape::kChunks / 32; ++i) {
        const int at = i * 32 + lane;
        const int row = at / Shape::kChunks;
        cp_async_16_once(to + unit_offset<Shape::kChunks>(row, at % Shape::kChunks),
                         from + at * kVecSize, row < rows);
      }
    }
    cp_async_commit();
    ++next_unit;
    next_slot = next_slot + 1 == Shape::kUnits ? 0 : next_slot + 1;
  }
};

// What a warp has gathered: lane l holds query heads 8 * t + 2 * (l % 4) + {0, 1}, and of their
// accumulators the elements 16 * m + l / 4 + {0, 8}, in the layout of a tensor core tile.
template <typename T, typename Shape>
struct WarpAttention {
  static constexpr int kSteps = Shape::kHeadDim / 16;

  static constexpr int kQuerySteps = Shape::kQueryInShared ? 1 : kSteps;

  uint32_t query[kQuerySteps][Shape::kHeadTiles][2];
  float accumulator[kSteps][Shape::kHeadTiles][4] = {};
  SoftmaxState state[Shape::kHeadTiles][2];  // sums are this lane's share until `finish`

  __device__ void load_query(const T* q, int group) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int tile = 0; tile < Shape::kHeadTiles; ++tile) {
      const int head = tile * 8 + lane / 4;
      const T* row = q + head * kQueryPitch<Shape::kHeadDim> + lane % 4 * 2;
#pragma unroll
      for (int step = 0; step < kQuerySteps; ++step) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          query[step][tile][half] =
              head < group ? *reinterpret_cast<const uint32_t*>(row + step * 16 + half * 8) : 0u;
        }
      }
    }
  }

  // Scores of a tile's keys, of which the first `valid` count, times `scale`; then the new maxima
  // and the weights of the keys, as the right-hand operand of the product with V.
  // `queries` is where load_query did not put them.
  __device__ void weigh_keys(uint32_t keys, uint32_t queries, int valid, float scale,
                             uint32_t (&weights)[Shape::kHeadTiles][2]) {
    const int lane = threadIdx.x % 32;
    float scores[Shape::kHeadTiles][4] = {};
#pragma unroll(Shape::kQueryInShared ? 4 : kSteps)
    for (int step = 0; step < kSteps; ++step) {
      uint32_t matrix[4];
      load_matrices(keys + unit_offset<Shape::kChunks>(lane % 16, step * 2 + lane / 16), matrix);
      if constexpr (Shape::kQueryInShared) {
        uint32_t pieces[4];  // two tiles of two halves
        load_matrices(queries + unit_offset<Shape::kChunks>(lane % 8 + lane / 16 * 8,
                                                            step * 2 + lane / 8 % 2),
                      pieces);
        multiply_add<T>(scores[0], matrix, pieces[0], pieces[1]);
        multiply_add<T>(scores[1], matrix, pieces[2], pieces[3]);
      } else {
#pragma unroll
        for (int tile = 0; tile < Shape::kHeadTiles; ++tile) {
          multiply_add<T>(scores[tile], matrix, query[step][tile][0], query[step][tile][1]);
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < Shape::kHeadTiles; ++tile) {
      float (&s)[4] = scores[tile];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = lane / 4 + (i < 2 ? 0 : 8);
        s[i] = key < valid ? s[i] * scale : kNoScore;
      }
      float rescale[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float max = fmaxf(s[i], s[i + 2]);
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) {
          max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, mask));
        }
        SoftmaxState& mine = state[tile][i];
        max = fmaxf(max, mine.max);
        rescale[i] = softmax_rescale(mine.max, max);
        const float base = softmax_base(max);
        s[i] = exp2_approx(s[i] - base);
        s[i + 2] = exp2_approx(s[i + 2] - base);
        mine.sum = mine.sum * rescale[i] + s[i] + s[i + 2];
        mine.max = max;
      }
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) accumulator[step][tile][i] *= rescale[i % 2];
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto pair = Pair<T>::from_float(s[2 * half], s[2 * half + 1]);
        weights[tile][half] = transpose_matrix(reinterpret_cast<const uint32_t&>(pair));
      }
    }
  }

  __device__ void add_values(uint32_t values, const uint32_t (&weights)[Shape::kHeadTiles][2]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t matrix[4];
      load_matrices_transposed(
          values + unit_offset<Shape::kChunks>(lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2),
          matrix);
#pragma unroll
      for (int tile = 0; tile < Shape::kHeadTiles; ++tile) {
        multiply_add<T>(accumulator[step][tile], matrix, weights[tile][0], weights[tile][1]);
      }
    }
  }

  // Leaves sums complete and writes state and accumulators of the first `group` heads to shared
  // memory: states [kHeads], accumulators [kHeads, kMergeStride].
  __device__ void finish(int group, SoftmaxState* states, float* accumulators) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int tile = 0; tile < Shape::kHeadTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        SoftmaxState& mine = state[tile][i];
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) {
          mine.sum += __shfl_xor_sync(0xffffffffu, mine.sum, mask);
        }
        const int head = tile * 8 + lane % 4 * 2 + i;
        if (head >= group) continue;
        if (lane / 4 == 0) states[head] = mine;
        float* target = accumulators + head * Shape::kMergeStride + lane / 4;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          target[step * 16] = accumulator[step][tile][i];
          target[step * 16 + 8] = accumulator[step][tile][i + 2];
        }
      }
    }
  }
};

template <typename Shape>
struct AttendShared {
  alignas(128) char bytes[Shape::kSharedBytes];  // the warps' rings; then their accumulators
  SoftmaxState states[Shape::kWarps][Shape::kHeads];
  int valid[Shape::kWarps][4];
  alignas(16) char query[Shape::kQueryBytes];
};

template <typename T>
__device__ __forceinline__ void store_four(T* target, const float (&x)[4], float scale) {
  const auto low = Pair<T>::from_float(x[0] * scale, x[1] * scale);
  const auto high = Pair<T>::from_float(x[2] * scale, x[3] * scale);
  *reinterpret_cast<uint2*>(target) =
      make_uint2(reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high));
}

// Attends to tiles of one KV head and calls `keep` with each query head of the group, each four
// columns from a first one on, and their state and accumulators. `queries` [group, kQueryPitch] are
// the group's, in shared memory.
template <typename T, typename Shape, typename Tiles, typename Keep>
__device__ void attend(const Args& a, int kv_head, Tiles& tiles, const T* queries,
                       AttendShared<Shape>& shared, Keep&& keep) {
  constexpr int kHeadDim = Shape::kHeadDim;
  const int warp = threadIdx.x / 32;
  const int group = a.group;

  TileStream<T, Shape, Tiles> stream{a, kv_head, tiles,
                                     shared_address(shared.bytes) + warp * Shape::kRingBytes,
                                     shared.valid[warp]};
  {
    WarpAttention<T, Shape> attention;
    if constexpr (Shape::kQueryInShared) {
#pragma unroll 1
      for (int at = threadIdx.x; at < Shape::kHeads * Shape::kChunks; at += blockDim.x) {
        const int head = at / Shape::kChunks;
        const Vec<T> vec = head < group ? Vec<T>::load(queries + head * kQueryPitch<kHeadDim> +
                                                       at % Shape::kChunks * kVecSize)
                                        : Vec<T>();
        vec.store(reinterpret_cast<T*>(shared.query +
                                       unit_offset<Shape::kChunks>(head, at % Shape::kChunks)));
      }
      __syncthreads();
    }
    uint32_t weights[Shape::kHeadTiles][2];
    int slot = 0;
#pragma unroll 1
    for (int unit = -Shape::kUnits; unit < 2 * stream.tiles; ++unit) {
      if (unit >= 0) {
        const uint32_t bytes = stream.ring + slot * Shape::kUnitBytes;
        // Only now: the first copies are under way meanwhile.
        if (unit == 0 && !Shape::kQueryInShared) attention.load_query(queries, group);
        cp_async_wait<Shape::kUnits - 1>();
        __syncwarp();
        if (unit % 2 == 0) {
          attention.weigh_keys(bytes, shared_address(shared.query), stream.ring_valid[unit / 2 % 4],
                               a.score_scale, weights);
        } else {
          attention.add_values(bytes, weights);
        }
        __syncwarp();  // all lanes have read it
        slot = slot + 1 == Shape::kUnits ? 0 : slot + 1;
      }
      stream.start_next();
    }
    cp_async_wait<0>();
    __syncthreads();  // the rings are free
    if (stream.tiles > 0) {
      attention.finish(
          group, shared.states[warp],
          reinterpret_cast<float*>(shared.bytes) + warp * Shape::kHeads * Shape::kMergeStride);
    }
  }
  __syncthreads();

  const int warps = min(tiles.count(), Shape::kWarps);  // that had tiles
  const float* accumulators = reinterpret_cast<const float*>(shared.bytes);
#pragma unroll 1
  for (int at = threadIdx.x; at < group * (kHeadDim / 4); at += blockDim.x) {
    const int head = at / (kHeadDim / 4);
    const int column = at % (kHeadDim / 4) * 4;
    SoftmaxState states[Shape::kWarps];
#pragma unroll
    for (int i = 0; i < Shape::kWarps; ++i) {
      if (i < warps) states[i] = shared.states[i][head];
    }
    float scales[Shape::kWarps];
    const SoftmaxState state = softmax_merge(states, scales);
    float sum[4] = {};
#pragma unroll
    for (int i = 0; i < Shape::kWarps; ++i) {
      if (i >= warps) break;
      const float4 other = *reinterpret_cast<const float4*>(
          accumulators + (i * Shape::kHeads + head) * Shape::kMergeStride + column);
      const float others[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] += others[j] * scales[i];
    }
    keep(head, column, state, sum);
  }
}

}  // namespace sparse
}  // namespace trt_resa
