// Which work there is in a launch. Every thread block derives the same plan from the lengths.
//
// Items in order: score (by row, then chunk of blocks), append (by row), key (of the same chunks),
// attend (by row, then part of the selection; where blocks are only selected, one item per row that
// writes the selection).
// Rows are scored one after another, so that the first stand when thread blocks begin to attend.
#pragma once

#include "blocks.h"
#include "sparse_args.h"
#include "threads.cuh"

namespace trt_resa {
namespace sparse {

constexpr int kTileShift = 4;
constexpr int kTileKeys = 1 << kTileShift;  // keys that a warp attends to at a time
constexpr int kMaxScoreRounds = 16;         // at most the bits of a word
constexpr int kMinPartTiles = 8;            // smaller parts cost more to merge than they gain

struct Plan {
  int kv_len[kMaxBatch];  // 0: the sequence is ignored
  int query_row[kMaxBatch];
  int selected[kMaxBatch];    // blocks per row
  int score_end[kMaxBatch];   // score items of the sequences up to and including this one
  int attend_end[kMaxBatch];  // the same of attend items
  int score_rounds;           // per score item
  int score_items;            // and as many that make keys
  int append_items;
  int attend_items;

  __device__ int items() const { return 2 * score_items + append_items + attend_items; }
};

__device__ inline int warp_sum(int value) {
  return __reduce_add_sync(0xffffffffu, value);
}

// Over the lanes up to this one, of which those from kLanes on hold nothing.
template <int kLanes = 32>
__device__ inline int warp_inclusive_sum(int value) {
#pragma unroll
  for (int offset = 1; offset < kLanes; offset *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, value, offset);
    if (lane_index() >= offset) value += other;
  }
  return value;
}

// Of numbers that are not negative: unsigned, since that divides faster.
__device__ inline int div_up(int a, int b) {
  return static_cast<int>(static_cast<unsigned>(a + b - 1) / static_cast<unsigned>(b));
}

__device__ __forceinline__ int blocks_of(const Args& a, int kv_len) {
  return (kv_len + a.block_size - 1) >> a.block_shift;
}

// A sequence's row of the block table.
__device__ __forceinline__ const int32_t* table_of(const Args& a, int seq) {
  return a.block_table + static_cast<int64_t>(seq) * a.max_blocks_per_seq;
}

// Whether an entry of the block table can be read.
__device__ __forceinline__ bool is_pool_block(const Args& a, int entry) {
  return entry >= 0 && entry < a.num_blocks;
}

// Whether a block of a row of `blocks` is in every selection.
__device__ __forceinline__ bool is_forced(const Args& a, int block, int blocks) {
  return block < a.sink_blocks || block >= blocks - a.local_blocks;
}

// The pool's row of a block's first key, and how many rows behind a key its value is.
__device__ __forceinline__ int64_t key_row(const Args& a, int pool_block, int kv_head) {
  return (static_cast<int64_t>(pool_block) * 2 * a.kv_heads + kv_head) * a.block_size;
}
__device__ __forceinline__ int64_t rows_to_value(const Args& a) {
  return static_cast<int64_t>(a.kv_heads) * a.block_size;
}

// What a sequence has in this launch, as the arrays say.
struct SequenceLength {
  int kv_len;
  int query_row;
  int end_row;

  // Nothing waits for what is loaded yet.
  __device__ SequenceLength(const Args& a, int seq)
      : kv_len(a.kv_lens[seq]), query_row(seq), end_row(seq + 1) {
    if (a.cu_query_lens == nullptr) return;
    query_row = a.cu_query_lens[seq];
    end_row = a.cu_query_lens[seq + 1];
  }

