// How thread blocks of one launch wait for one another.
//
// Work items are numbered, every thread block draws its next number from one counter, and an item
// waits only for items of lower numbers. The lowest unfinished item is always being worked on, so
// no wait is for ever, however few thread blocks the GPU holds at once and whatever else runs on
// it.
#pragma once

#include <cstdint>

#include "sparse_args.h"

namespace trt_resa {
namespace sparse {

__device__ __forceinline__ int load_acquire(const int32_t* address) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

__device__ __forceinline__ int add_acquire_release(int32_t* address, int value) {
  int old;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(address), "r"(value)
               : "memory");
  return old;
}

__device__ __forceinline__ void add_release(int32_t* address, int value) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

// These are called by all threads of a thread block. What any of them wrote before it arrived is
// visible to all threads of a block after its wait for that count, or after `arrive_counting` that
// returned the last count.
__device__ __forceinline__ void wait(const int32_t* counter, int count) {
  if (threadIdx.x == 0) {
    while (load_acquire(counter) != count) {
    }
  }
  __syncthreads();
}

// Returns the count before. `broadcast` is shared memory that nothing else uses until the next
// barrier.
__device__ __forceinline__ int arrive_counting(int32_t* counter, int& broadcast) {
  __syncthreads();
  if (threadIdx.x == 0) broadcast = add_acquire_release(counter, 1);
  __syncthreads();
  return broadcast;
}

}  // namespace sparse
}  // namespace trt_resa
