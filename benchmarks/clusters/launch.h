// What the programs here share.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#define CHECK(call)                                                        \
  do {                                                                     \
    const cudaError_t error = (call);                                      \
    if (error != cudaSuccess) {                                            \
      std::printf("%s in line %d\n", cudaGetErrorString(error), __LINE__); \
      std::exit(1);                                                        \
    }                                                                      \
  } while (0)

// A launch in clusters; not to be copied, since it points to itself.
struct ClusterLaunch {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attribute = {};

  ClusterLaunch(int cluster_size, int clusters, int threads, size_t shared_bytes,
                cudaStream_t stream = nullptr) {
    config.gridDim = cluster_size * clusters;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster_size;
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;
  ClusterLaunch& operator=(const ClusterLaunch&) = delete;
};

// Allows a kernel clusters of 16 and so much shared memory.
template <typename Kernel>
void allow(Kernel* kernel, size_t shared_bytes) {
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes)));
}

// 0 to `count` - 1 in random order, in device memory.
inline const int* random_order(int count) {
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(1));
  int* on_device;
  CHECK(cudaMalloc(&on_device, count * sizeof(int)));
  CHECK(cudaMemcpy(on_device, order.data(), count * sizeof(int), cudaMemcpyHostToDevice));
  return on_device;
}
