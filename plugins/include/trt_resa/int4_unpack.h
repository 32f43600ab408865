/* int4_unpack: the weights of int4_linear in the model's type, for a GEMM over many rows. */
#ifndef TRT_RESA_INT4_UNPACK_H
#define TRT_RESA_INT4_UNPACK_H

#include "trt_resa/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* out[n, k] = q * scale, rounded once; the fields are those of int4_linear.h. With `swiglu` the
 * rows of out are all gates, then all ups. */
typedef struct trt_resa_int4_unpack_params {
  /* inputs */
  const void* weight; /* uint32 [N / 16, K / 64, 32, 4] */
  const void* scales; /* model [N / 16, K / 128, 8, 2] */
  /* outputs */
  void* out; /* model [N, K] */
  /* extents */
  int32_t in_columns;  /* K, a multiple of 128 */
  int32_t out_columns; /* N, a multiple of 16 */
  int32_t swiglu;      /* 0 or 1 */
  int32_t dtype;       /* enum trt_resa_dtype */
} trt_resa_int4_unpack_params;

TRT_RESA_API size_t trt_resa_sizeof_int4_unpack_params(void);

/* `params` is read during the call only. */
TRT_RESA_API int32_t trt_resa_int4_unpack(const trt_resa_int4_unpack_params* params, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* TRT_RESA_INT4_UNPACK_H */
