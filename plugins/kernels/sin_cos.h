// sin and cos of RoPE angles, which reach millions of radians.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define TRT_RESA_SIN_COS_FUNCTION __host__ __device__ inline
#else
#define TRT_RESA_SIN_COS_FUNCTION inline
#endif

namespace trt_resa {

// Absolute error at most 1.3e-7 for |angle| <= 2^20 and 4e-7 for |angle| <= 2^21; a test measures
// it. __sincosf is useless at such angles, and sincosf takes a slow path through local memory
// beyond 105,615 rad: at just the positions that matter here.
//
// The angle is reduced by k * pi/2 in three parts. The first step is exact: its result is a
// multiple of 2^-24 below 1. The third part only matters near multiples of pi/2.
TRT_RESA_SIN_COS_FUNCTION void sin_cos(float angle, float* sine, float* cosine) {
  const float k = rintf(angle * 0.636619772f);
  float r = fmaf(k, -1.57079637f, angle);
  r = fmaf(k, 4.37113883e-8f, r);
  r = fmaf(k, 1.71512449e-15f, r);

  // Minimax polynomials on [-pi/4, pi/4].
  const float r2 = r * r;
  float s = fmaf(r2, -1.95152959e-4f, 8.33216087e-3f);
  s = fmaf(s, r2, -1.66666546e-1f);
  s = fmaf(s * r2, r, r);
  float c = fmaf(r2, 2.44331571e-5f, -1.38873163e-3f);
  c = fmaf(c, r2, 4.16666457e-2f);
  c = fmaf(c, r2, -0.5f);
  c = fmaf(c, r2, 1.0f);

  const int quadrant = static_cast<int>(k);
  const bool swapped = (quadrant & 1) != 0;
  *sine = (quadrant & 2) != 0 ? -(swapped ? c : s) : (swapped ? c : s);
  *cosine = ((quadrant + 1) & 2) != 0 ? -(swapped ? s : c) : (swapped ? s : c);
}

}  // namespace trt_resa
