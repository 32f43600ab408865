// Block arithmetic, the twin of trt_resa/blocks.py; a test compares the two.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define TRT_RESA_HOST_DEVICE __host__ __device__
#else
#define TRT_RESA_HOST_DEVICE
#endif

namespace trt_resa {

// Blocks that hold `tokens` tokens; the last one may be partly filled.
TRT_RESA_HOST_DEVICE constexpr int64_t num_blocks(int64_t tokens, int64_t block_size) {
  return (tokens + block_size - 1) / block_size;
}

// Blocks in the selection of a sequence of `blocks` blocks. The product is taken in double, as in
// Python, so that both sides round it alike: 0.1 * 30 is exactly 3, 0.1 * 3 a little more than 0.3.
template <typename Int>
TRT_RESA_HOST_DEVICE inline Int num_selected(Int blocks, double keep_ratio, Int min_blocks) {
  const Int wanted = static_cast<Int>(ceil(keep_ratio * static_cast<double>(blocks)));
  const Int least = wanted > min_blocks ? wanted : min_blocks;
  return least < blocks ? least : blocks;
}

}  // namespace trt_resa
