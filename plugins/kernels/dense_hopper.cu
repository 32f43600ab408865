// Host side of the wgmma path of dense_attention.

#include "dense_hopper.cuh"

#include <cudaTypedefs.h>

#include <type_traits>

#include "dense_launch.h"

namespace trt_resa {
namespace dense {
namespace {

// The driver's encoder of tensor maps, found through the runtime: the library does not link to the
// driver, so that it loads where there is none. Where only the device knows the cache's address,
// the workspace's stands in for it until the kernel replaces it.
int32_t encode_cache(const Args& a, CUtensorMap& map) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                             12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return cuda_status(error);
  if (found != cudaDriverEntryPointSuccess) return cuda_status(cudaErrorNotSupported);

  const auto& p = a.p;
  const cuuint64_t head_dim = p.head_dim, block_size = p.block_size;
  const cuuint64_t sizes[3] = {head_dim, block_size,
                               static_cast<cuuint64_t>(p.num_blocks) * 2 * p.kv_heads};
  const cuuint64_t strides[2] = {head_dim * 2, block_size * head_dim * 2};  // bytes
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(p.block_size), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  void* const address = p.indirect ? p.workspace : const_cast<void*>(p.kv);
  const CUresult result = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry)(
      &map,
      p.dtype == TRT_RESA_FLOAT16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                  : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      3, address, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? TRT_RESA_OK : TRT_RESA_CUDA_ERROR + static_cast<int32_t>(result);
}

template <typename T, int kHeadDim>
int32_t launch_tile(HopperArgs& args, const Device& device, void* stream) {
  using Tile = HopperTile<kHeadDim>;
  static_assert(max_partials(1) * Tile::kRows <= kPartialRows);
  args.a.blocks = device.multiprocessors;
  return launch_with_merge<T, Tile>(hopper_kernel<T, Tile>, args, args.a, device, stream);
}

}  // namespace

template <typename T>
int32_t launch_hopper(const Args& a, void* tensor_maps, const Device& device, void* stream) {
  HopperArgs args = {};
  args.a = a;
  args.placed = static_cast<CUtensorMap*>(tensor_maps);
  const int32_t status = encode_cache(a, args.cache);
  if (status != TRT_RESA_OK) return status;
  switch (a.p.head_dim) {
    case 64:
      return launch_tile<T, 64>(args, device, stream);
    case 128:
      return launch_tile<T, 128>(args, device, stream);
    default:
      return launch_tile<T, 256>(args, device, stream);
  }
}

template int32_t launch_hopper<__half>(const Args&, void*, const Device&, void*);
template int32_t launch_hopper<__nv_bfloat16>(const Args&, void*, const Device&, void*);

}  // namespace dense
}  // namespace trt_resa
