// Instantiates the portable path for one element type.
#pragma once

#include "dense_launch.h"
#include "dense_portable.cuh"

namespace trt_resa {
namespace dense {

template <typename T, typename Tile>
int32_t launch_portable_tile(Args a, const Device& device, void* stream) {
  constexpr int kReserved = 1024;  // bytes of shared memory that the system takes per thread block
  const bool two_fit = device.shared_bytes >= 2 * (Tile::kSharedBytes + kReserved);
  static_assert(max_partials(2) * Tile::kRows <= kPartialRows);
  a.blocks = device.multiprocessors * (two_fit ? 2 : 1);
  return launch_with_merge<T, Tile>(portable_kernel<T, Tile>, a, a, device, stream);
}

template <typename T>
int32_t launch_portable(Args a, const Device& device, bool many_rows, void* stream) {
  const auto launch_dim = [&](auto dim) {
    constexpr int kHeadDim = decltype(dim)::value;
    return many_rows ? launch_portable_tile<T, PortableTile<kHeadDim, true>>(a, device, stream)
                     : launch_portable_tile<T, PortableTile<kHeadDim, false>>(a, device, stream);
  };
  switch (a.p.head_dim) {
    case 64:
      return launch_dim(std::integral_constant<int, 64>());
    case 96:
      return launch_dim(std::integral_constant<int, 96>());
    case 128:
      return launch_dim(std::integral_constant<int, 128>());
    default:
      return launch_dim(std::integral_constant<int, 256>());
  }
}

}  // namespace dense
}  // namespace trt_resa
