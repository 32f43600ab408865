/* sparse_step: the attention of one sparse step in one launch: append, select, attend. */
#ifndef TRT_RESA_SPARSE_STEP_H
#define TRT_RESA_SPARSE_STEP_H

#include "trt_resa/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Shapes are row-major and contiguous. T = num_rows, B = batch_size, D = head_dim; `model` is the
 * 16-bit type named by `dtype`.
 *
 * What kv_append, block_select and sparse_decode do one after another, with the same results: their
 * headers describe the fields. Each sequence has one row or none: sequence b owns row
 * cu_query_lens[b]. Sequences without a row or with several, with a row that does not exist, and
 * those whose kv_len is 0 or impossible are ignored: nothing of theirs is written.
 *
 * Traps: workspace may be shared with whatever does not run at the same time, counters may not:
 * they must live from call to call. Layers of one model can share both, since they run in turn.
 *
 * With `indirect` 1, kv and summary are not the buffers' addresses but point to 8 bytes of device
 * memory each that hold them; the kernels read them there. The pointers are aligned to 8 then.
 */
typedef struct trt_resa_sparse_step_params {
  /* inputs */
  const void* qkv;              /* model [T, q_heads + 2 * kv_heads, D]: q, then k, then v heads */
  const int32_t* position_ids;  /* [T] RoPE position; null allowed where rotary_dim is 0 */
  const int32_t* cu_query_lens; /* [B + 1] */
  const int32_t* kv_lens;       /* [B] tokens in the cache after this call */
  const int32_t* block_table;   /* [B, max_blocks_per_seq], -1 unused */
  const float* inv_freq;        /* [rotary_dim / 2]; null allowed where rotary_dim is 0 */
  const void* q_norm;           /* model [D] weight of the RMS norm of each q head, or null: none */
  const void* k_norm;           /* model [D], the same for k heads */
  /* outputs */
  void* q;         /* model [T, q_heads, D], normed and rotated */
  void* kv;        /* model [num_blocks, 2, kv_heads, block_size, D]: 0 = K after RoPE, 1 = V */
  void* summary;   /* model [num_blocks, kv_heads, 2, D]: 0 = min, 1 = max of the block's valid K */
  void* out;       /* model [T, q_heads, D] */
  void* workspace; /* trt_resa_sparse_step_workspace bytes of any content */
  void* counters;  /* trt_resa_sparse_step_counters bytes: zero before the first call, then left
                      alone; enough for a batch is enough for smaller ones. Calls that
                      may overlap need counters of their own */
  /* extents */
  int32_t num_rows;
  int32_t batch_size;         /* at most 256 */
  int32_t max_blocks_per_seq; /* at most 65,536 */
  int32_t num_blocks;
  int32_t q_heads; /* 1 to 16 per KV head */
  int32_t kv_heads;
  int32_t head_dim;     /* 64, 96, 128 or 256 */
  int32_t block_size;   /* 16, 32 or 64 */
  int32_t rotary_dim;   /* a multiple of 16 up to head_dim */
  int32_t min_blocks;   /* at least local_blocks + sink_blocks */
  int32_t local_blocks; /* at least 1: the block that is appended to */
  int32_t sink_blocks;
  int32_t dense_below;
  int32_t dtype;    /* enum trt_resa_dtype */
  int32_t indirect; /* 0 or 1 */
  int32_t settled;  /* 1: what is enqueued right before, and what may overlap with that, writes
                       neither counters nor inputs but qkv, so that this begins while it still runs;
                       0: it may write anything */
  /* scalars */
  float rope_scale;    /* factor of cos and sin */
  float norm_eps;      /* epsilon of both norms; positive where a norm weight is given */
  float softmax_scale; /* positive: factor of the scores, 1 / sqrt(D) as a rule */
  double keep_ratio;   /* above 0, at most 1 */
} trt_resa_sparse_step_params;

TRT_RESA_API size_t trt_resa_sizeof_sparse_step_params(void);

/* Write the bytes of workspace, or of counters, that a launch with these parameters needs. They
 * depend on the extents and the scalars alone; pointers are not looked at. */
TRT_RESA_API int32_t trt_resa_sparse_step_workspace(const trt_resa_sparse_step_params* params,
                                                    size_t* bytes);
TRT_RESA_API int32_t trt_resa_sparse_step_counters(const trt_resa_sparse_step_params* params,
                                                   size_t* bytes);

/* `params` is read during the call only. The grid depends on the device alone, so a captured launch
 * replays with other contents of every array. Equal inputs give equal bits. */
TRT_RESA_API int32_t trt_resa_sparse_step(const trt_resa_sparse_step_params* params, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* TRT_RESA_SPARSE_STEP_H */
