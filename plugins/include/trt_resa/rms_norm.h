/* rms_norm: x / rms(x) times a weight, in fp32. */
#ifndef TRT_RESA_RMS_NORM_H
#define TRT_RESA_RMS_NORM_H

#include "trt_resa/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight, rounded once; `model` is the 16-bit type named
 * by `dtype`. */
typedef struct trt_resa_rms_norm_params {
  /* inputs */
  const void* x;      /* model [num_rows, columns] */
  const void* weight; /* model [columns] */
  /* outputs */
  void* out; /* model [num_rows, columns]; may be x */
  /* extents */
  int32_t num_rows;
  int32_t columns; /* a multiple of 8 */
  int32_t dtype;   /* enum trt_resa_dtype */
  /* scalars */
  float eps; /* positive */
} trt_resa_rms_norm_params;

TRT_RESA_API size_t trt_resa_sizeof_rms_norm_params(void);

/* `params` is read during the call only. The grid depends on the extents alone. Equal inputs give
 * equal bits. */
TRT_RESA_API int32_t trt_resa_rms_norm(const trt_resa_rms_norm_params* params, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* TRT_RESA_RMS_NORM_H */
