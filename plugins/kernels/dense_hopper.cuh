// dense_attention with wgmma and tensor copies, for compute capability 9.0 (sm_90a).
//
// A thread block has three warpgroups. Of the first, one warp copies tiles of K into a ring of
// stages, one box per cache block and panel of 64 columns, and one those of V, a box per block; the
// block table is read by the lane that copies. The other two take 64 rows of the row tile each and
// walk its key tiles from the last to the first, so that only the first ones need a mask. In a step
// the warpgroup issues the scores of the next tile and the product of the present probabilities
// with V together, and takes the softmax of the next tile while V is multiplied. The two warpgroups
// take turns at issuing: one's softmax runs beside the other's products.
//
// The tensor maps come from the host. Where only the device knows the cache's address, each thread
// block puts copies with that address into the workspace and copies by them.
//
// Boxes of blocks that a sequence does not have lie outside the tensor and arrive as zeros. Slots
// behind kv_len in its last block may hold anything: their scores are masked, and their V rows are
// zeroed in shared memory, because a probability of zero does not undo a NaN value.
#pragma once

#include "dense_hopper_tiles.cuh"
#include "dense_schedule.cuh"
#include "dense_softmax.cuh"
#include "dependent_launch.cuh"
#include "mma.cuh"
#include "pool.cuh"
#include "tensor_copy.cuh"
#include "vec.h"
#include "wgmma.cuh"

namespace trt_resa {
namespace dense {

struct HopperArgs {
  CacheMaps cache;
  CacheMaps* placed;  // one per thread block: `cache` with the address that kv points to
  Args a;
};

// A warpgroup that computes 64 rows.
template <typename T, typename Tile>
struct Consumer {
  static constexpr int kHeadDim = Tile::kHeadDim;
  static constexpr int kKeys = Tile::kKeys;
  // Named barriers: of a warpgroup, and whose turn it is to issue.
  static constexpr int kOwnBarrier = 1;
  static constexpr int kTurnBarrier = 3;

  const Args& a;
  Ring<Tile>& keys;
  Ring<Tile>& values;
  uint32_t queries;  // shared address of the warpgroup's rows
  int group;         // 0 or 1
  int thread;        // in the warpgroup
  int visible[2];
  RowPair rows;
  float out[kHeadDim / 2];
  uint32_t probabilities[kKeys / 16][4];

  __device__ Consumer(const Args& a, Ring<Tile>& keys, Ring<Tile>& values, uint32_t queries,
                      int group)
      : a(a),
        keys(keys),
        values(values),
        queries(queries + group * 64 * 128),
        group(group),
        thread(threadIdx.x % 128) {}

  __device__ int row_of(int half) const { return thread / 32 * 16 + thread % 32 / 4 + 8 * half; }

  __device__ void load_queries(const Unit& unit) {
    constexpr int kChunks = kHeadDim / kVecSize;
    const int unit_rows = unit.rows(a, Tile::kRows);
    const T* q = static_cast<const T*>(a.p.q);
    named_barrier_sync(kOwnBarrier + group, 128);  // no warp multiplies the last unit's rows now
#pragma unroll 4
    for (int i = thread; i < 64 * kChunks; i += 128) {
      const int row = i / kChunks;
      const int chunk = i % kChunks;
      const bool valid = group * 64 + row < unit_rows;
      const int index = unit.first_index + (valid ? group * 64 + row : 0);
      cp_async_16(
          queries + chunk / 8 * Tile::kQueryPanelBytes + row * 128 + ((chunk ^ row) % 8) * 16,
          q + unit.row_offset(a, index) + chunk * kVecSize, valid);
    }
    cp_async_commit();
    cp_async_wait<0>();
    fence_async_proxy();
    named_barrier_sync(kOwnBarrier + group, 128);
  }

  // Issues scores = q * K^T of the tile at hand.
  __device__ void issue_scores(float (&scores)[kKeys / 2]) {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      const int in_panel = step % 4 * 32;
      wgmma_shared(scores,
                   panel_descriptor(queries + step / 4 * Tile::kQueryPanelBytes + in_panel, 0),
                   panel_descriptor(keys.tile() + step / 4 * Tile::kPanelBytes + in_panel, 0),
                   step > 0, T());
    }
    wgmma_commit();
  }

