/* Status codes and facts of the kernel library. Plain C; no call exits, throws or prints.
 *
 * Device memory crosses this API as untyped pointers, a stream as the untyped handle of a
 * cudaStream_t (null: the default stream). A launch checks its host-side parameters, enqueues its
 * kernels and returns; contents of device memory are never read on the host.
 */
#ifndef TRT_RESA_STATUS_H
#define TRT_RESA_STATUS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define TRT_RESA_API __attribute__((visibility("default")))
#else
#define TRT_RESA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* A status below TRT_RESA_CUDA_ERROR refuses the parameters and nothing was launched;
 * TRT_RESA_CUDA_ERROR + n reports the error n of the CUDA runtime (35: no usable driver). */
enum trt_resa_status {
  TRT_RESA_OK = 0,
  TRT_RESA_NULL_POINTER = 1,
  TRT_RESA_MISALIGNED_POINTER = 2,
  TRT_RESA_BAD_DTYPE = 3,
  TRT_RESA_BAD_HEAD_DIM = 4,
  TRT_RESA_BAD_BLOCK_SIZE = 5,
  TRT_RESA_BAD_HEADS = 6,
  TRT_RESA_BAD_ROTARY_DIM = 7,
  TRT_RESA_BAD_EXTENT = 8,
  TRT_RESA_BAD_EPSILON = 9,
  TRT_RESA_BAD_SCALE = 10,
  TRT_RESA_BAD_SELECTION = 11,
  TRT_RESA_CUDA_ERROR = 1000
};

enum trt_resa_dtype { TRT_RESA_FLOAT16 = 0, TRT_RESA_BFLOAT16 = 1 };

/* Every string below lives as long as the library. */

/* What a status means and what is allowed; never null, also for a status that does not exist. */
TRT_RESA_API const char* trt_resa_status_string(int32_t status);

/* The version of the package that the library was built from, "0.1.0". */
TRT_RESA_API const char* trt_resa_version(void);

/* The architectures in the library in CMake's notation, "90a-real 120": one without a suffix
 * carries PTX too, which later GPUs can compile. */
TRT_RESA_API const char* trt_resa_architectures(void);

/* The GPC in which a multiprocessor of the current device lies, 0 to 3 in one half of the GPU and 4
 * to 7 in the other; -1 where that is not known. The library finds it out when it first needs it,
 * by kernels of its own, and places work by it; before compute capability 9.0 it does not. */
TRT_RESA_API int32_t trt_resa_gpc_of(int32_t multiprocessor);

/* Blocks that hold `tokens` tokens; -1 for a negative count or a block size below 1. */
TRT_RESA_API int64_t trt_resa_num_blocks(int64_t tokens, int32_t block_size);

/* Blocks in the selection of a sequence of `blocks` blocks:
 * max(ceil(keep_ratio * blocks), min(blocks, min_blocks)), never more than `blocks`;
 * -1 for a negative count or a ratio outside [0, 1]. */
TRT_RESA_API int64_t trt_resa_num_selected(int64_t blocks, double keep_ratio, int64_t min_blocks);

#ifdef __cplusplus
}
#endif

#endif /* TRT_RESA_STATUS_H */
