// Vectors of eight 16-bit elements, the unit in which kernels move rows and keys: 16 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace trt_resa {

constexpr int kVecSize = 8;

// The packed pair of a 16-bit type, its conversions (to nearest even) and its infinities.
template <typename T>
struct Pair;

template <>
struct Pair<__half> {
  using type = __half2;
  static constexpr uint32_t kInfinity = 0x7c007c00u;
  static constexpr uint32_t kMinusInfinity = 0xfc00fc00u;
  static __device__ float2 to_float(type x) { return __half22float2(x); }
  static __device__ type from_float(float a, float b) { return __floats2half2_rn(a, b); }
};

template <>
struct Pair<__nv_bfloat16> {
  using type = __nv_bfloat162;
  static constexpr uint32_t kInfinity = 0x7f807f80u;
  static constexpr uint32_t kMinusInfinity = 0xff80ff80u;
  static __device__ float2 to_float(type x) { return __bfloat1622float2(x); }
  static __device__ type from_float(float a, float b) { return __floats2bfloat162_rn(a, b); }
};

template <typename T>
struct Vec {
  using PairType = typename Pair<T>::type;

  uint32_t words[kVecSize / 2] = {};

  // All elements set from one packed pair.
  static __device__ Vec filled(uint32_t word) { return Vec{{word, word, word, word}}; }

  // `address` is aligned to 16 bytes.
  static __device__ Vec load(const T* address) {
    const uint4 bits = *reinterpret_cast<const uint4*>(address);
    return Vec{{bits.x, bits.y, bits.z, bits.w}};
  }
  __device__ void store(T* address) const {
    *reinterpret_cast<uint4*>(address) = make_uint4(words[0], words[1], words[2], words[3]);
  }

  __device__ PairType pair(int i) const { return reinterpret_cast<const PairType&>(words[i]); }
  __device__ void set_pair(int i, PairType value) {
    words[i] = reinterpret_cast<const uint32_t&>(value);
  }

  __device__ void to_floats(float (&out)[kVecSize]) const {
#pragma unroll
    for (int i = 0; i < kVecSize / 2; ++i) {
      const float2 both = Pair<T>::to_float(pair(i));
      out[2 * i] = both.x;
      out[2 * i + 1] = both.y;
    }
  }

  static __device__ Vec from_floats(const float (&in)[kVecSize]) {
    Vec out;
#pragma unroll
    for (int i = 0; i < kVecSize / 2; ++i) {
      out.set_pair(i, Pair<T>::from_float(in[2 * i], in[2 * i + 1]));
    }
    return out;
  }
};

// Element-wise; NaN wins, as in torch.amin and torch.amax.
template <typename T>
__device__ Vec<T> min_nan(const Vec<T>& a, const Vec<T>& b) {
  Vec<T> out;
#pragma unroll
  for (int i = 0; i < kVecSize / 2; ++i) out.set_pair(i, __hmin2_nan(a.pair(i), b.pair(i)));
  return out;
}

template <typename T>
__device__ Vec<T> max_nan(const Vec<T>& a, const Vec<T>& b) {
  Vec<T> out;
#pragma unroll
  for (int i = 0; i < kVecSize / 2; ++i) out.set_pair(i, __hmax2_nan(a.pair(i), b.pair(i)));
  return out;
}

template <typename T>
__device__ Vec<T> shuffle_xor(const Vec<T>& x, int mask) {
  Vec<T> out;
#pragma unroll
  for (int i = 0; i < kVecSize / 2; ++i) {
    out.words[i] = __shfl_xor_sync(0xffffffffu, x.words[i], mask);
  }
  return out;
}

}  // namespace trt_resa
