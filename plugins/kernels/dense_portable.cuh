// dense_attention with mma.sync and cp.async, for compute capability 8.0 and later.
//
// Two shapes. For many rows, four warps share the keys of a tile and take 16 rows each. For up to
// 16 rows (decode: one query of a GQA group) the warps share the rows and take a part of the keys
// each, since reading the keys is all the work there; their states are merged at the end of a unit.
//
// Shared memory holds kStages tiles of K and V. A row of D elements is D / 8 chunks of 16 bytes,
// permuted so that eight consecutive rows of one column of chunks lie in different banks.
#pragma once

#include <type_traits>

#include "dense_schedule.cuh"
#include "dense_softmax.cuh"
#include "dependent_launch.cuh"
#include "mma.cuh"
#include "pool.cuh"
#include "vec.h"

namespace trt_resa {
namespace dense {

template <int kHeadDim_, bool kManyRows>
struct PortableTile {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kRowWarps = kManyRows ? 4 : 1;
  static constexpr int kKeyWarps = kManyRows ? 1 : kHeadDim == 256 ? 2 : 4;
  static constexpr int kThreads = 32 * kRowWarps * kKeyWarps;
  static constexpr int kRows = 16 * kRowWarps;
  // Stages of 32 KB, or 16 to 32 KB for many rows: two thread blocks fit a multiprocessor of
  // compute capability 8.0 and 9.0, one the 100 KB of 8.6, 8.9 and 12.0.
  static constexpr int kKeys = kHeadDim == 256 ? 32 : kHeadDim == 64 && !kManyRows ? 128 : 64;
  static constexpr int kStages = kManyRows ? 2 : 3;
  static constexpr int kWarpKeys = kKeys / kKeyWarps;

  static constexpr int kTileBytes = kKeys * kHeadDim * 2;  // of K; as many of V
  static constexpr int kPipelineBytes = kStages * 2 * kTileBytes;
  // The queries stay in registers, or, where that would spill, in shared memory.
  static constexpr bool kSharedQueries = kManyRows && kHeadDim == 256;
  static constexpr int kQueryBytes = kSharedQueries ? kRows * kHeadDim * 2 : 0;
  // The end of a unit: accumulators of each warp, rows padded against bank conflicts, and states.
  static constexpr int kMergeStride = kHeadDim + 8;
  static constexpr int kMergeRows = kRows * kKeyWarps;
  static constexpr int kMergeBytes = kMergeRows * (kMergeStride * 4 + 8);
  static constexpr int kSharedBytes =
      kPipelineBytes + kQueryBytes > kMergeBytes ? kPipelineBytes + kQueryBytes : kMergeBytes;
  static_assert(kWarpKeys % 16 == 0);
};

// Byte offset of a chunk in a tile.
template <int kHeadDim>
__device__ inline int chunk_offset(int row, int chunk) {
  // Rows of 12 chunks: rows two apart start at the same bank, and only 4 chunks may be permuted.
  const int permuted = kHeadDim == 96 ? chunk ^ (row / 2 % 4) : chunk ^ (row % 8);
  return (row * (kHeadDim / kVecSize) + permuted) * 16;
}

// Copies key tiles to shared memory. Each thread copies one chunk of every kRowsPerPass-th key.
template <typename T, typename Tile>
struct TileLoader {
  static constexpr int kHeadDim = Tile::kHeadDim;
  static constexpr int kChunks = kHeadDim / kVecSize;
  static constexpr int kLanes = kChunks <= 8 ? 8 : kChunks <= 16 ? 16 : 32;
  static constexpr int kRowsPerPass = Tile::kThreads / kLanes;
  static constexpr int kPasses = Tile::kKeys / kRowsPerPass;
  static constexpr int kGroup = 16;  // keys that always share a block
  static constexpr int kGroups = Tile::kKeys / kGroup;
  static_assert(kGroup % kRowsPerPass == 0 || kRowsPerPass % kGroup == 0);