  // Issues out += probabilities * V of the tile at hand.
  __device__ void issue_values() {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      wgmma_registers(out, probabilities[step],
                      panel_descriptor(values.tile() + value_row(step * 16), a.p.block_size * 128),
                      T());
    }
    wgmma_commit();
  }

  // Byte offset of a key's first panel in a tile of V; the others follow at block_size rows of 128.
  __device__ int value_row(int key) const {
    const int in_block = key & (a.p.block_size - 1);
    return (key - in_block) * kHeadDim * 2 + in_block * 128;
  }

  // Both warpgroups zero the rows behind kv_len, each for itself.
  __device__ void wait_for_values(int tile, int kv_len) {
    barrier_wait(values.full(), values.parity());
    const int behind = kv_len - tile * kKeys;
    const int in_block = a.p.block_size - 1;
    if (behind >= kKeys || (behind & in_block) == 0) return;
    const int end = (behind | in_block) + 1;
#pragma unroll 1
    for (int i = behind * 8 + thread; i < end * 8; i += 128) {
#pragma unroll
      for (int panel = 0; panel < Tile::kPanels; ++panel) {
        const uint32_t target =
            values.tile() + value_row(i / 8) + panel * a.p.block_size * 128 + i % 8 * 16;
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};\n" ::"r"(target), "r"(0) : "memory");
      }
    }
    fence_async_proxy();
    named_barrier_sync(kOwnBarrier + group, 128);
  }

  __device__ void release(Ring<Tile>& ring) {
    if (thread % 32 == 0) barrier_arrive(ring.empty());
    ++ring.count;
  }

  __device__ void convert(const float (&scores)[kKeys / 2]) {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) {
      const auto pair = Pair<T>::from_float(scores[2 * i], scores[2 * i + 1]);
      probabilities[i / 4][i % 4] = reinterpret_cast<const uint32_t&>(pair);
    }
  }

  __device__ void mask(float (&scores)[kKeys / 2], int tile) const {
    mask_scores(scores, tile * kKeys + thread % 4 * 2, visible);
  }

  template <bool kMasked>
  __device__ void step(int tile, int kv_len) {
    float scores[kKeys / 2];
    float rescale[2];
    barrier_wait(keys.full(), keys.parity());
    named_barrier_sync(kTurnBarrier + group, 256);
    issue_scores(scores);
    wait_for_values(tile + 1, kv_len);
    issue_values();
    named_barrier_arrive(kTurnBarrier + (group ^ 1), 256);
    wgmma_wait<1>();
    release(keys);
    // The two traps are never reached: their branches keep the compiler from moving the arrival
    // behind the softmax, which refills the stage too late, and the softmax behind the wait.
    if (a.blocks == 0) __trap();
    if (kMasked) mask(scores, tile);
    rows.update(scores, a.scale_log2, rescale);
    if (rows.sum[0] + rows.sum[1] < 0.0f) __trap();
    wgmma_wait<0>();
    release(values);
    rescale_rows(out, rescale);
    convert(scores);
  }

  __device__ void run(const Unit& unit) {
    const int kv_len = unit.sequence.kv_len;
    load_queries(unit);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int index = unit.first_index + group * 64 + row_of(half);
      visible[half] = unit.sequence.visible(index, a.group);
    }
    // Tiles from here on hold keys that some row must not see.
    const int first_masked = unit.sequence.visible(unit.first_index + group * 64, a.group) / kKeys;
    rows = RowPair();
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) out[i] = 0.0f;

    int tile = unit.tile_end - 1;
    {
      float scores[kKeys / 2];
      float rescale[2];
      barrier_wait(keys.full(), keys.parity());
      issue_scores(scores);
      wgmma_wait<0>();
      release(keys);
      mask(scores, tile);
      rows.update(scores, a.scale_log2, rescale);
      convert(scores);
    }
    for (--tile; tile >= max(unit.tile_begin, first_masked); --tile) step<true>(tile, kv_len);
    for (; tile >= unit.tile_begin; --tile) step<false>(tile, kv_len);
    wait_for_values(unit.tile_begin, kv_len);
    issue_values();
    wgmma_wait<0>();
    release(values);
    finish(unit);
  }

  // Writes rows or a partial state.
  __device__ void finish(const Unit& unit) {
    const int unit_rows = unit.rows(a, Tile::kRows);
    const int lane = thread % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = group * 64 + row_of(half);
      const SoftmaxState state = rows.state(half, a.scale_log2);
      if (row >= unit_rows) continue;
      if (unit.partial < 0) {
        const float inverse = softmax_inverse(state);
        T* target =
            static_cast<T*>(a.p.out) + lane % 4 * 2 + unit.row_offset(a, unit.first_index + row);
#pragma unroll
        for (int i = 0; i < kHeadDim / 8; ++i) {
          const auto pair = Pair<T>::from_float(out[4 * i + 2 * half] * inverse,
                                                out[4 * i + 2 * half + 1] * inverse);
          *reinterpret_cast<uint32_t*>(target + 8 * i) = reinterpret_cast<const uint32_t&>(pair);
        }
      } else {
        const int64_t at = static_cast<int64_t>(unit.partial) * Tile::kRows + row;
        float* target = a.partials.accumulators + at * kHeadDim + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < kHeadDim / 8; ++i) {
          *reinterpret_cast<float2*>(target + 8 * i) =
              make_float2(out[4 * i + 2 * half], out[4 * i + 2 * half + 1]);
        }
        if (lane % 4 == 0) a.partials.states[at] = state;
      }
    }
  }
};

