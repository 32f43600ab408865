// Where a thread stands among others. Unsigned arithmetic, which divides by a shift.
#pragma once

namespace trt_resa {

__device__ __forceinline__ int lane_index() {
  return static_cast<int>(threadIdx.x % 32);
}
__device__ __forceinline__ int warp_index() {
  return static_cast<int>(threadIdx.x / 32);
}

}  // namespace trt_resa
