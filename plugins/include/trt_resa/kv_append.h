/* kv_append: QK norm, RoPE, the write into the paged KV cache and the summaries, in one launch. */
#ifndef TRT_RESA_KV_APPEND_H
#define TRT_RESA_KV_APPEND_H

#include "trt_resa/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Shapes are row-major and contiguous. T = num_rows, B = batch_size, D = head_dim; `model` is the
 * 16-bit type named by `dtype`, of the rows, the norm weights and the cache alike.
 *
 * Sequence b owns the rows cu_query_lens[b] .. cu_query_lens[b + 1] - 1. Its row j has the slot
 * kv_lens[b] - (rows of b) + j in the cache: the rows of one call are consecutive and the last
 * ones. Sequences without rows, rows from cu_query_lens[B] on (padding of a captured graph), and
 * sequences whose row range or kv_len is impossible are ignored: nothing of theirs is written.
 * A row whose block_table entry is no block of the pool still gets its q, and no cache write.
 *
 * With `indirect` 1, kv and summary are not the buffers' addresses but point to 8 bytes of device
 * memory each that hold them; the kernels read them there. The pointers are aligned to 8 then.
 */
typedef struct trt_resa_kv_append_params {
  /* inputs */
  const void* qkv;              /* model [T, q_heads + 2 * kv_heads, D]: q, then k, then v heads */
  const int32_t* position_ids;  /* [T] RoPE position up to 2^21; null allowed if rotary_dim is 0 */
  const int32_t* cu_query_lens; /* [B + 1] */
  const int32_t* kv_lens;       /* [B] tokens in the cache after this call */
  const int32_t* block_table;   /* [B, max_blocks_per_seq], -1 unused */
  const float* inv_freq;        /* [rotary_dim / 2], at most 1; null allowed if rotary_dim is 0 */
  const void* q_norm;           /* model [D] weight of the RMS norm of each q head, or null: none */
  const void* k_norm;           /* model [D], the same for k heads */
  /* outputs */
  void* q;       /* model [T, q_heads, D], normed and rotated */
  void* kv;      /* model [num_blocks, 2, kv_heads, block_size, D]: 0 = K after RoPE, 1 = V */
  void* summary; /* model [num_blocks, kv_heads, 2, D]: 0 = min, 1 = max of the block's valid K */
  /* extents */
  int32_t num_rows;
  int32_t batch_size;
  int32_t max_blocks_per_seq;
  int32_t num_blocks;
  int32_t q_heads; /* a multiple of kv_heads */
  int32_t kv_heads;
  int32_t head_dim;   /* 64, 96, 128 or 256 */
  int32_t block_size; /* 16, 32 or 64 */
  int32_t rotary_dim; /* a multiple of 16 up to head_dim; the rest of a head passes unrotated */
  int32_t dtype;      /* enum trt_resa_dtype */
  int32_t indirect;   /* 0 or 1 */
  /* scalars */
  float rope_scale; /* factor of cos and sin (YaRN's attention factor; 1 otherwise) */
  float norm_eps;   /* epsilon of both norms; positive where a norm weight is given */
} trt_resa_kv_append_params;

TRT_RESA_API size_t trt_resa_sizeof_kv_append_params(void);

/* `params` is read during the call only. The grid depends on the extents alone, so a captured
 * launch replays with other contents of every array. */
TRT_RESA_API int32_t trt_resa_kv_append(const trt_resa_kv_append_params* params, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* TRT_RESA_KV_APPEND_H */