  const Args& a;
  const int32_t* blocks;  // of the sequence
  int kv_len;
  int kv_head;
  int ids[kGroups];  // pool blocks of the tile that is loaded next, -1 where there is none

  __device__ TileLoader(const Args& args, const Unit& unit)
      : a(args),
        blocks(args.p.block_table + static_cast<int64_t>(unit.index) * args.p.max_blocks_per_seq),
        kv_len(unit.sequence.kv_len),
        kv_head(unit.kv_head) {}

  __device__ void find_blocks(int tile) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int key = tile * Tile::kKeys + group * kGroup;
      const int block = key >> a.block_shift;
      ids[group] = key < kv_len && block < a.p.max_blocks_per_seq ? blocks[block] : -1;
    }
  }

  // Keys behind kv_len become zeros: a probability of zero does not undo a NaN value.
  __device__ void load(int tile, uint32_t shared_keys) const {
    const int chunk = threadIdx.x % kLanes;
    if (kLanes != kChunks && chunk >= kChunks) return;
    const int in_block = a.p.block_size - 1;  // the bits of a key that are its slot
    const T* kv = pool<const T>(a.p.kv, a.p.indirect) + chunk * kVecSize;
    const int64_t to_values = static_cast<int64_t>(a.p.kv_heads) * a.p.block_size * kHeadDim;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int row = pass * kRowsPerPass + threadIdx.x / kLanes;
      const int id = ids[pass * kRowsPerPass / kGroup];
      const int key = tile * Tile::kKeys + row;
      const bool valid = key < kv_len && id >= 0 && id < a.p.num_blocks;
      const int64_t block = static_cast<int64_t>(id) * 2 * a.p.kv_heads + kv_head;
      const T* source = kv + ((block << a.block_shift) + (key & in_block)) * kHeadDim;
      const uint32_t target = shared_keys + chunk_offset<kHeadDim>(row, chunk);
      cp_async_16(target, valid ? source : kv, valid);
      cp_async_16(target + Tile::kTileBytes, valid ? source + to_values : kv, valid);
    }
  }
};

// Rows of q as the left operand of the products: 16 rows of one warp.
template <typename T, int kHeadDim>
struct RegisterQueries {
  uint32_t words[kHeadDim / 16][4];

  __device__ RegisterQueries(const Args& a, const Unit& unit, int warp_row, int unit_rows,
                             uint32_t) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + lane / 4 + 8 * half;
      const bool valid = row < unit_rows;
      const T* source = static_cast<const T*>(a.p.q) +
                        unit.row_offset(a, unit.first_index + (valid ? row : 0)) + lane % 4 * 2;
#pragma unroll
      for (int step = 0; step < kHeadDim / 16; ++step) {
        const uint32_t* pairs = reinterpret_cast<const uint32_t*>(source + step * 16);
        words[step][half] = valid ? pairs[0] : 0;
        words[step][2 + half] = valid ? pairs[4] : 0;
      }
    }
  }

  __device__ void get(int step, uint32_t (&out)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = words[step][i];
  }
};

template <typename T, int kHeadDim>
struct SharedQueries {
  uint32_t rows;  // shared address of the warp's rows

