// rms_norm: one thread block per row.

#include "trt_resa/rms_norm.h"

#include "dependent_launch.cuh"
#include "launch.h"
#include "vec.h"

namespace trt_resa {
namespace {

using Params = trt_resa_rms_norm_params;

constexpr int kThreads = 512;
constexpr int kHeld = 4;  // vectors per thread that are read once: rows of up to 16,384

template <typename T>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const __grid_constant__ Params p) {
  __shared__ float of_warp[kThreads / 32];
  wait_for_previous_kernel();
  allow_next_kernel();
  const int64_t start = static_cast<int64_t>(blockIdx.x) * p.columns;
  const T* x = static_cast<const T*>(p.x) + start;
  const T* weight = static_cast<const T*>(p.weight);
  T* out = static_cast<T*>(p.out) + start;
  const int vectors = p.columns / kVecSize;

  Vec<T> held[kHeld];
  float square = 0.0f;
  for (int at = threadIdx.x, i = 0; at < vectors; at += kThreads, ++i) {
    const Vec<T> vec = Vec<T>::load(x + at * kVecSize);
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      if (i == j) held[j] = vec;
    }
    float values[kVecSize];
    vec.to_floats(values);
#pragma unroll
    for (float value : values) square += value * value;
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) square += __shfl_xor_sync(~0u, square, mask);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = square;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (float part : of_warp) sum += part;
  const float factor = rsqrtf(sum / static_cast<float>(p.columns) + p.eps);

  for (int at = threadIdx.x, i = 0; at < vectors; at += kThreads, ++i) {
    Vec<T> vec;
    if (i < kHeld) {
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        if (i == j) vec = held[j];
      }
    } else {
      vec = Vec<T>::load(x + at * kVecSize);
    }
    float values[kVecSize];
    float gains[kVecSize];
    vec.to_floats(values);
    Vec<T>::load(weight + at * kVecSize).to_floats(gains);
#pragma unroll
    for (int e = 0; e < kVecSize; ++e) values[e] *= factor * gains[e];
    Vec<T>::from_floats(values).store(out + at * kVecSize);
  }
}

int32_t check(const Params& p) {
  if (p.dtype != TRT_RESA_FLOAT16 && p.dtype != TRT_RESA_BFLOAT16) return TRT_RESA_BAD_DTYPE;
  if (p.num_rows < 0 || p.columns < 1 || p.columns % kVecSize != 0) return TRT_RESA_BAD_EXTENT;
  if (!(p.eps > 0.0f)) return TRT_RESA_BAD_EPSILON;
  if (p.num_rows == 0) return TRT_RESA_OK;
  if (any_null({p.x, p.weight, p.out})) return TRT_RESA_NULL_POINTER;
  if (any_misaligned({p.x, p.weight, p.out})) return TRT_RESA_MISALIGNED_POINTER;
  return TRT_RESA_OK;
}

}  // namespace
}  // namespace trt_resa

extern "C" size_t trt_resa_sizeof_rms_norm_params(void) {
  return sizeof(trt_resa_rms_norm_params);
}

extern "C" int32_t trt_resa_rms_norm(const trt_resa_rms_norm_params* params, void* stream) {
  using namespace trt_resa;
  if (params == nullptr) return TRT_RESA_NULL_POINTER;
  const int32_t status = check(*params);
  if (status != TRT_RESA_OK || params->num_rows == 0) return status;
  const dim3 grid(static_cast<unsigned>(params->num_rows));
  LaunchOptions options;
  options.dependent = true;
  return params->dtype == TRT_RESA_FLOAT16
             ? launch(rms_norm_kernel<__half>, grid, dim3(kThreads), stream, *params, options)
             : launch(rms_norm_kernel<__nv_bfloat16>, grid, dim3(kThreads), stream, *params,
                      options);
}
