// What every launcher shares: checks of host-side parameters and the launch itself.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>

#include "trt_resa/status.h"

namespace trt_resa {

inline bool any_null(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (pointer == nullptr) return true;
  }
  return false;
}

// Kernels read and write 16 bytes at a time; null passes.
inline bool any_misaligned(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return true;
  }
  return false;
}

// The cache's pools, or where their addresses stand.
inline bool any_pool_misaligned(std::initializer_list<const void*> pointers, int32_t indirect) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % (indirect != 0 ? 8 : 16) != 0) return true;
  }
  return false;
}

// A failure is cleared, so that it is reported once.
inline int32_t cuda_status(cudaError_t error) {
  if (error == cudaSuccess) return TRT_RESA_OK;
  static_cast<void>(cudaGetLastError());
  return TRT_RESA_CUDA_ERROR + static_cast<int32_t>(error);
}

struct LaunchOptions {
  size_t shared_bytes = 0;  // dynamic shared memory
  // Start while the kernel before still runs (dependent_launch.cuh); from compute capability 9.0.
  bool dependent = false;
  int cluster_size = 1;  // thread blocks of a cluster
};

// The configuration of a launch, with room for its attributes, to which it points.
struct LaunchConfig {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attributes[2] = {};

  LaunchConfig(dim3 grid, dim3 block, void* stream, const LaunchOptions& options) {
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = options.shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = attributes;
    if (options.dependent) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    if (options.cluster_size > 1) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {static_cast<unsigned>(options.cluster_size), 1, 1};
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;
};

// Launches a kernel that takes one struct. Returns the status of this launch alone: <<<>>> with
// cudaGetLastError would also report what another user of the thread left behind. A failure is
// cleared, so that it is reported once.
template <typename Params>
int32_t launch(void (*kernel)(Params), dim3 grid, dim3 block, void* stream, const Params& params,
               LaunchOptions options = {}) {
  const LaunchConfig launch_config(grid, block, stream, options);
  cudaError_t error = cudaSuccess;
  if (options.shared_bytes > 0) {  // static and dynamic memory together may need the permission
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(options.shared_bytes));
  }
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&launch_config.config, kernel, params);
  return cuda_status(error);
}

}  // namespace trt_resa