  __device__ SharedQueries(const Args& a, const Unit& unit, int warp_row, int unit_rows,
                           uint32_t shared)
      : rows(shared + warp_row * kHeadDim * 2) {
    constexpr int kChunks = kHeadDim / kVecSize;
    const T* q = static_cast<const T*>(a.p.q);
    __syncwarp();  // the last unit's reads are done
    for (int i = threadIdx.x % 32; i < 16 * kChunks; i += 32) {
      const int row = i / kChunks;
      const bool valid = warp_row + row < unit_rows;
      const int64_t offset = unit.row_offset(a, unit.first_index + (valid ? warp_row + row : 0));
      cp_async_16(rows + chunk_offset<kHeadDim>(row, i % kChunks),
                  q + offset + i % kChunks * kVecSize, valid);
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
  }

  __device__ void get(int step, uint32_t (&out)[4]) const {
    const int lane = threadIdx.x % 32;
    load_matrices(rows + chunk_offset<kHeadDim>(lane % 16, step * 2 + lane / 16), out);
  }
};

// One key tile for one warp: scores, softmax, accumulators.
template <typename T, typename Tile, typename Queries>
__device__ void attend(const Args& a, uint32_t shared_keys, int warp_key, int first_key,
                       const Queries& queries, const int (&visible)[2], RowPair& rows,
                       float (&out)[Tile::kHeadDim / 2]) {
  constexpr int kHeadDim = Tile::kHeadDim;
  constexpr int kWarpKeys = Tile::kWarpKeys;
  const int lane = threadIdx.x % 32;
  float scores[kWarpKeys / 2] = {};
  // Queries in registers need constant indices; those in shared memory save addresses instead.
  constexpr int kUnroll = Tile::kSharedQueries ? 4 : kHeadDim / 16;
#pragma unroll kUnroll
  for (int step = 0; step < kHeadDim / 16; ++step) {
    uint32_t q[4];
    queries.get(step, q);
#pragma unroll
    for (int group = 0; group < kWarpKeys / 16; ++group) {
      const int row = warp_key + group * 16 + lane / 16 * 8 + lane % 8;
      uint32_t k[4];
      load_matrices(shared_keys + chunk_offset<kHeadDim>(row, step * 2 + lane / 8 % 2), k);
      multiply_add<T>(&scores[group * 8], q, k[0], k[1]);
      multiply_add<T>(&scores[group * 8 + 4], q, k[2], k[3]);
    }
  }

  if (first_key + kWarpKeys > min(visible[0], visible[1])) {
    mask_scores(scores, first_key + lane % 4 * 2, visible);
  }
  float rescale[2];
  rows.update(scores, a.scale_log2, rescale);
  rescale_rows(out, rescale);

#pragma unroll
  for (int group = 0; group < kWarpKeys / 16; ++group) {
    uint32_t p[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto pair =
          Pair<T>::from_float(scores[group * 8 + 2 * i], scores[group * 8 + 2 * i + 1]);
      p[i] = reinterpret_cast<const uint32_t&>(pair);
    }
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      const int row = warp_key + group * 16 + lane / 8 % 2 * 8 + lane % 8;
      uint32_t v[4];
      load_matrices_transposed(
          shared_keys + Tile::kTileBytes + chunk_offset<kHeadDim>(row, step * 2 + lane / 16), v);
      multiply_add<T>(&out[step * 8], p, v[0], v[1]);
      multiply_add<T>(&out[step * 8 + 4], p, v[2], v[3]);
    }
  }
}

