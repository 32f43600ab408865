/* block_select: the blocks that a sparse step attends to, chosen from the summaries. */
#ifndef TRT_RESA_BLOCK_SELECT_H
#define TRT_RESA_BLOCK_SELECT_H

#include "trt_resa/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Shapes are row-major and contiguous. B = batch_size, D = head_dim; `model` is the 16-bit type
 * named by `dtype`.
 *
 * Row b of q belongs to sequence b. With c and r half the sum and half the difference of a block's
 * max and min, the term of a block for a query is c . q + sqrt(sum over d of (r_d q_d)^2), times
 * softmax_scale, in fp32, but for max - min and the squares, which are rounded to `model`. A
 * block's score for a KV head is the sum, over the group's queries, of the softmax of the terms
 * over the sequence's blocks, those aside that every selection holds. A term that is NaN is left
 * out of the sums of other blocks. The selection of a sequence of n blocks holds its last
 * local_blocks, its first sink_blocks and those of the highest scores, trt_resa_num_selected(n,
 * keep_ratio, min_blocks) in all; of equal scores the lower block comes first, and NaN comes before
 * every number. A sequence of at most dense_below tokens selects all of its blocks. Sequences whose
 * kv_len is 0 or impossible are ignored: their count is 0 and their rows of `selection` are not
 * written. A block whose block_table entry is no block of the pool comes last.
 */
typedef struct trt_resa_block_select_params {
  /* inputs */
  const void* q;              /* model [B, q_heads, D], as kv_append writes it */
  const void* summary;        /* model [num_blocks, kv_heads, 2, D]: 0 = min, 1 = max */
  const int32_t* kv_lens;     /* [B] tokens in the cache */
  const int32_t* block_table; /* [B, max_blocks_per_seq], -1 unused */
  /* outputs */
  int32_t* selection; /* [B, kv_heads, max_selected] indices of the sequence's blocks, ascending */
  int32_t* counts;    /* [B] of them that are valid; the rest is not written */
  void* workspace;    /* trt_resa_block_select_workspace bytes of any content */
  void* counters;     /* trt_resa_block_select_counters bytes: zero before the first call, then left
                         alone; enough for a batch is enough for smaller ones. Calls that
                         may overlap need counters of their own */
  /* extents */
  int32_t batch_size;         /* at most 256 */
  int32_t max_blocks_per_seq; /* at most 65,536 */
  int32_t num_blocks;
  int32_t max_selected; /* room for the longest selection that the extents allow */
  int32_t q_heads;      /* 1 to 16 per KV head */
  int32_t kv_heads;
  int32_t head_dim;   /* 64, 96, 128 or 256 */
  int32_t block_size; /* 16, 32 or 64 */
  int32_t min_blocks; /* at least local_blocks + sink_blocks */
  int32_t local_blocks;
  int32_t sink_blocks;
  int32_t dense_below;
  int32_t dtype;   /* enum trt_resa_dtype */
  int32_t settled; /* see sparse_step.h; q and summary may be written as well */
  /* scalars */
  float softmax_scale; /* positive: factor of the terms, 1 / sqrt(D) as a rule */
  double keep_ratio;   /* above 0, at most 1 */
} trt_resa_block_select_params;

TRT_RESA_API size_t trt_resa_sizeof_block_select_params(void);

/* Write the bytes of workspace, or of counters, that a launch with these parameters needs. They
 * depend on the extents and the scalars alone; pointers are not looked at. */
TRT_RESA_API int32_t trt_resa_block_select_workspace(const trt_resa_block_select_params* params,
                                                     size_t* bytes);
TRT_RESA_API int32_t trt_resa_block_select_counters(const trt_resa_block_select_params* params,
                                                    size_t* bytes);

/* `params` is read during the call only. The grid depends on the device alone, so a captured launch
 * replays with other contents of every array. Equal inputs give equal selections. */
TRT_RESA_API int32_t trt_resa_block_select(const trt_resa_block_select_params* params,
                                           void* stream);

#ifdef __cplusplus
}
#endif

#endif /* TRT_RESA_BLOCK_SELECT_H */
