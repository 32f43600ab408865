// What the kernel of the sparse step is given, and the layout of its workspace. Host and device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "blocks.h"
#include "gpu_map.h"
#include "softmax_state.cuh"
#include "trt_resa/kv_append.h"

namespace trt_resa {
namespace sparse {

// The roles of a launch: block_select has the second, sparse_decode the third, the step all.
enum Role : int { kAppend = 1, kSelect = 2, kAttend = 4 };

constexpr int kMaxBatch = 256;
constexpr int kMaxGroup = 16;
constexpr int kMaxBlocks = 65536;  // per sequence, where blocks are selected
constexpr int kBins = 1024;        // of the histogram of keys (sparse_topk.cuh)
constexpr int kMaxParts = 256;     // into which all rows together are split, beyond one each
constexpr int kMinScored = 32;     // blocks of a score item that is not its row's last

// What lasts from call to call. It starts as zeros and each launch leaves it as zeros, so a
// captured graph replays without a memset. A row is one KV head of one sequence; rows = batch_size
// * kv_heads.
struct Counters {
  int32_t* ticket;            // the next work item
  unsigned long long* draws;  // of clusters for rows, a byte for each GPC
  int32_t* rows;              // [rows, row_words] of RowCounters
};

// The words of one row. Those of neighbouring rows lie in different lines of 128 bytes.
constexpr int kScoredWord = 0;      // score items done
constexpr int kAppendedWord = 1;    // whether the new token stands
constexpr int kAttendedWord = 2;    // attend items done
constexpr int kKeyedWord = 3;       // key items done
constexpr int kHistogramWord = 32;  // [kBins] of the row's keys, where blocks are selected

TRT_RESA_HOST_DEVICE constexpr int row_words(int32_t roles) {
  return kHistogramWord + ((roles & kSelect) != 0 ? kBins : 0);
}

// Where clusters take rows: as evenly as is known.
struct Placement {
  GpuMap map;
  int32_t per_gpc;  // rows, as far as enough clusters lie elsewhere
  int32_t per_half;
};

inline Placement place_rows(const GpuMap& map, int rows) {
  if (map.gpcs == 0) return {map, rows, rows};
  return {map, (rows + map.gpcs - 1) / map.gpcs, (rows + 1) / 2};
}

struct Args {
  trt_resa_kv_append_params append;

  const void* q;
  const void* kv;
  const void* summary;
  void* out;
  const int32_t* cu_query_lens;  // null: sequence b owns row b
  const int32_t* kv_lens;
  const int32_t* block_table;
  const int32_t* given_counts;  // of a selection that is given; null where blocks are selected
  int32_t* selection;
  int32_t* counts;  // to be written, or null

  Counters counters;
  float* terms;  // [rows, key_pitch, term_pitch] of scores
  // [rows, sum_pitch, term_pitch] the sums of 2^term over each score item's blocks
  SoftmaxState* term_sums;
  uint32_t* keys;  // [rows, key_pitch] scores as ordered integers
  SoftmaxPartials partials;

  int32_t roles;
  int32_t batch_size;
  int32_t max_blocks_per_seq;
  int32_t num_blocks;
  int32_t max_selected;
  int32_t q_heads;
  int32_t kv_heads;
  int32_t group;  // query heads of a KV head
  int32_t head_dim;
  int32_t block_size;
  int32_t block_shift;  // log2 of block_size: the device divides slowly
  int32_t max_tokens;   // of a sequence, as far as the block table goes
  int32_t min_blocks;
  int32_t local_blocks;
  int32_t sink_blocks;
  int32_t dense_below;
  int32_t dtype;
  int32_t settled;     // 0: the kernel before may write anything; else see trt_resa/sparse_step.h
  int32_t key_pitch;   // blocks
  int32_t term_pitch;  // heads
  int32_t sum_pitch;   // score items
  float score_scale;   // softmax_scale * log2(e)
  double keep_ratio;
  Placement placement;
};

struct Sizes {
  size_t workspace;
  size_t counters;
};

// The one place that knows the order and sizes of the two buffers: points `args`, whose roles and
// extents stand, into them, sets what follows from the extents, and returns how large they must be.
// The selection lies in the workspace where the step keeps it to itself: where all roles are set.
Sizes carve(Args& args, void* workspace, void* counters);

// What the roles of `args` cannot serve; the caller has checked pointers that `args` does not hold.
int32_t check(const Args& args);

// Launches `args`, which passed the check.
int32_t run(const Args& args, void* stream);

// One each in sparse_head_dim_<D>.cu.
int32_t run_head_dim_64(const Args& args, void* stream);
int32_t run_head_dim_96(const Args& args, void* stream);
int32_t run_head_dim_128(const Args& args, void* stream);
int32_t run_head_dim_256(const Args& args, void* stream);

}  // namespace sparse
}  // namespace trt_resa