template <typename T, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    hopper_kernel(const __grid_constant__ HopperArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ char shared[];
  __shared__ alignas(128) CUtensorMap scratch_maps[2];
  const Args& a = args.a;
  const uint32_t queries =
      (shared_address(shared) + Tile::kAlignment - 1) / Tile::kAlignment * Tile::kAlignment;
  const uint32_t key_tiles = queries + Tile::kQueryBytes;
  const uint32_t value_tiles = key_tiles + Tile::kStages * Tile::kTileBytes;
  const uint32_t barriers = value_tiles + Tile::kStages * Tile::kTileBytes;
  Ring<Tile> keys(key_tiles, barriers);
  Ring<Tile> values(value_tiles, barriers + 2 * Tile::kStages * 8);
  allow_next_kernel();
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tile::kStages; ++i) {
      for (const uint32_t base : {keys.barriers, values.barriers}) {
        barrier_init(base + i * 8, 1);
        barrier_init(base + (Tile::kStages + i) * 8, 8);  // a lane of each consuming warp
      }
    }
    barrier_init_fence();
  }
  const float scale = choose_split<Tile, Tile::kThreads>(
      a, *reinterpret_cast<SplitScratch<Tile::kThreads>*>(shared));

  const int warpgroup = threadIdx.x / 128;
  if (warpgroup == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;\n");
    const int warp = threadIdx.x / 32;
    if (warp >= 2) return;
    const bool of_values = warp == 1;
    const CUtensorMap* map = of_values ? &args.cache.values : &args.cache.keys;
    if (a.p.indirect) {
      CacheMaps& maps = args.placed[blockIdx.x];
      CUtensorMap* const placed = of_values ? &maps.values : &maps.keys;
      place_tensor_map(*map, pool<const void>(a.p.kv, 1), scratch_maps[warp], placed);
      map = placed;
    }
    Producer<Tile> producer(a, map, of_values ? values : keys, of_values);
    for (int round = 0;; ++round) {
      const Unit unit = find_unit<Tile>(a, scale, round);
      if (unit.index < 0) break;
      if (unit.tile_begin < unit.tile_end) producer.run(unit);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;\n");
    Consumer<T, Tile> consumer(a, keys, values, queries, warpgroup - 1);
    // The first turn is the first warpgroup's.
    if (consumer.group == 1) named_barrier_arrive(consumer.kTurnBarrier, 256);
    for (int round = 0;; ++round) {
      const Unit unit = find_unit<Tile>(a, scale, round);
      if (unit.index < 0) break;
      if (unit.tile_begin < unit.tile_end) consumer.run(unit);
    }
    // The last turn was given to the first warpgroup and is not taken otherwise.
    if (consumer.group == 0) named_barrier_sync(consumer.kTurnBarrier, 256);
  }
#endif
}

}  // namespace dense
}  // namespace trt_resa
