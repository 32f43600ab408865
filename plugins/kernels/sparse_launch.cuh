// Launching the kernel of the sparse step.
#pragma once

#include "launch.h"
#include "sparse_kernel.cuh"

namespace trt_resa {
namespace sparse {

// As many thread blocks as the device holds at once.
template <typename C>
int32_t launch_kernel(const Args& args, void* stream) {
  constexpr size_t kSharedBytes = sizeof(typename C::Shared);
  int device = 0, multiprocessors = 0, resident = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(sparse_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(kSharedBytes));
  }
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, sparse_kernel<C>, C::kThreads,
                                                          kSharedBytes);
  }
  if (error != cudaSuccess) return cuda_status(error);
  const dim3 grid(static_cast<unsigned>(multiprocessors * resident));
  return launch(sparse_kernel<C>, grid, dim3(C::kThreads), stream, args,
                LaunchOptions{kSharedBytes, true});
}

// The width follows the code that was loaded: that of a later architecture than any known one is
// made from the newest there is.
template <typename T, int kHeadDim, int kHeadTiles>
int32_t launch_for_width(const Args& args, void* stream) {
  using Wide = Config<T, kHeadDim, kHeadTiles, true>;
  using Narrow = Config<T, kHeadDim, kHeadTiles, false>;
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, sparse_kernel<Wide>);
  if (error != cudaSuccess) return cuda_status(error);
  return is_wide(attributes.ptxVersion) ? launch_kernel<Wide>(args, stream)
                                        : launch_kernel<Narrow>(args, stream);
}

template <typename T, int kHeadDim>
int32_t launch_for_group(const Args& args, void* stream) {
  return args.q_heads / args.kv_heads <= 8 ? launch_for_width<T, kHeadDim, 1>(args, stream)
                                           : launch_for_width<T, kHeadDim, 2>(args, stream);
}

template <int kHeadDim>
int32_t launch_for_type(const Args& args, void* stream) {
  return args.dtype == TRT_RESA_FLOAT16 ? launch_for_group<__half, kHeadDim>(args, stream)
                                        : launch_for_group<__nv_bfloat16, kHeadDim>(args, stream);
}

}  // namespace sparse
}  // namespace trt_resa
