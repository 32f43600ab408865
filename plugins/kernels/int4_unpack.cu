// int4_unpack: a warp per tile.

#include "trt_resa/int4_unpack.h"

#include "int4_tiles.cuh"
#include "launch.h"

namespace trt_resa {
namespace {

using Params = trt_resa_int4_unpack_params;

constexpr int kWarps = 8;

template <typename T>
__global__ void __launch_bounds__(32 * kWarps)
    int4_unpack_kernel(const __grid_constant__ Params p) {
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int c = lane % 4;
  const int per_column = p.in_columns / kTileInputs;
  const int64_t tiles = static_cast<int64_t>(p.out_columns / kTileColumns) * per_column;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (at >= tiles) return;
  const int tile = static_cast<int>(at / per_column);
  const int inputs = static_cast<int>(at % per_column);

  const uint4 bits = static_cast<const uint4*>(p.weight)[at * 32 + lane];
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
  const int64_t block = at / 2;  // two tiles of inputs share a scale, and K is a multiple of both
  const auto both = static_cast<const typename Pair<T>::type*>(p.scales)[block * 8 + g];
  const float2 scale = Pair<T>::to_float(both);
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    const float factor = upper == 0 ? scale.x : scale.y;
    int64_t column = tile * kTileColumns + upper * 8 + g;
    if (p.swiglu != 0) column = tile * 8 + g + upper * (p.out_columns / 2);
    T* row = static_cast<T*>(p.out) + column * p.in_columns + inputs * kTileInputs + c * 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Vec<T> vec;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t word = words[half * 2 + j / 2];
        const float2 pair = Pair<T>::to_float(nibble_pair<T>(word, j % 2 * 2 + upper));
        vec.set_pair(j, Pair<T>::from_float(pair.x * factor, pair.y * factor));
      }
      vec.store(row + half * 32);
    }
  }
}

int32_t check(const Params& p) {
  if (p.dtype != TRT_RESA_FLOAT16 && p.dtype != TRT_RESA_BFLOAT16) return TRT_RESA_BAD_DTYPE;
  if (p.in_columns < 1 || p.in_columns % kScaleInputs != 0) return TRT_RESA_BAD_EXTENT;
  if (p.out_columns < 1 || p.out_columns % kTileColumns != 0) return TRT_RESA_BAD_EXTENT;
  if (p.swiglu != 0 && p.swiglu != 1) return TRT_RESA_BAD_EXTENT;
  if (any_null({p.weight, p.scales, p.out})) return TRT_RESA_NULL_POINTER;
  if (any_misaligned({p.weight, p.scales, p.out})) return TRT_RESA_MISALIGNED_POINTER;
  return TRT_RESA_OK;
}

}  // namespace
}  // namespace trt_resa

extern "C" size_t trt_resa_sizeof_int4_unpack_params(void) {
  return sizeof(trt_resa_int4_unpack_params);
}

extern "C" int32_t trt_resa_int4_unpack(const trt_resa_int4_unpack_params* params, void* stream) {
  using namespace trt_resa;
  if (params == nullptr) return TRT_RESA_NULL_POINTER;
  const int32_t status = check(*params);
  if (status != TRT_RESA_OK) return status;
  const int64_t tiles =
      static_cast<int64_t>(params->out_columns / kTileColumns) * (params->in_columns / kTileInputs);
  const dim3 grid(static_cast<unsigned>((tiles + kWarps - 1) / kWarps));
  return params->dtype == TRT_RESA_FLOAT16
             ? launch(int4_unpack_kernel<__half>, grid, dim3(32 * kWarps), stream, *params)
             : launch(int4_unpack_kernel<__nv_bfloat16>, grid, dim3(32 * kWarps), stream, *params);
}
