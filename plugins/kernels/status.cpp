#include "trt_resa/status.h"

#include <cuda_runtime_api.h>

#include "blocks.h"
#include "gpu_map.h"

extern "C" {

const char* trt_resa_status_string(int32_t status) {
  switch (status) {
    case TRT_RESA_OK:
      return "ok";
    case TRT_RESA_NULL_POINTER:
      return "a required pointer is null";
    case TRT_RESA_MISALIGNED_POINTER:
      return "a pointer is not aligned to 16 bytes";
    case TRT_RESA_BAD_DTYPE:
      return "dtype is neither TRT_RESA_FLOAT16 (0) nor TRT_RESA_BFLOAT16 (1)";
    case TRT_RESA_BAD_HEAD_DIM:
      return "head_dim is not 64, 96, 128 or 256";
    case TRT_RESA_BAD_BLOCK_SIZE:
      return "block_size is not 16, 32 or 64";
    case TRT_RESA_BAD_HEADS:
      return "q_heads and kv_heads must be positive and q_heads a multiple of kv_heads";
    case TRT_RESA_BAD_ROTARY_DIM:
      return "rotary_dim is not a multiple of 16 between 0 and head_dim";
    case TRT_RESA_BAD_EXTENT:
      return "an extent is out of range: counts of rows and sequences must not be negative, and "
             "sequences with rows need at least one block";
    case TRT_RESA_BAD_EPSILON:
      return "norm_eps must be positive where a norm weight is given";
    case TRT_RESA_BAD_SCALE:
      return "softmax_scale must be positive";
    case TRT_RESA_BAD_SELECTION:
      return "keep_ratio must be above 0 and at most 1, dense_below not negative, and min_blocks "
             "at "
             "least 1 and at least local_blocks + sink_blocks; a sparse step needs a local block";
    default:
      if (status >= TRT_RESA_CUDA_ERROR) {
        return cudaGetErrorString(static_cast<cudaError_t>(status - TRT_RESA_CUDA_ERROR));
      }
      return "not a status of this library";
  }
}

const char* trt_resa_version(void) {
  return TRT_RESA_VERSION;
}

const char* trt_resa_architectures(void) {
  return TRT_RESA_ARCHITECTURES;
}

int32_t trt_resa_gpc_of(int32_t multiprocessor) {
  const trt_resa::GpuMap& map = trt_resa::gpu_map();
  const bool is_known = multiprocessor >= 0 && multiprocessor < map.multiprocessors;
  return is_known ? map.gpc[static_cast<size_t>(multiprocessor)] : -1;
}

int64_t trt_resa_num_blocks(int64_t tokens, int32_t block_size) {
  return tokens < 0 || block_size < 1 ? -1 : trt_resa::num_blocks(tokens, block_size);
}

int64_t trt_resa_num_selected(int64_t blocks, double keep_ratio, int64_t min_blocks) {
  // Written so that NaN is refused too.
  const bool ratio_ok = keep_ratio >= 0.0 && keep_ratio <= 1.0;
  if (blocks < 0 || min_blocks < 0 || !ratio_ok) return -1;
  return trt_resa::num_selected(blocks, keep_ratio, min_blocks);
}

}  // extern "C"