  // Tokens; 0 where there is no row, no token or an impossible length.
  __device__ int usable(const Args& a) const {
    const bool has_row =
        a.cu_query_lens == nullptr ||
        (end_row == query_row + 1 && query_row >= 0 && query_row < a.append.num_rows);
    return has_row && kv_len > 0 && kv_len <= a.max_tokens ? kv_len : 0;
  }
};

__device__ __forceinline__ int32_t* row_counters(const Args& a, int row) {
  return a.counters.rows + static_cast<int64_t>(row) * row_words(a.roles);
}

// Blocks that are to be selected of a sequence of `kv_len` tokens.
__device__ inline int wanted_of(const Args& a, int kv_len) {
  const int blocks = blocks_of(a, kv_len);
  return kv_len <= a.dense_below ? blocks : num_selected(blocks, a.keep_ratio, a.min_blocks);
}

// Blocks in the selection of a sequence of `kv_len` tokens.
__device__ inline int selected_of(const Args& a, int seq, int kv_len) {
  if (kv_len == 0) return 0;
  if (a.given_counts != nullptr) {
    return max(0, min(a.given_counts[seq], min(a.max_selected, a.max_blocks_per_seq)));
  }
  return wanted_of(a, kv_len);
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
#pragma unroll 1
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
  const unsigned place = static_cast<unsigned>(index - begin);
  item.pieces = static_cast<int>(static_cast<unsigned>(ends[low] - begin) /
                                 static_cast<unsigned>(a.kv_heads));
  item.kv_head = static_cast<int>(place / static_cast<unsigned>(item.pieces));
  item.piece = static_cast<int>(place) - item.kv_head * item.pieces;
  item.first = index - item.piece;
  return item;
}

// The first warp divides what is attended to, the second what is scored; the others pass. A barrier
// must follow before the plan is read. round_blocks: blocks that a thread block scores at a time.
inline __device__ void make_plan(const Args& a, int round_blocks, Plan& plan) {
  if (threadIdx.x >= 64) return;
  const bool scores = threadIdx.x >= 32;
  const int lane = lane_index();
  const int tiles_per_block = a.block_size / kTileKeys;
  int* ends = scores ? plan.score_end : plan.attend_end;

  // The sequence's tiles to attend to or blocks to score, left in `ends` where there are more
  // sequences than lanes.
  int amount = 0, all = 0;
#pragma unroll 1
  for (int seq = lane; seq < a.batch_size; seq += 32) {
    const SequenceLength length(a, seq);
    const int kv_len = length.usable(a);
    const int blocks = blocks_of(a, kv_len);
    const int selected = selected_of(a, seq, kv_len);
    if (!scores) {
      plan.kv_len[seq] = kv_len;
      plan.query_row[seq] = length.query_row;
      plan.selected[seq] = selected;
      // A sequence has a part even where it sees nothing, and a row of zeros then.
      amount = kv_len == 0 ? 0 : max(selected * tiles_per_block, 1);
    } else {
      amount = (a.roles & kSelect) != 0 && selected < blocks ? blocks : 0;
    }
    ends[seq] = amount;
    all += amount;
  }
  all = warp_sum(all) * a.kv_heads;
  const int thread_blocks = static_cast<int>(gridDim.x);
  int unit = 1;  // blocks of a score item
  if (scores) {
    // One item per thread block, or several equal ones where there is much work.
    const int share = max(div_up(div_up(all, round_blocks), thread_blocks), 1);
    const int rounds = div_up(share, div_up(share, kMaxScoreRounds));
    unit = rounds * round_blocks;
    if (lane == 0) plan.score_rounds = rounds;
  }

  int items = 0;
#pragma unroll 1
  for (int base = 0; base < a.batch_size; base += 32) {
    const int seq = base + lane;
    if (a.batch_size > 32) amount = seq < a.batch_size ? ends[seq] : 0;
    int pieces = 0;
    if (scores) {
      pieces = div_up(amount, unit);
    } else if (amount > 0) {
      // As many parts as the row's share of the thread blocks, so that all are at work at once.
      const int64_t parts = min(thread_blocks, kMaxParts);
      const int share =
          static_cast<int>(static_cast<uint64_t>(amount * parts) / static_cast<uint64_t>(all));
      pieces = (a.roles & kAttend) != 0 ? max(min(share, amount / kMinPartTiles), 1) : 1;
    }
    const int end = items + warp_inclusive_sum(pieces) * a.kv_heads;
    if (seq < a.batch_size) ends[seq] = end;
    items = __shfl_sync(0xffffffffu, end, 31);
  }
  if (lane != 0) return;
  (scores ? plan.score_items : plan.attend_items) = items;
  if (scores) plan.append_items = (a.roles & kAppend) != 0 ? a.batch_size * a.kv_heads : 0;
}

// Score items of one row of a sequence.
__device__ inline int scored_items(const Args& a, const Plan& plan, int seq) {
  const int begin = seq == 0 ? 0 : plan.score_end[seq - 1];
  return (plan.score_end[seq] - begin) / a.kv_heads;
}

// What an attend item covers of its row's selection.
struct Part {
  int first_tile;
  int end_tile;
  int first_block;  // of which the first tile is one
  int end_block;
};

__device__ inline Part part_of(const Args& a, const Plan& plan, const RowItem& item) {
  const int tiles_per_block = a.block_size / kTileKeys;
  const int row_tiles = plan.selected[item.seq] * tiles_per_block;
  Part part;
  const unsigned pieces = item.pieces;
  part.first_tile = static_cast<int>(static_cast<unsigned>(item.piece * row_tiles) / pieces);
  part.end_tile = static_cast<int>(static_cast<unsigned>((item.piece + 1) * row_tiles) / pieces);
  const int shift = a.block_shift - kTileShift;
  part.first_block = part.first_tile >> shift;
  part.end_block = (part.end_tile + tiles_per_block - 1) >> shift;
  return part;
}

}  // namespace sparse
}  // namespace trt_resa
