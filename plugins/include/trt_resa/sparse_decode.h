/* sparse_decode: attention of one query row per sequence over a given selection of blocks. */
#ifndef TRT_RESA_SPARSE_DECODE_H
#define TRT_RESA_SPARSE_DECODE_H

#include "trt_resa/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Shapes are row-major and contiguous. B = batch_size, D = head_dim; `model` is the 16-bit type
 * named by `dtype`.
 *
 * Row b of q belongs to sequence b and sees the tokens below kv_lens[b] of the selected blocks.
 * Sequences whose kv_len is 0 or impossible are ignored: their rows of `out` are not written.
 * Slots behind kv_len and blocks that are not selected may hold anything. Entries of the selection
 * that are no block of the sequence, and blocks whose block_table entry is no block of the pool,
 * are passed over; a row that sees no token gets zeros.
 */
typedef struct trt_resa_sparse_decode_params {
  /* inputs */
  const void* q;              /* model [B, q_heads, D], as kv_append writes it */
  const void* kv;             /* model [num_blocks, 2, kv_heads, block_size, D]: 0 = K, 1 = V */
  const int32_t* kv_lens;     /* [B] tokens in the cache */
  const int32_t* block_table; /* [B, max_blocks_per_seq], -1 unused */
  const int32_t* selection;   /* [B, kv_heads, max_selected] indices of the sequence's blocks */
  const int32_t* counts;      /* [B] of them that are valid, the same for all KV heads */
  /* outputs */
  void* out;       /* model [B, q_heads, D] */
  void* workspace; /* trt_resa_sparse_decode_workspace bytes of any content */
  void* counters;  /* trt_resa_sparse_decode_counters bytes: zero before the first call, then left
                      alone; enough for a batch is enough for smaller ones. Calls that
                      may overlap need counters of their own */
  /* extents */
  int32_t batch_size; /* at most 256 */
  int32_t max_blocks_per_seq;
  int32_t num_blocks;
  int32_t max_selected;
  int32_t q_heads; /* 1 to 16 per KV head */
  int32_t kv_heads;
  int32_t head_dim;   /* 64, 96, 128 or 256 */
  int32_t block_size; /* 16, 32 or 64 */
  int32_t dtype;      /* enum trt_resa_dtype */
  /* scalars */
  float softmax_scale; /* positive: factor of the scores, 1 / sqrt(D) as a rule */
} trt_resa_sparse_decode_params;

TRT_RESA_API size_t trt_resa_sizeof_sparse_decode_params(void);

/* Write the bytes of workspace, or of counters, that a launch with these parameters needs. They
 * depend on the extents alone; pointers are not looked at. */
TRT_RESA_API int32_t trt_resa_sparse_decode_workspace(const trt_resa_sparse_decode_params* params,
                                                      size_t* bytes);
TRT_RESA_API int32_t trt_resa_sparse_decode_counters(const trt_resa_sparse_decode_params* params,
                                                     size_t* bytes);

/* `params` is read during the call only. The grid depends on the device alone, so a captured launch
 * replays with other contents of every array. Equal inputs give equal bits. */
TRT_RESA_API int32_t trt_resa_sparse_decode(const trt_resa_sparse_decode_params* params,
                                            void* stream);

#ifdef __cplusplus
}
#endif

#endif /* TRT_RESA_SPARSE_DECODE_H */
