/* recompute_summaries: the summaries of a range of blocks of each sequence, from its cached keys.
 */
#ifndef TRT_RESA_RECOMPUTE_SUMMARIES_H
#define TRT_RESA_RECOMPUTE_SUMMARIES_H

#include "trt_resa/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Shapes are row-major and contiguous. B = batch_size, D = head_dim; `model` is the 16-bit type
 * named by `dtype`. For keys that reached the cache, or lost their followers, without kv_append:
 * a sequence that was truncated, a block that was copied or loaded.
 *
 * Of sequence b the blocks first_blocks[b] .. end_blocks[b] - 1 are summarised, as far as they hold
 * tokens below kv_lens[b]; an empty or negative range is none. Blocks whose block_table entry is no
 * block of the pool are passed over.
 */
typedef struct trt_resa_recompute_summaries_params {
  /* inputs */
  const int32_t* first_blocks; /* [B] index in the sequence */
  const int32_t* end_blocks;   /* [B] one behind the last */
  const int32_t* kv_lens;      /* [B] tokens in the cache */
  const int32_t* block_table;  /* [B, max_blocks_per_seq], -1 unused */
  const void* kv;              /* model [num_blocks, 2, kv_heads, block_size, D]: 0 = K, 1 = V */
  /* outputs */
  void* summary; /* model [num_blocks, kv_heads, 2, D]: 0 = min, 1 = max of the block's valid K */
  /* extents */
  int32_t batch_size;
  int32_t max_blocks_per_seq;
  int32_t num_blocks;
  int32_t kv_heads;
  int32_t head_dim;   /* 64, 96, 128 or 256 */
  int32_t block_size; /* 16, 32 or 64 */
  int32_t dtype;      /* enum trt_resa_dtype */
} trt_resa_recompute_summaries_params;

TRT_RESA_API size_t trt_resa_sizeof_recompute_summaries_params(void);

/* `params` is read during the call only. The grid depends on the extents alone, so a captured
 * launch replays with other contents of every array. */
TRT_RESA_API int32_t trt_resa_recompute_summaries(const trt_resa_recompute_summaries_params* params,
                                                  void* stream);

#ifdef __cplusplus
}
#endif

#endif /* TRT_RESA_RECOMPUTE_SUMMARIES_H */
