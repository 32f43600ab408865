// Tiles of INT4 weights, as int4_linear.h lays them out, and their numbers in the model's type.
#pragma once

#include "vec.h"

namespace trt_resa {

constexpr int kTileColumns = 16;   // of the product
constexpr int kTileInputs = 64;    // a lane holds 32 numbers of a tile
constexpr int kScaleInputs = 128;  // share a scale: two tiles

// A number n in [0, 15] in each half of `base | n` becomes n - 8, through the float 2^7 + n or
// 2^10 + n, in whose mantissa n stands.
template <typename T>
struct Nibbles;

template <>
struct Nibbles<__half> {
  static constexpr uint32_t kBase = 0x64006400u;  // 1024
  static __device__ __half2 offset() { return __float2half2_rn(1032.0f); }
};

template <>
struct Nibbles<__nv_bfloat16> {
  static constexpr uint32_t kBase = 0x43004300u;  // 128
  static __device__ __nv_bfloat162 offset() { return __float2bfloat162_rn(136.0f); }
};

// The pair i of a word: numbers of two neighbouring inputs.
template <typename T>
__device__ inline typename Pair<T>::type nibble_pair(uint32_t word, int i) {
  // (word & mask) | base in one instruction; the compiler makes two of it.
  constexpr int kAndOr = 0xea;
  uint32_t bits;
  asm("lop3.b32 %0, %1, %2, %3, %4;\n"
      : "=r"(bits)
      : "r"(word >> (4 * i)), "r"(0x000f000fu), "r"(Nibbles<T>::kBase), "n"(kAndOr));
  return __hsub2(reinterpret_cast<const typename Pair<T>::type&>(bits), Nibbles<T>::offset());
}

}  // namespace trt_resa
