// Which part of dense_attention a thread block computes, decided on the device.
//
// The rows of a sequence that share a KV head (row = query * group + head of the group) are cut
// into row tiles, its keys into key tiles. A unit is one row tile of one KV head against one piece
// of the key tiles; a sequence whose row tiles alone do not fill the chip has several pieces, and a
// second kernel merges their partial states. The grid is as large as the chip and knows no lengths:
// each thread block finds the cut from cu_query_lens and kv_lens for itself and takes every
// gridDim.x-th unit.
//
// Order of units: sequence, piece, row tile from the last (which sees the most keys) to the first,
// KV head. Neighbours run at the same time, so row tiles of one KV head find each other's keys in
// the L2 cache.
#pragma once

#include <cstdint>

#include "softmax_state.cuh"
#include "trt_resa/dense_attention.h"

namespace trt_resa {
namespace dense {

constexpr unsigned kAllLanes = 0xffffffffu;

// The cut is chosen from this many candidates, one per lane. Candidate i aims at
// split_sixteenths(i) / 16 units per thread block.
constexpr int kCandidates = 32;
constexpr int kMaxUnitsPerBlock = 4;
__host__ __device__ constexpr int split_sixteenths(int candidate) {
  return candidate < 16 ? candidate + 1 : 16 + 3 * (candidate - 15);
}
static_assert(split_sixteenths(kCandidates - 1) == 16 * kMaxUnitsPerBlock);

// What beginning and ending a unit costs, in key tiles.
constexpr float kUnitOverhead = 2.0f;

// Partial states that a grid of `blocks` may write. Split sequences have at most
// key_tiles * scale pieces, and scale is at most kMaxUnitsPerBlock * blocks / (all key tiles).
__host__ __device__ constexpr int max_partials(int blocks) {
  return kMaxUnitsPerBlock * blocks;
}

struct Args {
  trt_resa_dense_attention_params p;
  SoftmaxPartials partials;  // max_partials slots of Tile::kRows rows
  int group;                 // query heads of a KV head
  int blocks;                // grid of the attention kernel
  int block_shift;           // log2(block_size)
  float scale_log2;          // softmax_scale * log2(e)
};

// Below, Tile names the tile shape of a kernel: Tile::kRows packed rows, Tile::kKeys keys.

// One sequence and its cut. No rows: nothing to do.
struct Sequence {
  int first_row = 0;
  int rows = 0;
  int kv_len = 0;
  int row_tiles = 0;
  int key_tiles = 0;

  // Keys that packed row `index` (query * group + head) sees; all for rows of padding.
  __device__ int visible(int index, int group) const {
    return min(kv_len, kv_len - rows + index / group + 1);
  }
  __device__ int pieces(float scale) const {
    return max(1, min(key_tiles, static_cast<int>(static_cast<float>(key_tiles) * scale)));
  }
  // The first key tile of a piece; the first pieces may be one tile longer than the last.
  __device__ int piece_begin(int piece, int pieces) const {
    return piece * (key_tiles / pieces) + min(piece, key_tiles % pieces);
  }
};

template <typename Tile>
__device__ Sequence read_sequence(const Args& a, int index) {
  Sequence s;
  if (index >= a.p.batch_size) return s;
  const int first_row = a.p.cu_query_lens[index];
  const int rows = a.p.cu_query_lens[index + 1] - first_row;
  const int kv_len = a.p.kv_lens[index];
  if (first_row < 0 || rows <= 0 || rows > a.p.num_rows - first_row || kv_len < rows) return s;
  s.first_row = first_row;
  s.rows = rows;
  s.kv_len = kv_len;
  s.row_tiles = (rows * a.group - 1) / Tile::kRows + 1;
  s.key_tiles = (kv_len - 1) / Tile::kKeys + 1;
  return s;
}

// Shared memory for choose_split, free again after it.
template <int kThreads>
struct SplitScratch {
  int units[kThreads / 32][kCandidates];
  int longest[kThreads / 32][kCandidates];
};

// The pieces per key tile: pieces(scale) of a sequence. All threads of the block call it; the same
// value everywhere, in the attention and the merging kernel. Each candidate is judged by the rounds
// that its units need, a round being as long as the longest piece.
template <typename Tile, int kThreads>
__device__ float choose_split(const Args& a, SplitScratch<kThreads>& scratch) {
  constexpr int kWarps = kThreads / 32;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;

  int64_t work = 0;  // row tiles times key tiles
  for (int i = lane; i < a.p.batch_size; i += 32) {
    const Sequence s = read_sequence<Tile>(a, i);
    work += static_cast<int64_t>(s.row_tiles) * a.p.kv_heads * s.key_tiles;
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) work += __shfl_xor_sync(kAllLanes, work, mask);
  const float share = static_cast<float>(split_sixteenths(lane)) / 16.0f * a.blocks;
  const float scale = work > 0 ? share / static_cast<float>(work) : 0.0f;

  int my_units = 0, my_longest = 0;
  for (int i = warp; i < a.p.batch_size; i += kWarps) {
    const Sequence s = read_sequence<Tile>(a, i);
    if (s.rows == 0) continue;
    const int pieces = s.pieces(scale);
    my_units += s.row_tiles * a.p.kv_heads * pieces;
    my_longest = max(my_longest, (s.key_tiles - 1) / pieces + 1);
  }
  scratch.units[warp][lane] = my_units;
  scratch.longest[warp][lane] = my_longest;
  __syncthreads();
  for (int i = 1; i < kWarps; ++i) {
    const int other = (warp + i) % kWarps;
    my_units += scratch.units[other][lane];
    my_longest = max(my_longest, scratch.longest[other][lane]);
  }
  __syncthreads();

  const int rounds = (my_units + a.blocks - 1) / a.blocks;
  float best = static_cast<float>(rounds) * (static_cast<float>(my_longest) + kUnitOverhead);
  float best_scale = scale;
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, best, mask);
    const float other_scale = __shfl_xor_sync(kAllLanes, best_scale, mask);
    // The smaller scale wins a tie: fewer partial states.
    if (other < best || (other == best && other_scale < best_scale)) {
      best = other;
      best_scale = other_scale;
    }
  }
  return best_scale;
}

