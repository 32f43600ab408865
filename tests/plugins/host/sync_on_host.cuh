// Stands in for sparse_sync.cuh where one thread block does all items, one after another: what an
// item waits for has been done.
#pragma once

#include "device_on_host.h"

namespace trt_resa {
namespace sparse {

inline void add_release(int32_t* address, int value) {
  *address += value;
}

inline void wait(const int32_t* counter, int count) {
  if (*counter != count) {
    std::printf("an item waits for %d and there are %d\n", count, *counter);
    std::exit(1);
  }
  __syncthreads();
}

inline int arrive_counting(int32_t* counter, int& broadcast) {
  __syncthreads();
  if (threadIdx.x == 0) broadcast = atomicAdd(counter, 1);
  __syncthreads();
  return broadcast;
}

}  // namespace sparse
}  // namespace trt_resa
