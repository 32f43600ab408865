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

// Follows the code that was loaded: that of a later architecture than any known one is made from the
// newest there is.
template <typename T, int kHeadDim, int kHeadTiles, bool kAttends>
int32_t launch_for_memory(const Args& args, void* stream) {
  using Large = Config<T, kHeadDim, kHeadTiles, 160, kAttends>;
  using Medium = Config<T, kHeadDim, kHeadTiles, 112, kAttends>;
  using Small = Config<T, kHeadDim, kHeadTiles, 64, kAttends>;
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, sparse_kernel<Large>);
  if (error != cudaSuccess) return cuda_status(error);
  switch (ring_kilobytes(attributes.ptxVersion)) {
    case Large::kRingKilobytes:
      return launch_kernel<Large>(args, stream);
    case Medium::kRingKilobytes:
      return launch_kernel<Medium>(args, stream);
    default:
      return launch_kernel<Small>(args, stream);
  }
}

template <typename T, int kHeadDim>
int32_t launch_for_group(const Args& args, void* stream) {
  const bool one_tile = args.q_heads / args.kv_heads <= 8;
  if ((args.roles & kAttend) == 0) {
    return one_tile ? launch_for_memory<T, kHeadDim, 1, false>(args, stream)
                    : launch_for_memory<T, kHeadDim, 2, false>(args, stream);
  }
  return one_tile ? launch_for_memory<T, kHeadDim, 1, true>(args, stream)
                  : launch_for_memory<T, kHeadDim, 2, true>(args, stream);
}

template <int kHeadDim>
int32_t launch_for_type(const Args& args, void* stream) {
  return args.dtype == TRT_RESA_FLOAT16 ? launch_for_group<__half, kHeadDim>(args, stream)
                                        : launch_for_group<__nv_bfloat16, kHeadDim>(args, stream);
}

}  // namespace sparse
}  // namespace trt_resa
