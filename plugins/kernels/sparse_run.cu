// The host's side of the sparse kernel: workspace, checks, choice of the instance.

#include <algorithm>

#include "blocks.h"
#include "launch.h"
#include "sparse_args.h"

namespace trt_resa {
namespace sparse {
namespace {

// Hands out pieces of one buffer, each aligned to 256 bytes. With a null buffer it only counts.
class Carver {
 public:
  explicit Carver(void* buffer) : begin_(reinterpret_cast<uintptr_t>(buffer)), at_(begin_) {}

  template <typename T>
  void take(T*& pointer, int64_t count) {
    pointer = reinterpret_cast<T*>(at_);
    at_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
  }
  size_t size() const { return at_ - begin_; }

 private:
  uintptr_t begin_;
  uintptr_t at_;
};

// The longest selection that a sequence within the extents can have.
int64_t max_selection(const Args& args) {
  const int64_t blocks = args.max_blocks_per_seq;
  const int64_t sparse = num_selected<int64_t>(blocks, args.keep_ratio, args.min_blocks);
  const int64_t dense = num_blocks(args.dense_below, args.block_size);
  const int64_t everything = dense < blocks ? dense : blocks;
  return sparse > everything ? sparse : everything;
}

int32_t check_selection(const Args& args) {
  if (args.max_blocks_per_seq > kMaxBlocks) return TRT_RESA_BAD_EXTENT;
  // Written so that NaN is refused too.
  if (!(args.keep_ratio > 0.0 && args.keep_ratio <= 1.0)) return TRT_RESA_BAD_SELECTION;
  if (args.min_blocks < 1 || args.dense_below < 0 || args.local_blocks < 0 ||
      args.sink_blocks < 0 || args.local_blocks > args.min_blocks ||
      args.sink_blocks > args.min_blocks - args.local_blocks) {
    return TRT_RESA_BAD_SELECTION;
  }
  // The step scores blocks while the last one is being written.
  if ((args.roles & kAppend) != 0 && args.local_blocks < 1) return TRT_RESA_BAD_SELECTION;
  const bool caller_gives_room = (args.roles & kAttend) == 0;
  return caller_gives_room && args.max_selected < max_selection(args) ? TRT_RESA_BAD_EXTENT
                                                                      : TRT_RESA_OK;
}

}  // namespace

Sizes carve(Args& args, void* workspace, void* counters) {
  const int64_t batch = args.batch_size;
  const int64_t rows = batch * args.kv_heads;
  const bool selects = (args.roles & kSelect) != 0;

  Carver counted(counters);
  counted.take(args.counters.ticket, 1);
  counted.take(args.counters.draws, 1);
  counted.take(args.counters.rows, rows * row_words(args.roles));

  Carver scratch(workspace);
  args.group = args.q_heads / args.kv_heads;
  args.block_shift = args.block_size == 16 ? 4 : args.block_size == 32 ? 5 : 6;
  args.max_tokens = static_cast<int32_t>(std::min<int64_t>(
      static_cast<int64_t>(args.max_blocks_per_seq) * args.block_size, INT32_MAX));
  args.key_pitch = (args.max_blocks_per_seq + 3) / 4 * 4;
  args.term_pitch = (args.group + 3) / 4 * 4;
  args.sum_pitch = (args.max_blocks_per_seq + kMinScored - 1) / kMinScored;
  if (selects) {
    scratch.take(args.terms, rows * args.key_pitch * args.term_pitch);
    scratch.take(args.term_sums, rows * args.sum_pitch * args.term_pitch);
    scratch.take(args.keys, rows * args.key_pitch);
  }
  if ((args.roles & kAttend) != 0) {
    if (selects) {
      args.max_selected = static_cast<int32_t>(max_selection(args));
      scratch.take(args.selection, rows * args.max_selected);
    }
    const int64_t partial_rows = (rows + kMaxParts) * (args.q_heads / args.kv_heads);
    scratch.take(args.partials.states, partial_rows);
    scratch.take(args.partials.accumulators, partial_rows * args.head_dim);
  }
  return Sizes{scratch.size(), counted.size()};
}

int32_t check(const Args& args) {
  if (args.dtype != TRT_RESA_FLOAT16 && args.dtype != TRT_RESA_BFLOAT16) return TRT_RESA_BAD_DTYPE;
  if (args.head_dim != 64 && args.head_dim != 96 && args.head_dim != 128 && args.head_dim != 256) {
    return TRT_RESA_BAD_HEAD_DIM;
  }
  if (args.block_size != 16 && args.block_size != 32 && args.block_size != 64) {
    return TRT_RESA_BAD_BLOCK_SIZE;
  }
  if (args.kv_heads < 1 || args.q_heads < 1 || args.q_heads % args.kv_heads != 0) {
    return TRT_RESA_BAD_HEADS;
  }
  if (args.q_heads / args.kv_heads > kMaxGroup) return TRT_RESA_BAD_HEADS;
  if (args.batch_size < 0 || args.batch_size > kMaxBatch) return TRT_RESA_BAD_EXTENT;
  if (args.batch_size > 0 &&
      (args.max_blocks_per_seq < 1 || args.num_blocks < 1 || args.max_selected < 0)) {
    return TRT_RESA_BAD_EXTENT;
  }
  if (!(args.score_scale > 0.0f)) return TRT_RESA_BAD_SCALE;
  return args.batch_size > 0 && (args.roles & kSelect) != 0 ? check_selection(args) : TRT_RESA_OK;
}

int32_t run(const Args& args, void* stream) {
  switch (args.head_dim) {
    case 64:
      return run_head_dim_64(args, stream);
    case 96:
      return run_head_dim_96(args, stream);
    case 128:
      return run_head_dim_128(args, stream);
    default:
      return run_head_dim_256(args, stream);
  }
}

}  // namespace sparse
}  // namespace trt_resa
