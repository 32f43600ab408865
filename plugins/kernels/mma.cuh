// Warp-level tensor core products and asynchronous copies of compute capability 8.0 and later.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "threads.cuh"

namespace trt_resa {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies the first `bytes` of 16 bytes to shared memory, the rest becomes zeros and is not read.
__device__ inline void cp_async_16(uint32_t target, const void* source, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(target), "l"(source),
               "r"(bytes)
               : "memory");
}
__device__ inline void cp_async_16(uint32_t target, const void* source, bool valid) {
  cp_async_16(target, source, valid ? 16 : 0);
}

// An address in shared memory, hidden from the compiler. Where it finds that lanes share a part of
// the target of a copy with a cache hint, ptxas 13.0 puts that part into a uniform register and
// encodes an instruction that the GPU refuses.
__device__ inline uint32_t opaque_address(uint32_t address) {
  return __shfl_sync(0xffffffffu, address, lane_index());
}

// A value that the compiler is to keep rather than to find again where it is used.
template <typename T>
__device__ inline T keep_in_register(T value) {
  if constexpr (sizeof(T) == 8) {
    asm volatile("" : "+l"(value));
  } else {
    asm volatile("" : "+r"(value));
  }
  return value;
}

// cp_async_16 of what a launch reads once: in the L2 cache its lines give way before others.
// `target` comes from an opaque_address.
__device__ inline void cp_async_16_once(uint32_t target, const void* source, bool valid) {
  // What createpolicy.fractional.L2::evict_first makes for all accesses.
  constexpr uint64_t policy = 0x12f0000000000000;
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;\n" ::"r"(target),
               "l"(source), "r"(valid ? 16 : 0), "l"(policy)
               : "memory");
}

// The same of 4 bytes, all of them.
__device__ inline void cp_async_4(uint32_t target, const void* source) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(target), "l"(source) : "memory");
}

__device__ inline void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until at most kPending of the committed groups are in flight.
template <int kPending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Brings a line to the L2 cache.
constexpr int kLineBytes = 128;
__device__ inline void prefetch_line(const void* line) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
}
// The same of a multiple of 16 bytes; since compute capability 9.0.
__device__ inline void prefetch_bytes(const void* bytes, int count) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(bytes), "r"(count) : "memory");
}
// What is in the line is lost, and need not be written to memory.
__device__ inline void discard_line(void* line) {
  asm volatile("discard.global.L2 [%0], 128;" ::"l"(line) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void load_matrices(uint32_t address, uint32_t (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
}

__device__ inline void load_matrices_transposed(uint32_t address, uint32_t (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
}

// The transpose of an 8x8 matrix of 16-bit elements spread over a warp.
__device__ inline uint32_t transpose_matrix(uint32_t x) {
  uint32_t out;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(out) : "r"(x));
  return out;
}

// d[16 x 8] += a[16 x 16] * b[16 x 8]. Lane l holds the columns 2 * (l % 4) and the next of the
// rows l / 4 (d[0], d[1]) and l / 4 + 8 (d[2], d[3]).
template <typename T>
__device__ inline void multiply_add(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ inline void multiply_add<__half>(float* d, const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ inline void multiply_add<__nv_bfloat16>(float* d, const uint32_t (&a)[4], uint32_t b0,
                                                   uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace trt_resa
