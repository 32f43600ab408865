// How dense_hopper.cuh brings tiles of K and V to shared memory: their layout, the rings of stages
// and the warps that copy.
#pragma once

#include "dense_schedule.cuh"
#include "tensor_copy.cuh"

namespace trt_resa {
namespace dense {

struct CacheMaps {
  CUtensorMap keys;    // [num_blocks * 2 * kv_heads, block_size, D], boxes of a block and a panel
  CUtensorMap values;  // [num_blocks * 2 * kv_heads, D / 64, block_size, 64], boxes of a block
};

template <int kHeadDim_>
struct HopperTile {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kRows = 128;
  // Accumulators of a warpgroup: D / 2 + kKeys / 2 registers per thread, and kKeys / 4 for the
  // probabilities: 160 at D = 128 and 176 at D = 256, of 232.
  static constexpr int kKeys = kHeadDim == 256 ? 64 : 128;
  static constexpr int kThreads = 384;
  static constexpr int kPanels = kHeadDim / 64;
  static constexpr int kPanelBytes = kKeys * 128;
  static constexpr int kQueryPanelBytes = kRows * 128;
  static constexpr int kTileBytes = kPanels * kPanelBytes;  // of K; as many of V
  static constexpr int kQueryBytes = kPanels * kQueryPanelBytes;
  static constexpr int kStages = kHeadDim == 64 ? 4 : kHeadDim == 128 ? 3 : 2;
  static constexpr int kAlignment = 1024;  // of the swizzle's atoms
  static constexpr int kBarrierBytes = 4 * kStages * 8;
  static constexpr int kSharedBytes =
      kAlignment + kQueryBytes + 2 * kStages * kTileBytes + kBarrierBytes;
  static_assert(kSharedBytes <= 227 * 1024);
};

// A ring of stages of K or V tiles with its full and empty barriers.
template <typename Tile>
struct Ring {
  uint32_t tiles;
  uint32_t barriers;  // kStages full ones, kStages empty ones
  int count = 0;      // tiles so far, on this side

  __device__ Ring(uint32_t tiles, uint32_t barriers) : tiles(tiles), barriers(barriers) {}
  __device__ int stage() const { return count % Tile::kStages; }
  __device__ int parity() const { return count / Tile::kStages % 2; }
  __device__ uint32_t tile() const { return tiles + stage() * Tile::kTileBytes; }
  __device__ uint32_t full() const { return barriers + stage() * 8; }
  __device__ uint32_t empty() const { return barriers + (Tile::kStages + stage()) * 8; }
};

// A copying warp: of K or of V.
template <typename Tile>
struct Producer {
  const Args& a;
  const CUtensorMap* map;
  Ring<Tile> ring;
  bool of_values;
  int lane;
  int nowhere;  // a last coordinate outside the tensor

  __device__ Producer(const Args& a, const CUtensorMap* map, const Ring<Tile>& ring, bool of_values)
      : a(a),
        map(map),
        ring(ring),
        of_values(of_values),
        lane(threadIdx.x % 32),
        nowhere(a.p.num_blocks * 2 * a.p.kv_heads) {}

  // The box of this lane: of V a block, of K a panel of one.
  __device__ void copy(int coordinate) {
    const int blocks = Tile::kKeys >> a.block_shift;  // at most 8
    barrier_wait(ring.empty(), ring.parity() ^ 1);
    if (lane == 0) barrier_arrive_expecting(ring.full(), Tile::kTileBytes);
    __syncwarp();
    if (of_values) {
      if (lane < blocks) {
        const int first_row = lane << a.block_shift;
        copy_box(ring.tile() + first_row * Tile::kHeadDim * 2, map, 0, 0, 0, coordinate,
                 ring.full());
      }
    } else if (lane < blocks * Tile::kPanels) {
      const int panel = lane % Tile::kPanels;
      const int first_row = lane / Tile::kPanels << a.block_shift;
      copy_box(ring.tile() + panel * Tile::kPanelBytes + first_row * 128, map, panel * 64, 0,
               coordinate, ring.full());
    }
    ++ring.count;
  }

  __device__ void run(const Unit& unit) {
    const auto& p = a.p;
    const int32_t* ids = p.block_table + static_cast<int64_t>(unit.index) * p.max_blocks_per_seq;
    const int held = min((unit.sequence.kv_len - 1) / p.block_size + 1, p.max_blocks_per_seq);
    const int part = unit.kv_head + (of_values ? p.kv_heads : 0);
    const int block_of_tile = of_values ? lane : lane / Tile::kPanels;
    const auto find = [&](int tile) {
      const int block = (tile * Tile::kKeys >> a.block_shift) + block_of_tile;
      return block < held ? ids[block] : -1;
    };
    int id = find(unit.tile_end - 1);
    for (int tile = unit.tile_end - 1; tile >= unit.tile_begin; --tile) {
      const int next = find(max(tile - 1, unit.tile_begin));  // under way during this copy
      copy(id >= 0 && id < p.num_blocks ? id * 2 * p.kv_heads + part : nowhere);
      id = next;
    }
  }
};

}  // namespace dense
}  // namespace trt_resa
