// Warpgroup products of compute capability 9.0 (wgmma), as far as attention needs them.
//
// B, and A where it is not in registers, lie in shared memory in panels of 64 elements: rows of 128
// bytes, eight of which form an atom of 1024 bytes that is aligned to its size and whose chunks of
// 16 bytes are permuted (chunk ^ row % 8), as copies with a 128-byte swizzle write them.
//
// The accumulators of m64nN are those of mma.m16n8 side by side: warp w of the warpgroup holds the
// rows 16 * w + lane / 4 and 8 further.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace trt_resa {

// Descriptor of panels in shared memory. `panel_bytes` is the distance between panels; it counts
// only where a product spans several ones, that is, where their 64 elements are not summed over.
__device__ inline uint64_t panel_descriptor(uint32_t address, uint32_t panel_bytes) {
  constexpr uint64_t kSwizzle128 = 1;
  constexpr uint64_t kAtomBytes = 1024;
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<uint64_t>(panel_bytes >> 4) << 16 | (kAtomBytes >> 4) << 32 |
         kSwizzle128 << 62;
}

// Before the first product, and after other instructions wrote its registers.
__device__ inline void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

// Waits until at most kPending of the committed groups are in flight.
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

// clang-format off
#define TRT_RESA_ACC_8(d, i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
  "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define TRT_RESA_ACC_32(d, i) \
  TRT_RESA_ACC_8(d, i), TRT_RESA_ACC_8(d, i + 8), TRT_RESA_ACC_8(d, i + 16), \
  TRT_RESA_ACC_8(d, i + 24)
#define TRT_RESA_ACC_64(d, i) TRT_RESA_ACC_32(d, i), TRT_RESA_ACC_32(d, i + 32)
#define TRT_RESA_ACC_128(d, i) TRT_RESA_ACC_64(d, i), TRT_RESA_ACC_64(d, i + 64)
#define TRT_RESA_NAMES_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
  "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TRT_RESA_NAMES_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
  "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, " \
  "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TRT_RESA_NAMES_128 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
  "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, " \
  "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, " \
  "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, " \
  "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, " \
  "%111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, " \
  "%124, %125, %126, %127"

// scores[64 x N] = (accumulate ? scores : 0) + a[64 x 16] * b[N x 16]^T, both in shared memory.
#define TRT_RESA_WGMMA_SHARED(TYPE, PTX, N, COUNT, A, B, P) \
  __device__ inline void wgmma_shared(float (&d)[COUNT], uint64_t a, uint64_t b, bool accumulate, \
                                      TYPE) { \
    asm volatile( \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %" P ", 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." PTX "." PTX " " \
        "{" TRT_RESA_NAMES_##COUNT "}, %" A ", %" B ", p, 1, 1, 0, 0;\n}\n" \
        : TRT_RESA_ACC_##COUNT(d, 0) \
        : "l"(a), "l"(b), "r"(static_cast<int32_t>(accumulate))); \
  }

// d[64 x N] += a[64 x 16] * b[16 x N], a in registers, b in shared memory with N innermost.
#define TRT_RESA_WGMMA_REGISTERS(TYPE, PTX, N, COUNT, A0, A1, A2, A3, B) \
  __device__ inline void wgmma_registers(float (&d)[COUNT], const uint32_t (&a)[4], uint64_t b, \
                                         TYPE) { \
    asm volatile( \
        "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." PTX "." PTX " " \
        "{" TRT_RESA_NAMES_##COUNT "}, {%" A0 ", %" A1 ", %" A2 ", %" A3 "}, %" B \
        ", 1, 1, 1, 1;\n" \
        : TRT_RESA_ACC_##COUNT(d, 0) \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
  }

TRT_RESA_WGMMA_SHARED(__half, "f16", "64", 32, "32", "33", "34")
TRT_RESA_WGMMA_SHARED(__half, "f16", "128", 64, "64", "65", "66")
TRT_RESA_WGMMA_REGISTERS(__half, "f16", "64", 32, "32", "33", "34", "35", "36")
TRT_RESA_WGMMA_REGISTERS(__half, "f16", "128", 64, "64", "65", "66", "67", "68")
TRT_RESA_WGMMA_REGISTERS(__half, "f16", "256", 128, "128", "129", "130", "131", "132")
TRT_RESA_WGMMA_SHARED(__nv_bfloat16, "bf16", "64", 32, "32", "33", "34")
TRT_RESA_WGMMA_SHARED(__nv_bfloat16, "bf16", "128", 64, "64", "65", "66")
TRT_RESA_WGMMA_REGISTERS(__nv_bfloat16, "bf16", "64", 32, "32", "33", "34", "35", "36")
TRT_RESA_WGMMA_REGISTERS(__nv_bfloat16, "bf16", "128", 64, "64", "65", "66", "67", "68")
TRT_RESA_WGMMA_REGISTERS(__nv_bfloat16, "bf16", "256", 128, "128", "129", "130", "131", "132")
// clang-format on

#undef TRT_RESA_ACC_8
#undef TRT_RESA_ACC_32
#undef TRT_RESA_ACC_64
#undef TRT_RESA_ACC_128
#undef TRT_RESA_NAMES_32
#undef TRT_RESA_NAMES_64
#undef TRT_RESA_NAMES_128
#undef TRT_RESA_WGMMA_SHARED
#undef TRT_RESA_WGMMA_REGISTERS

}  // namespace trt_resa
