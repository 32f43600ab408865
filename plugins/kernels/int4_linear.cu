// int4_linear: weights stream from memory to tensor cores through registers alone.
//
// A warp multiplies a few tiles of 16 output columns with a slice of the inputs; the warps of a
// thread block share the inputs among them and add their sums up in shared memory, in a fixed
// order. Products are transposed, weights[16 x 16] * x^T[16 x 8], so up to 8 rows cost one
// instruction. The weights of the first inputs are fetched while the kernel before still runs.

#include "trt_resa/int4_linear.h"

#include <type_traits>

#include "dependent_launch.cuh"
#include "int4_tiles.cuh"
#include "launch.h"
#include "mma.cuh"
#include "vec.h"

namespace trt_resa {
namespace {

using Params = trt_resa_int4_linear_params;

constexpr int kWarps = 8;
constexpr int kMaxRows = 32;
constexpr int kManyTiles = 1024;  // from here on half as many warps per tile keep a GPU busy
constexpr int kFewTiles = 256;    // up to here thread blocks are few and may use more registers

__device__ inline uint4 load_once(const uint4* address) {
  uint4 out;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "l"(address));
  return out;
}

// kRowTiles tiles of 8 rows; kTiles tiles of 16 columns per warp; kSlices warps share the inputs;
// kReadsAhead: rows are read a block of inputs ahead, which takes registers and hides their latency
// where few thread blocks are on a multiprocessor.
template <typename T, int kRowTiles, int kTiles, int kSlices, bool kReadsAhead>
__global__ void __launch_bounds__(32 * kWarps)
    int4_linear_kernel(const __grid_constant__ Params p) {
  constexpr int kAhead = kTiles == 1 ? 4 : 2;  // blocks of 128 inputs in flight
  static_assert(kAhead % 2 == 0, "next_rows has two places");
  constexpr int kSums = kTiles * kRowTiles * 4;
  constexpr int kGroups = kWarps / kSlices;
  __shared__ float sums[kWarps][kSums][32];

  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int g = lane / 4;
  const int c = lane % 4;
  const int slice = warp % kSlices;
  const int tiles = p.out_columns / kTileColumns;
  const int first_tile = (blockIdx.x * kGroups + warp / kSlices) * kTiles;
  const int blocks = p.in_columns / kScaleInputs;
  const int begin = slice * blocks / kSlices;
  const int end = (slice + 1) * blocks / kSlices;

  const uint4* weights[kTiles];
  const uint32_t* scales[kTiles];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    const int64_t tile = min(first_tile + m, tiles - 1);  // one too many is computed and dropped
    weights[m] = static_cast<const uint4*>(p.weight) + (tile * blocks + begin) * 64 + lane;
    scales[m] = static_cast<const uint32_t*>(p.scales) + (tile * blocks + begin) * 8 + g;
  }
  uint4 ahead[kAhead][kTiles][2];
  uint32_t ahead_scales[kAhead][kTiles];
  const auto fetch = [&](int j) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      ahead[j][m][0] = load_once(weights[m]);
      ahead[j][m][1] = load_once(weights[m] + 32);
      ahead_scales[j][m] = __ldg(scales[m]);
      weights[m] += 64;
      scales[m] += 8;
    }
  };
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    if (begin + j < end) fetch(j);
  }
  wait_for_previous_kernel();
  allow_next_kernel();

  // A row that does not exist reads the last one: its sums are never written.
  const T* rows[kRowTiles];
#pragma unroll
  for (int n = 0; n < kRowTiles; ++n) {
    const int64_t row = min(n * 8 + g, p.num_rows - 1);
    rows[n] = static_cast<const T*>(p.x) + row * p.in_columns + begin * kScaleInputs + c * 8;
  }
  Vec<T> next_rows[2][kRowTiles][4];  // of even blocks and of odd ones
  const auto read_ahead = [&](Vec<T>(&next)[kRowTiles][4]) {
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) next[n][i] = Vec<T>::load(rows[n] + i * 32);
      rows[n] += kScaleInputs;
    }
  };
  if (kReadsAhead && begin < end) read_ahead(next_rows[0]);
  float total[kTiles][kRowTiles][4] = {};
  for (int at = begin; at < end; at += kAhead) {
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (at + j >= end) break;
      if (kReadsAhead && at + j + 1 < end) read_ahead(next_rows[(j + 1) % 2]);
      float part[kTiles][kRowTiles][4] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Vec<T> inputs[kRowTiles][2];
#pragma unroll
        for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            inputs[n][i] = kReadsAhead ? next_rows[j % 2][n][2 * half + i]
                                       : Vec<T>::load(rows[n] + half * 64 + i * 32);
          }
        }
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          const uint4& bits = ahead[j][m][half];
          const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
          for (int w = 0; w < 4; ++w) {
            uint32_t a[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const auto pair = nibble_pair<T>(words[w], i);
              a[i] = reinterpret_cast<const uint32_t&>(pair);
            }
#pragma unroll
            for (int n = 0; n < kRowTiles; ++n) {
              const uint32_t (&b)[4] = inputs[n][w / 2].words;
              multiply_add<T>(part[m][n], a, b[w % 2 * 2], b[w % 2 * 2 + 1]);
            }
          }
        }
      }
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) rows[n] += kReadsAhead ? 0 : kScaleInputs;
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        const float2 scale =
            Pair<T>::to_float(reinterpret_cast<const typename Pair<T>::type&>(ahead_scales[j][m]));
