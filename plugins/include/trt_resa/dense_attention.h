/* dense_attention: causal attention of n >= 1 query rows per sequence over the whole paged cache.
 */
#ifndef TRT_RESA_DENSE_ATTENTION_H
#define TRT_RESA_DENSE_ATTENTION_H

#include "trt_resa/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Shapes are row-major and contiguous. T = num_rows, B = batch_size, D = head_dim; `model` is the
 * 16-bit type named by `dtype`.
 *
 * Sequence b owns the rows cu_query_lens[b] .. cu_query_lens[b + 1] - 1. Its row j stands at the
 * position kv_lens[b] - (rows of b) + j and sees all positions up to its own: the rows' own keys
 * are in the cache already (kv_append). Sequences without rows, rows from cu_query_lens[B] on
 * (padding of a captured graph), and sequences whose row range or kv_len is impossible are ignored:
 * their part of `out` is not written. Slots behind kv_len and blocks of no sequence may hold
 * anything. Keys and values of a block whose block_table entry is no block of the pool read as
 * zero.
 *
 * With `indirect` 1, kv is not the buffer's address but points to 8 bytes of device memory that
 * hold it; the kernels read it there. The pointer is aligned to 8 then.
 */
typedef struct trt_resa_dense_attention_params {
  /* inputs */
  const void* q;                /* model [T, q_heads, D], as kv_append writes it */
  const int32_t* cu_query_lens; /* [B + 1] */
  const int32_t* kv_lens;       /* [B] tokens in the cache */
  const int32_t* block_table;   /* [B, max_blocks_per_seq], -1 unused */
  const void* kv;               /* model [num_blocks, 2, kv_heads, block_size, D]: 0 = K, 1 = V */
  /* outputs */
  void* out;       /* model [T, q_heads, D] */
  void* workspace; /* trt_resa_dense_attention_workspace bytes of any content */
  /* extents */
  int32_t num_rows;
  int32_t batch_size;
  int32_t max_blocks_per_seq;
  int32_t num_blocks;
  int32_t q_heads; /* a multiple of kv_heads */
  int32_t kv_heads;
  int32_t head_dim;   /* 64, 96, 128 or 256 */
  int32_t block_size; /* 16, 32 or 64 */
  int32_t dtype;      /* enum trt_resa_dtype */
  int32_t indirect;   /* 0 or 1 */
  /* scalars */
  float softmax_scale; /* positive: factor of the scores, 1 / sqrt(D) as a rule */
} trt_resa_dense_attention_params;

TRT_RESA_API size_t trt_resa_sizeof_dense_attention_params(void);

/* Writes the bytes of workspace that a launch with these parameters needs on the current device to
 * *bytes. Pointers are not looked at. The size depends on head_dim and the device alone, so one
 * workspace serves every batch. */
TRT_RESA_API int32_t
trt_resa_dense_attention_workspace(const trt_resa_dense_attention_params* params, size_t* bytes);

/* `params` is read during the call only. The grid depends on the extents and the device alone, so a
 * captured launch replays with other contents of every array. Equal inputs give equal bits. */
TRT_RESA_API int32_t trt_resa_dense_attention(const trt_resa_dense_attention_params* params,
                                              void* stream);

#ifdef __cplusplus
}
#endif

#endif /* TRT_RESA_DENSE_ATTENTION_H */
