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
int32_t encode_cache(const Args& a, CacheMaps& maps) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                             12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return cuda_status(error);
  if (found != cudaDriverEntryPointSuccess) return cuda_status(cudaErrorNotSupported);

  const auto& p = a.p;
  void* const address = p.indirect ? p.workspace : const_cast<void*>(p.kv);
  const auto type = p.dtype == TRT_RESA_FLOAT16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const auto encode = [&](CUtensorMap& map, cuuint32_t rank, const cuuint64_t* sizes,
                          const cuuint64_t* strides, const cuuint32_t* box) {
    const cuuint32_t steps[4] = {1, 1, 1, 1};
    const CUresult result = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry)(
        &map, type, rank, address, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? TRT_RESA_OK
                                  : TRT_RESA_CUDA_ERROR + static_cast<int32_t>(result);
  };

  const cuuint64_t head_dim = p.head_dim, block_size = p.block_size, panels = p.head_dim / 64;
  const cuuint64_t row_bytes = head_dim * 2;
  const cuuint64_t blocks = static_cast<cuuint64_t>(p.num_blocks) * 2 * p.kv_heads;
  const auto rows = static_cast<cuuint32_t>(p.block_size);

  const cuuint64_t key_sizes[3] = {head_dim, block_size, blocks};
  const cuuint64_t key_strides[2] = {row_bytes, block_size * row_bytes};
  const cuuint32_t key_box[3] = {64, rows, 1};
  const int32_t status = encode(maps.keys, 3, key_sizes, key_strides, key_box);
  if (status != TRT_RESA_OK) return status;

  const cuuint64_t value_sizes[4] = {64, block_size, panels, blocks};
  const cuuint64_t value_strides[3] = {row_bytes, 128, block_size * row_bytes};
  const cuuint32_t value_box[4] = {64, rows, static_cast<cuuint32_t>(panels), 1};
  return encode(maps.values, 4, value_sizes, value_strides, value_box);
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
  static_assert(sizeof(CacheMaps) == kTensorMapBytes);
  args.placed = static_cast<CacheMaps*>(tensor_maps);
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