#pragma unroll
        for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) total[m][n][e] += (e < 2 ? scale.x : scale.y) * part[m][n][e];
        }
      }
      if (at + j + kAhead < end) fetch(j);
    }
  }

#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[warp][(m * kRowTiles + n) * 4 + e][lane] = total[m][n][e];
    }
  }
  __syncthreads();

  // Each warp of a group finishes some of the pairs (column g, column g + 8) of one row.
  const T* bias = static_cast<const T*>(p.bias);
  const T* residual = static_cast<const T*>(p.residual);
  T* out = static_cast<T*>(p.out);
  const int group_warp = warp - slice;
  for (int pair = slice; pair < kSums / 2; pair += kSlices) {
    const int m = pair / (kRowTiles * 2);
    const int n = pair / 2 % kRowTiles;
    const int odd = pair % 2;
    const int row = n * 8 + c * 2 + odd;
    const int tile = first_tile + m;
    if (row >= p.num_rows || tile >= tiles) continue;
    const int entry = (m * kRowTiles + n) * 4 + odd;
    float low = 0.0f;
    float high = 0.0f;
#pragma unroll
    for (int s = 0; s < kSlices; ++s) {
      low += sums[group_warp + s][entry][lane];
      high += sums[group_warp + s][entry + 2][lane];
    }
    if (p.swiglu != 0) {
      const int column = tile * 8 + g;
      const int width = p.out_columns / 2;
      if (bias != nullptr) {
        low += static_cast<float>(bias[column]);
        high += static_cast<float>(bias[width + column]);
      }
      float value = low / (1.0f + __expf(-low)) * high;
      const int64_t place = static_cast<int64_t>(row) * width + column;
      if (residual != nullptr) value += static_cast<float>(residual[place]);
      out[place] = static_cast<T>(value);
      continue;
    }
    const int column = tile * kTileColumns + g;
    if (bias != nullptr) {
      low += static_cast<float>(bias[column]);
      high += static_cast<float>(bias[column + 8]);
    }
    const int64_t place = static_cast<int64_t>(row) * p.out_columns + column;
    if (residual != nullptr) {
      low += static_cast<float>(residual[place]);
      high += static_cast<float>(residual[place + 8]);
    }
    out[place] = static_cast<T>(low);
    out[place + 8] = static_cast<T>(high);
  }
}

int32_t check(const Params& p) {
  if (p.dtype != TRT_RESA_FLOAT16 && p.dtype != TRT_RESA_BFLOAT16) return TRT_RESA_BAD_DTYPE;
  if (p.num_rows < 0 || p.num_rows > kMaxRows) return TRT_RESA_BAD_EXTENT;
  if (p.in_columns < 1 || p.in_columns % kScaleInputs != 0) return TRT_RESA_BAD_EXTENT;
  if (p.out_columns < 1 || p.out_columns % kTileColumns != 0) return TRT_RESA_BAD_EXTENT;
  if (p.swiglu != 0 && p.swiglu != 1) return TRT_RESA_BAD_EXTENT;
  if (p.num_rows == 0) return TRT_RESA_OK;
  if (any_null({p.x, p.weight, p.scales, p.out})) return TRT_RESA_NULL_POINTER;
  if (any_misaligned({p.x, p.weight, p.scales, p.bias, p.residual, p.out})) {
    return TRT_RESA_MISALIGNED_POINTER;
  }
  return TRT_RESA_OK;
}

template <typename T, int kRowTiles, int kTiles>
int32_t launch_slices(const Params& p, void* stream) {
  const int tiles = p.out_columns / kTileColumns;
  const auto run = [&](auto slices, auto reads_ahead) {
    constexpr int kSlices = decltype(slices)::value;
    constexpr bool kReadsAhead = decltype(reads_ahead)::value;
    constexpr int kPerBlock = kWarps / kSlices * kTiles;
    const dim3 grid(static_cast<unsigned>((tiles + kPerBlock - 1) / kPerBlock));
    LaunchOptions options;
    options.dependent = true;
    return launch(int4_linear_kernel<T, kRowTiles, kTiles, kSlices, kReadsAhead>, grid,
                  dim3(32 * kWarps), stream, p, options);
  };
  // With many rows the sums of a tile cost more to bring together.
  if constexpr (kRowTiles > 1) {
    if (tiles >= kManyTiles) return run(std::integral_constant<int, 4>(), std::false_type());
  } else {
    if (tiles <= kFewTiles) return run(std::integral_constant<int, 8>(), std::true_type());
  }
  return run(std::integral_constant<int, 8>(), std::false_type());
}

template <typename T>
int32_t launch_rows(const Params& p, void* stream) {
  if (p.num_rows <= 8) return launch_slices<T, 1, 1>(p, stream);
  if (p.num_rows <= 16) return launch_slices<T, 2, 2>(p, stream);
  return launch_slices<T, 4, 2>(p, stream);
}

}  // namespace
}  // namespace trt_resa

extern "C" size_t trt_resa_sizeof_int4_linear_params(void) {
  return sizeof(trt_resa_int4_linear_params);
}

extern "C" int32_t trt_resa_int4_linear(const trt_resa_int4_linear_params* params, void* stream) {
  using namespace trt_resa;
  if (params == nullptr) return TRT_RESA_NULL_POINTER;
  const int32_t status = check(*params);
  if (status != TRT_RESA_OK || params->num_rows == 0) return status;
  return params->dtype == TRT_RESA_FLOAT16 ? launch_rows<__half>(*params, stream)
                                           : launch_rows<__nv_bfloat16>(*params, stream);
}