// Where the wanted item of a batch stands; `local` counts within its sequence.
struct Found {
  Sequence sequence;
  int index = -1;  // of the sequence; -1: there are fewer items
  int local = 0;
  int partials_before = 0;
  int pieces = 0;
};

// Finds an item among units, or, with kSplitRows, among the rows of out of split sequences. All
// lanes of a warp call it.
template <typename Tile, bool kSplitRows>
__device__ Found find_item(const Args& a, float scale, int wanted) {
  const int lane = threadIdx.x % 32;
  int items_before = 0, partials_before = 0;
  for (int base = 0; base < a.p.batch_size; base += 32) {
    const Sequence s = read_sequence<Tile>(a, base + lane);
    const int pieces = s.rows > 0 ? s.pieces(scale) : 0;
    const int tiles = s.row_tiles * a.p.kv_heads;
    const int partials = pieces > 1 ? tiles * pieces : 0;
    const int items = !kSplitRows ? tiles * pieces : pieces > 1 ? s.rows * a.p.q_heads : 0;
    int items_to = items, partials_to = partials;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other_items = __shfl_up_sync(kAllLanes, items_to, offset);
      const int other_partials = __shfl_up_sync(kAllLanes, partials_to, offset);
      if (lane >= offset) {
        items_to += other_items;
        partials_to += other_partials;
      }
    }
    const unsigned reached = __ballot_sync(kAllLanes, items_before + items_to > wanted);
    if (reached != 0) {
      const int owner = __ffs(reached) - 1;
      Found found;
      found.index = base + owner;
      found.local = wanted - items_before - __shfl_sync(kAllLanes, items_to - items, owner);
      found.partials_before =
          partials_before + __shfl_sync(kAllLanes, partials_to - partials, owner);
      found.pieces = __shfl_sync(kAllLanes, pieces, owner);
      found.sequence.first_row = __shfl_sync(kAllLanes, s.first_row, owner);
      found.sequence.rows = __shfl_sync(kAllLanes, s.rows, owner);
      found.sequence.kv_len = __shfl_sync(kAllLanes, s.kv_len, owner);
      found.sequence.row_tiles = __shfl_sync(kAllLanes, s.row_tiles, owner);
      found.sequence.key_tiles = __shfl_sync(kAllLanes, s.key_tiles, owner);
      return found;
    }
    items_before += __shfl_sync(kAllLanes, items_to, 31);
    partials_before += __shfl_sync(kAllLanes, partials_to, 31);
  }
  return Found{};
}

struct Unit {
  Sequence sequence;
  int index = -1;  // of the sequence; -1: no more units
  int kv_head = 0;
  int first_index = 0;  // first packed row of the row tile
  int tile_begin = 0;   // key tiles; none where the row tile sees nothing of the piece
  int tile_end = 0;
  int partial = -1;  // where the state goes, or -1: the rows are finished here

  // Tells the compiler that all lanes agree, so that loops over the unit need no divergent code.
  __device__ void make_uniform() {
    for (int* value : {&sequence.first_row, &sequence.rows, &sequence.kv_len, &index, &kv_head,
                       &first_index, &tile_begin, &tile_end, &partial}) {
      *value = __shfl_sync(kAllLanes, *value, 0);
    }
  }

  __device__ int rows(const Args& a, int tile_rows) const {
    return min(tile_rows, sequence.rows * a.group - first_index);
  }
  // Element offset of packed row `index` in q and out.
  __device__ int64_t row_offset(const Args& a, int index) const {
    const int64_t row = sequence.first_row + index / a.group;
    return (row * a.p.q_heads + kv_head * a.group + index % a.group) * a.p.head_dim;
  }
};

// The unit of a thread block in a round: every second round runs backwards, because units of one
// sequence become shorter from the first to the last.
__device__ inline int unit_of_round(int round) {
  const int place = round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
  return round * gridDim.x + place;
}

template <typename Tile>
__device__ Unit find_unit(const Args& a, float scale, int round) {
  const Found found = find_item<Tile, false>(a, scale, unit_of_round(round));
  Unit unit;
  if (found.index < 0) return unit;
  const Sequence& s = found.sequence;
  const int tiles = s.row_tiles * a.p.kv_heads;
  const int piece = found.local / tiles;
  const int tile = found.local % tiles;
  const int row_tile = s.row_tiles - 1 - tile / a.p.kv_heads;
  unit.sequence = s;
  unit.index = found.index;
  unit.kv_head = tile % a.p.kv_heads;
  unit.first_index = row_tile * Tile::kRows;
  const int last_index = min(unit.first_index + Tile::kRows, s.rows * a.group) - 1;
  const int seen_tiles = (s.visible(last_index, a.group) - 1) / Tile::kKeys + 1;
  unit.tile_begin = s.piece_begin(piece, found.pieces);
  unit.tile_end = min(s.piece_begin(piece + 1, found.pieces), seen_tiles);
  if (found.pieces > 1) unit.partial = found.partials_before + found.local;
  unit.make_uniform();
  return unit;
}

}  // namespace dense
}  // namespace trt_resa
