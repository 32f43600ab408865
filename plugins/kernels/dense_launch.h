// Host side of dense_attention: what its parts share. The paths are compiled one by one.
#pragma once

#include "dense_merge.cuh"
#include "dense_schedule.cuh"
#include "launch.h"

namespace trt_resa {
namespace dense {

struct Device {
  int multiprocessors = 0;
  int shared_bytes = 0;  // of a multiprocessor
  int major = 0;         // compute capability
  int minor = 0;
};

inline int32_t current_device(Device& device) {
  int index = 0;
  cudaError_t error = cudaGetDevice(&index);
  const auto get = [&](int& value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, index);
  };
  get(device.multiprocessors, cudaDevAttrMultiProcessorCount);
  get(device.shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  get(device.major, cudaDevAttrComputeCapabilityMajor);
  get(device.minor, cudaDevAttrComputeCapabilityMinor);
  return cuda_status(error);
}

// Rows of partial states per multiprocessor, for whichever path runs.
constexpr int kPartialRows = 512;

constexpr size_t kTensorMapBytes = 256;  // of a thread block's tensor maps, and their alignment

struct Workspace {
  SoftmaxPartials partials;
  void* tensor_maps;  // kTensorMapBytes per multiprocessor, for the path that puts maps there
  size_t bytes;
};

// The workspace at `base`, which may be aligned to less than tensor maps need.
inline Workspace lay_out_workspace(const Device& device, int head_dim, void* base) {
  const size_t rows = static_cast<size_t>(device.multiprocessors) * kPartialRows;
  char* const states = static_cast<char*>(base) + rows * head_dim * sizeof(float);
  const auto maps = reinterpret_cast<uintptr_t>(states + rows * sizeof(SoftmaxState));
  Workspace w;
  w.partials.accumulators = static_cast<float*>(base);
  w.partials.states = reinterpret_cast<SoftmaxState*>(states);
  w.tensor_maps = reinterpret_cast<void*>((maps + kTensorMapBytes - 1) & ~(kTensorMapBytes - 1));
  w.bytes = rows * (head_dim * sizeof(float) + sizeof(SoftmaxState)) +
            (static_cast<size_t>(device.multiprocessors) + 1) * kTensorMapBytes;
  return w;
}

// Launches the attention kernel on a.blocks thread blocks, then the merging kernel.
template <typename T, typename Tile, typename KernelArgs>
int32_t launch_with_merge(void (*kernel)(KernelArgs), const KernelArgs& kernel_args, const Args& a,
                          const Device& device, void* stream) {
  LaunchOptions options;
  options.shared_bytes = Tile::kSharedBytes;
  const int32_t status =
      launch(kernel, dim3(a.blocks), dim3(Tile::kThreads), stream, kernel_args, options);
  if (status != TRT_RESA_OK) return status;
  const int64_t rows = static_cast<int64_t>(a.p.num_rows) * a.p.q_heads;
  const int64_t resident =
      static_cast<int64_t>(device.multiprocessors) * (2048 / kMergeThreads<Tile>);
  options.shared_bytes = 0;
  options.dependent = device.major >= 9;
  return launch(merge_kernel<T, Tile>, dim3(rows < resident ? rows : resident),
                dim3(kMergeThreads<Tile>), stream, a, options);
}

// Each path sets a.blocks. T is __half or __nv_bfloat16.
template <typename T>
int32_t launch_portable(Args a, const Device& device, bool many_rows, void* stream);

// Head dimensions 64, 128 and 256, on compute capability 9.0 from machine code for 90a.
template <typename T>
int32_t launch_hopper(const Args& a, void* tensor_maps, const Device& device, void* stream);

}  // namespace dense
}  // namespace trt_resa
