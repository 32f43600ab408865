// The thread blocks of one cluster, and what they exchange through one another's shared memory.
// Compute capability 9.0 and later.
//
// A barrier is a 64-bit word in shared memory whose phases end when all expected arrivals, and all
// bytes that were announced for the phase, have come.
#pragma once

#include <cstdint>

namespace trt_resa {
namespace cluster {

__device__ inline int size() {
  int value;
  asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(value));
  return value;
}
// Of a size that is a power of two.
__device__ inline int size_log2() {
  return 31 - __clz(size());
}
__device__ inline int rank() {
  int value;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(value));
  return value;
}
// Clusters in the grid.
__device__ inline int count() {
  int value;
  asm("mov.u32 %0, %%nclusterid.x;" : "=r"(value));
  return value;
}
// Where this thread block runs.
__device__ inline int multiprocessor() {
  int value;
  asm("mov.u32 %0, %%smid;" : "=r"(value));
  return value;
}

// All threads of the cluster arrive, and those that wait go on when all have. Of what was written
// before, only barriers that were made and fenced are sure to be seen.
__device__ inline void arrive() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
__device__ inline void wait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// Where `pointer`, in this thread block's shared memory, lies in that of another rank.
__device__ inline uint32_t address_at(const void* pointer, int rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(address)
      : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(pointer))), "r"(rank));
  return address;
}

// `arrivals` per phase. Followed by fence_barriers() of the same thread, and by a barrier of the
// cluster before another thread block arrives.
__device__ inline void make_barrier(uint64_t& barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(&barrier))),
               "r"(arrivals)
               : "memory");
}
__device__ inline void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives at this thread block's own barrier, and announces bytes that `send` will bring.
__device__ inline void arrive_expecting(uint64_t& barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(&barrier))),
               "r"(bytes)
               : "memory");
}

// Waits for the end of the barrier's phase of this parity: 0 for the first one.
__device__ inline void wait_for(uint64_t& barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}\n" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(&barrier))),
      "r"(parity)
      : "memory");
}

// Writes to where `target` lies in another rank's shared memory, and counts the bytes at its
// barrier. Only who has waited there may read them.
__device__ inline void send(const int32_t* target, int32_t value, const uint64_t& barrier,
                            int rank) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                   address_at(target, rank)),
               "r"(value), "r"(address_at(&barrier, rank))
               : "memory");
}
__device__ inline void send(const uint4* target, const uint4& value, const uint64_t& barrier,
                            int rank) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(address_at(target, rank)),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(address_at(&barrier, rank))
      : "memory");
}
__device__ inline void send(const float2* target, const float2& value, const uint64_t& barrier,
                            int rank) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
          address_at(target, rank)),
      "f"(value.x), "f"(value.y), "r"(address_at(&barrier, rank))
      : "memory");
}
__device__ inline void send(const float4* target, const float4& value, const uint64_t& barrier,
                            int rank) {
  const uint4 words = make_uint4(__float_as_uint(value.x), __float_as_uint(value.y),
                                 __float_as_uint(value.z), __float_as_uint(value.w));
  send(reinterpret_cast<const uint4*>(target), words, barrier, rank);
}

// The same of a multiple of 16 bytes that lie in the same place here. Every thread that wrote some
// of them has called fence_before_send() since, and a __syncthreads has followed.
__device__ inline void send_bytes(const void* bytes, int count, const uint64_t& barrier, int rank) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(address_at(bytes, rank)),
      "r"(static_cast<uint32_t>(__cvta_generic_to_shared(bytes))), "r"(count),
      "r"(address_at(&barrier, rank))
      : "memory");
}
__device__ inline void fence_before_send() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace cluster
}  // namespace trt_resa
