// The buffers of the cache, given by their address or by the place where it stands.
#pragma once

namespace trt_resa {

// TensorRT hands the pools' addresses to a plugin as a tensor in device memory, which no launch may
// read on the host: with `indirect` the kernel reads the address when it needs it.
template <typename T>
__device__ __forceinline__ T* pool(const void* given, int indirect) {
  return indirect ? *static_cast<T* const*>(given) : static_cast<T*>(const_cast<void*>(given));
}

}  // namespace trt_resa
