// Barriers in shared memory and tensor copies that arrive at them, for compute capability 9.0.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace trt_resa {

__device__ inline void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to copies.
__device__ inline void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

__device__ inline void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

// Arrives, and adds `bytes` that copies will deliver in this phase.
__device__ inline void barrier_arrive_expecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Waits for the end of the phase of this parity. Before the first phase has ended, the parity 1
// counts as ended.
__device__ inline void barrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@!done bra again;\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Ordinary writes to shared memory become visible to copies and wgmma.
__device__ inline void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// Writes `given` with another address to `placed` in global memory, for copies that this warp
// makes. The whole warp calls it; `scratch`, in shared memory, and `placed` are aligned to 128.
// Copies read tensor maps through a proxy of their own, past writes that no fence orders.
__device__ inline void place_tensor_map(const CUtensorMap& given, const void* address,
                                        CUtensorMap& scratch, CUtensorMap* placed) {
  static_assert(sizeof(CUtensorMap) == 32 * sizeof(uint32_t));
  const int lane = threadIdx.x % 32;
  const auto changed = static_cast<uint32_t>(__cvta_generic_to_shared(&scratch));
  reinterpret_cast<uint32_t*>(&scratch)[lane] = reinterpret_cast<const uint32_t*>(&given)[lane];
  __syncwarp();
  if (lane == 0) {
    asm volatile(
        "tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;\n" ::"r"(changed),
        "l"(address)
        : "memory");
  }
  __syncwarp();
  asm volatile(
      "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned "
      "[%0], [%1], 128;\n" ::"l"(__cvta_generic_to_global(placed)),
      "r"(changed)
      : "memory");
  asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;\n" ::"l"(placed) : "memory");
}

// Copy a box of a tensor of three or four dimensions; one thread calls it. Elements outside the
// tensor become zeros, and their bytes are counted too.
__device__ inline void copy_box(uint32_t target, const CUtensorMap* map, int x, int y, int z,
                                uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4}], [%5];\n" ::"r"(target),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}

__device__ inline void copy_box(uint32_t target, const CUtensorMap* map, int x, int y, int z, int w,
                                uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4, %5}], [%6];\n" ::"r"(target),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier)
      : "memory");
}

// A barrier among `threads` threads (whole warps) of the thread block; 0 is __syncthreads.
__device__ inline void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

__device__ inline void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace trt_resa
