// Which work there is in a launch. Every thread block derives the same plan from the lengths.
//
// Items in order: append, score (by row, then chunk of blocks), attend (by row, then part of the
// selection), merge (by query head, then slice of columns). Rows are scored one after another, so
// the selection of one hides behind the scoring of the next, and that of the last behind the
// attention of the first.
#pragma once

#include "blocks.h"
#include "sparse_args.h"

namespace trt_resa {
namespace sparse {

constexpr int kTileKeys = 16;  // keys that a warp attends to at a time
constexpr int kMaxScoreRounds = 8;
constexpr int kScoreItemsPerThreadBlock = 2;
constexpr int kPartsPerThreadBlock = 1;  // into which the tiles of all rows are divided

struct Plan {
  int kv_len[kMaxBatch];  // 0: the sequence is ignored
  int query_row[kMaxBatch];
  int selected[kMaxBatch];    // blocks per row
  int score_end[kMaxBatch];   // score items of the sequences up to and including this one
  int attend_end[kMaxBatch];  // the same of attend items
  int score_rounds;           // per score item
  int part_tiles;             // tiles per attend item
  // Numbers of the items: [0, append_end) append, [append_end, score_end_all) score, and so on.
  int append_items;
  int score_items;
  int attend_items;
  int merge_items;

  __device__ int items() const { return append_items + score_items + attend_items + merge_items; }
};

__device__ inline int warp_sum(int value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
  return value;
}

__device__ inline int warp_inclusive_sum(int value) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, value, offset);
    if (static_cast<int>(threadIdx.x % 32) >= offset) value += other;
  }
  return value;
}

__device__ inline int div_up(int a, int b) {
  return (a + b - 1) / b;
}

__device__ __forceinline__ int blocks_of(const Args& a, int kv_len) {
  return (kv_len + a.block_size - 1) >> a.block_shift;
}

// Tokens of a sequence in this launch; 0 where it has no row, no token or an impossible length.
__device__ inline int usable_length(const Args& a, int seq, int* query_row) {
  *query_row = seq;
  const int kv_len = a.kv_lens[seq];
  if (a.cu_query_lens != nullptr) {
    *query_row = a.cu_query_lens[seq];
    const int rows = a.cu_query_lens[seq + 1] - *query_row;
    if (rows != 1 || *query_row < 0 || *query_row >= a.append.num_rows) return 0;
  }
  const int64_t room = static_cast<int64_t>(a.max_blocks_per_seq) * a.block_size;
  return kv_len > 0 && kv_len <= room ? kv_len : 0;
}

// Called by all threads; one warp works. A barrier must follow before the plan is read.
// kWarps: warps of the thread block; round_blocks: blocks that it scores at a time;
// merge_slices: merge items per query head.
template <int kWarps>
__device__ void make_plan(const Args& a, int round_blocks, int merge_slices, Plan& plan) {
  if (threadIdx.x >= 32) return;
  const int lane = threadIdx.x;
  const int tiles_per_block = a.block_size / kTileKeys;
  const int limit = min(a.max_selected, a.max_blocks_per_seq);

  int tiles = 0, scored = 0;
  for (int seq = lane; seq < a.batch_size; seq += 32) {
    int query_row;
    const int kv_len = usable_length(a, seq, &query_row);
    const int blocks = blocks_of(a, kv_len);
    int selected;
    if (a.given_counts != nullptr) {
      selected = max(0, min(a.given_counts[seq], limit));
    } else if (kv_len <= a.dense_below) {
      selected = blocks;
    } else {
      selected = static_cast<int>(num_selected(blocks, a.keep_ratio, a.min_blocks));
    }
    if (kv_len == 0) selected = 0;
    plan.kv_len[seq] = kv_len;
    plan.query_row[seq] = query_row;
    plan.selected[seq] = selected;
    tiles += selected * tiles_per_block;
    if (selected < blocks) scored += blocks;
  }
  // No fewer tiles than warps, and no more parts than slots.
  const int parts = min(static_cast<int>(gridDim.x) * kPartsPerThreadBlock, kMaxParts);
  const int all_tiles = warp_sum(tiles) * a.kv_heads;
  const int part_tiles = div_up(max(div_up(all_tiles, parts), 1), kWarps) * kWarps;

  // Two score items per thread block where there is work enough, so that the first rows are chosen
  // from while the last are scored; several rounds each, since an item costs more than its loads.
  const int all_rounds = div_up(warp_sum(scored) * a.kv_heads, round_blocks);
  const int score_rounds = max(
      1,
      min(all_rounds / (kScoreItemsPerThreadBlock * static_cast<int>(gridDim.x)), kMaxScoreRounds));

  int score_items = 0, attend_items = 0;
  for (int base = 0; base < a.batch_size; base += 32) {
    const int seq = base + lane;
    int chunks = 0, pieces = 0;
    if (seq < a.batch_size && plan.kv_len[seq] > 0) {
      const int blocks = blocks_of(a, plan.kv_len[seq]);
      const bool everything = plan.selected[seq] == blocks;
      chunks = everything ? 1 : div_up(blocks, round_blocks * score_rounds);
      pieces = max(div_up(plan.selected[seq] * tiles_per_block, part_tiles), 1);
    }
    if ((a.roles & kSelect) == 0) chunks = 0;
    if ((a.roles & kAttend) == 0) pieces = 0;
    const int score_end = score_items + warp_inclusive_sum(chunks * a.kv_heads);
    const int attend_end = attend_items + warp_inclusive_sum(pieces * a.kv_heads);
    if (seq < a.batch_size) {
      plan.score_end[seq] = score_end;
      plan.attend_end[seq] = attend_end;
    }
    score_items = __shfl_sync(0xffffffffu, score_end, 31);
    attend_items = __shfl_sync(0xffffffffu, attend_end, 31);
  }
  if (lane == 0) {
    const int heads = a.q_heads + 2 * a.kv_heads;
    plan.score_rounds = score_rounds;
    plan.part_tiles = part_tiles;
    plan.append_items = (a.roles & kAppend) != 0 ? a.batch_size * div_up(heads, kWarps) : 0;
    plan.score_items = score_items;
    plan.attend_items = attend_items;
    plan.merge_items = (a.roles & kAttend) != 0 ? a.batch_size * a.q_heads * merge_slices : 0;
  }
}

// One of the equal pieces of work of one row.
struct RowItem {
  int seq;
  int kv_head;
  int piece;
  int pieces;  // of the row
  int first;   // index of the row's first piece among all items of this kind

  __device__ int row(const Args& a) const { return seq * a.kv_heads + kv_head; }
};

// `ends` is score_end or attend_end, `index` an item of that kind.
__device__ inline RowItem find_row_item(const Args& a, const int (&ends)[kMaxBatch], int index) {
  int low = 0, high = a.batch_size - 1;  // the first sequence that ends beyond `index`
  while (low < high) {
    const int middle = (low + high) / 2;
    if (ends[middle] > index) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  const int begin = low == 0 ? 0 : ends[low - 1];
  RowItem item;
  item.seq = low;
  item.pieces = (ends[low] - begin) / a.kv_heads;
  item.kv_head = (index - begin) / item.pieces;
  item.piece = (index - begin) % item.pieces;
  item.first = index - item.piece;
  return item;
}

}  // namespace sparse
}  // namespace trt_resa
