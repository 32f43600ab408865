/* int4_linear: a linear with INT4 weights for few rows, as decoding and rectification have them. */
#ifndef TRT_RESA_INT4_LINEAR_H
#define TRT_RESA_INT4_LINEAR_H

#include "trt_resa/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* out = x @ (q * scale) + bias + residual, or with `swiglu` silu(gate) * up of the two halves of
 * the product's columns. T = num_rows, K = input columns, N = columns of the product; `model` is
 * the 16-bit type named by `dtype`. Sums are taken in fp32 and rounded once.
 *
 * Weights are packed for the tensor cores (trt_resa/int4_tiles.py). A tile has 16 columns of the
 * product and 64 of the input; its 32 lanes hold four words each, tiles of one set of columns
 * following one another. Column r of a tile is column 16 * tile + r of the product; with `swiglu`,
 * r < 8 is gate 8 * tile + r and r >= 8 is up 8 * tile + r - 8. Bits 4i .. 4i + 3 and 16 + 4i ..
 * 16 + 4i + 3 of word w of lane 4 * g + c hold q + 8 of the column g + 8 * (i % 2) and the inputs
 * 32 * (w / 2) + 8 * c + 4 * (w % 2) + 2 * (i / 2) and the next.
 */
typedef struct trt_resa_int4_linear_params {
  /* inputs */
  const void* x;        /* model [T, K] */
  const void* weight;   /* uint32 [N / 16, K / 64, 32, 4] */
  const void* scales;   /* model [N / 16, K / 128, 8, 2]: of the columns r and r + 8 of a tile */
  const void* bias;     /* model [N] in the product's order, or null */
  const void* residual; /* model, of the shape of out, or null */
  /* outputs */
  void* out; /* model [T, N], or [T, N / 2] with swiglu; may be residual */
  /* extents */
  int32_t num_rows;    /* at most 32 */
  int32_t in_columns;  /* a multiple of 128 */
  int32_t out_columns; /* N, a multiple of 16 */
  int32_t swiglu;      /* 0 or 1 */
  int32_t dtype;       /* enum trt_resa_dtype */
} trt_resa_int4_linear_params;

TRT_RESA_API size_t trt_resa_sizeof_int4_linear_params(void);

/* `params` is read during the call only. The grid depends on the extents alone. Equal inputs give
 * equal bits. Weights and scales are read before the kernel before has ended, so nothing in the
 * stream may write them. */
TRT_RESA_API int32_t trt_resa_int4_linear(const trt_resa_int4_linear_params* params, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* TRT_RESA_INT4_LINEAR_H */