// Merges the states of the key warps in shared memory and writes rows or a partial state. The
// shared memory is that of the pipeline, which is drained before and may be filled after.
template <typename T, typename Tile>
__device__ void finish_unit(const Args& a, const Unit& unit, int unit_rows, char* shared,
                            const RowPair& rows, const float (&out)[Tile::kHeadDim / 2]) {
  constexpr int kHeadDim = Tile::kHeadDim;
  constexpr int kStride = Tile::kMergeStride;
  float* outs = reinterpret_cast<float*>(shared);
  SoftmaxState* states = reinterpret_cast<SoftmaxState*>(outs + Tile::kMergeRows * kStride);
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp * 16 + lane / 4 + 8 * half;  // key warps stand one behind the other
    const SoftmaxState state = rows.state(half, a.scale_log2);
    if (lane % 4 == 0) states[row] = state;
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      *reinterpret_cast<float2*>(&outs[row * kStride + i * 8 + lane % 4 * 2]) =
          make_float2(out[4 * i + 2 * half], out[4 * i + 2 * half + 1]);
    }
  }
  __syncthreads();

  constexpr int kVecs = kHeadDim / kVecSize;
  for (int i = threadIdx.x; i < unit_rows * kVecs; i += Tile::kThreads) {
    const int row = i / kVecs;
    const int column = i % kVecs * kVecSize;
    SoftmaxState state;
    float merged[kVecSize] = {};
#pragma unroll
    for (int key_warp = 0; key_warp < Tile::kKeyWarps; ++key_warp) {
      const int source = key_warp * Tile::kRows + row;
      const SoftmaxMerge merge = softmax_merge(state, states[source]);
      state = merge.state;
#pragma unroll
      for (int j = 0; j < kVecSize; ++j) {
        merged[j] = merged[j] * merge.scale_a + outs[source * kStride + column + j] * merge.scale_b;
      }
    }
    if (unit.partial < 0) {
      const float inverse = softmax_inverse(state);
#pragma unroll
      for (int j = 0; j < kVecSize; ++j) merged[j] *= inverse;
      Vec<T>::from_floats(merged).store(static_cast<T*>(a.p.out) + column +
                                        unit.row_offset(a, unit.first_index + row));
    } else {
      const int64_t at = static_cast<int64_t>(unit.partial) * Tile::kRows + row;
      float4* target = reinterpret_cast<float4*>(a.partials.accumulators + at * kHeadDim + column);
      target[0] = make_float4(merged[0], merged[1], merged[2], merged[3]);
      target[1] = make_float4(merged[4], merged[5], merged[6], merged[7]);
      if (column == 0) a.partials.states[at] = state;
    }
  }
  __syncthreads();
}

template <typename T, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, 2)
    portable_kernel(const __grid_constant__ Args a) {
  extern __shared__ __align__(128) char shared[];
  constexpr int kStages = Tile::kStages;
  using Queries = std::conditional_t<Tile::kSharedQueries, SharedQueries<T, Tile::kHeadDim>,
                                     RegisterQueries<T, Tile::kHeadDim>>;
  const uint32_t pipeline = shared_address(shared);
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int warp_row = warp % Tile::kRowWarps * 16;
  const int warp_key = warp / Tile::kRowWarps * Tile::kWarpKeys;
  allow_next_kernel();

  const float scale = choose_split<Tile, Tile::kThreads>(
      a, *reinterpret_cast<SplitScratch<Tile::kThreads>*>(shared));
  for (int round = 0;; ++round) {
    const Unit unit = find_unit<Tile>(a, scale, round);
    if (unit.index < 0) break;
    const int unit_rows = unit.rows(a, Tile::kRows);

    TileLoader<T, Tile> loader(a, unit);
    const auto load = [&](int tile) {
      if (tile < unit.tile_end) {
        loader.load(tile, pipeline + (tile - unit.tile_begin) % kStages * 2 * Tile::kTileBytes);
        loader.find_blocks(tile + 1);
      }
      cp_async_commit();
    };
    loader.find_blocks(unit.tile_begin);
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) load(unit.tile_begin + i);

    const Queries queries(a, unit, warp_row, unit_rows, pipeline + Tile::kPipelineBytes);
    int visible[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int index = unit.first_index + warp_row + lane / 4 + 8 * half;
      visible[half] = unit.sequence.visible(index, a.group);
    }
    RowPair rows;
    float out[Tile::kHeadDim / 2] = {};
    for (int tile = unit.tile_begin; tile < unit.tile_end; ++tile) {
      cp_async_wait<kStages - 2>();
      __syncthreads();  // the tile is there, and its predecessor's stage is free
      load(tile + kStages - 1);
      const uint32_t keys = pipeline + (tile - unit.tile_begin) % kStages * 2 * Tile::kTileBytes;
      attend<T, Tile>(a, keys, warp_key, tile * Tile::kKeys + warp_key, queries, visible, rows,
                      out);
    }
    cp_async_wait<0>();
    __syncthreads();
    if (unit.tile_begin < unit.tile_end) {
      finish_unit<T, Tile>(a, unit, unit_rows, shared, rows, out);
    }
  }
}

}  // namespace dense
}  // namespace trt_resa
