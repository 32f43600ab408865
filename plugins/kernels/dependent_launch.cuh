// Programmatic dependent launch: a kernel starts while the one before it in the stream still runs.
// Before compute capability 9.0 both calls do nothing, and kernels follow one another as usual.
#pragma once

namespace trt_resa {

// The next kernel may start when every thread block of this one has called this or ended.
__device__ inline void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

// Waits until the kernel before has ended and its writes are visible. What it writes must not be
// read before.
__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

}  // namespace trt_resa
