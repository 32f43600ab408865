// Launching the kernel of the sparse step.
#pragma once

#include "gpu_map.h"
#include "launch.h"
#include "sparse_kernel.cuh"

namespace trt_resa {
namespace sparse {

// Clusters for a launch: as many as the device holds at once, of which some take a row each, or all
// do items where teams do not suit the lengths.
struct TeamGrid {
  int size = 1;
  int clusters = 0;
};

// Lets thread blocks have the shared memory that they need.
template <typename C>
cudaError_t allow_shared_memory() {
  return cudaFuncSetAttribute(sparse_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(sizeof(typename C::Shared)));
}

// The largest teams of which the device holds one per row at once; they select.
template <typename C>
TeamGrid find_teams(const Args& args) {
  TeamGrid teams;
  const int rows = args.batch_size * args.kv_heads;
  if (args.batch_size > 32 || (args.roles & kSelect) == 0) return teams;
  cudaError_t error = allow_shared_memory<C>();
  if (error == cudaSuccess) {
    error =
        cudaFuncSetAttribute(sparse_kernel<C>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  for (int size = kMaxTeam; error == cudaSuccess && size >= kMinTeam; size /= 2) {
    if (rows * size < kMinTeamBlocks) break;
    const LaunchConfig config(dim3(static_cast<unsigned>(rows * size)), dim3(C::kThreads), nullptr,
                              LaunchOptions{sizeof(typename C::Shared), false, size});
    int clusters = 0;
    error = cudaOccupancyMaxActiveClusters(&clusters, sparse_kernel<C>, &config.config);
    if (clusters >= rows) return TeamGrid{size, clusters};
  }
  static_cast<void>(cuda_status(error));  // a failure is cleared: items need no clusters
  return teams;
}

template <typename C>
int32_t launch_teams(const Args& args, const TeamGrid& teams, void* stream) {
  Args placed = args;
  placed.placement = place_rows(gpu_map(), args.batch_size * args.kv_heads);
  return launch(sparse_kernel<C>, dim3(static_cast<unsigned>(teams.size * teams.clusters)),
                dim3(C::kThreads), stream, placed,
                LaunchOptions{sizeof(typename C::Shared), true, teams.size});
}

// As many thread blocks as the device holds at once.
template <typename C>
int32_t launch_items(const Args& args, void* stream) {
  constexpr size_t kSharedBytes = sizeof(typename C::Shared);
  int device = 0, multiprocessors = 0, resident = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) error = allow_shared_memory<C>();
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
  using Wide = Config<T, kHeadDim, kHeadTiles, true, false>;
  using Narrow = Config<T, kHeadDim, kHeadTiles, false, false>;
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, sparse_kernel<Wide>);
  if (error != cudaSuccess) return cuda_status(error);
  if (!is_wide(attributes.ptxVersion)) return launch_items<Narrow>(args, stream);
  if constexpr (has_teams(true, kHeadDim)) {
    using Teams = Config<T, kHeadDim, kHeadTiles, true, true>;
    const TeamGrid teams = find_teams<Teams>(args);
    if (teams.size > 1) return launch_teams<Teams>(args, teams, stream);
  }
  return launch_items<Wide>(args, stream);
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
