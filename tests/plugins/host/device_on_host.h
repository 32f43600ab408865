// A thread block of CUDA code, or a cluster of them, on the host: every thread is a fiber, and
// barriers and shuffles switch between them. Slow, exact, and enough for code that uses no more
// than what stands here.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#if __has_include(<cuda_fp16.h>)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#undef __shared__
#else
#define __device__
#define __host__
#define __forceinline__ inline
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
#endif
// One thread block runs at a time, unless it is one of a cluster, which uses none of these.
#define __shared__ static
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#undef __global__
#define __global__
#undef __noinline__
#define __noinline__

struct Index {
  unsigned x;
};
inline Index threadIdx{0}, blockIdx{0}, blockDim{0}, gridDim{1};

namespace on_host {

// Of bytes that nobody has written: as a float 51,015, which no sum passes over.
constexpr int kGarbage = 0x47;

struct Block {
  struct Fiber {
    ucontext_t context;  // where it begins
    jmp_buf place;       // and goes on
    std::unique_ptr<char[]> stack;
    const int* awaited = nullptr;  // to change from what it was; null before it has begun
    int was = 0;
    bool done = false;

    bool can_run() const { return !done && (awaited == nullptr || *awaited != was); }
  };
  std::vector<Fiber> fibers;
  std::vector<int> warp_arrived, warp_generation;
  std::vector<int64_t> slots;
  int arrived = 0, generation = 0;
  int votes = 0;
};
inline Block* block = nullptr;
inline jmp_buf scheduler;
inline std::function<void()> kernel;

// From the scheduler to a fiber, until that waits or ends. By jumps: swapcontext asks the kernel
// each time.
inline void go_on(Block::Fiber& fiber) {
  if (_setjmp(scheduler) != 0) return;
  if (fiber.awaited != nullptr) _longjmp(fiber.place, 1);
  setcontext(&fiber.context);
}

// Lets others run until `value` is no longer what it `was`.
inline void await_change(const int& value, int was) {
  if (value != was) return;
  Block::Fiber& self = block->fibers[threadIdx.x];
  self.awaited = &value;
  self.was = was;
  if (_setjmp(self.place) == 0) _longjmp(scheduler, 1);
}

inline void meet(int& arrived, int& generation, int count) {
  const int mine = generation;
  if (++arrived == count) {
    arrived = 0;
    ++generation;
    return;
  }
  await_change(generation, mine);
}

inline void meet_warp() {
  const unsigned warp = threadIdx.x / 32;
  meet(block->warp_arrived[warp], block->warp_generation[warp], 32);
}

// Every lane gives a value and gets `pick` of the warp's values.
template <typename T, typename Pick>
auto exchange(T value, Pick&& pick) {
  static_assert(sizeof(T) <= sizeof(int64_t));
  const unsigned self = threadIdx.x;
  std::memcpy(&block->slots[self], &value, sizeof(T));
  meet_warp();
  const auto result = pick([&](int lane) {
    T other;
    std::memcpy(&other, &block->slots[self / 32 * 32 + lane], sizeof(T));
    return other;
  });
  meet_warp();
  return result;
}

// Runs `code` as `count` thread blocks that take turns; `enter` is called with the number of the
// one whose turn it is. Says so and ends the program where threads wait for ever.
inline void launch_together(unsigned count, unsigned threads, std::function<void()> code,
                            const std::function<void(int)>& enter) {
  std::vector<Block> blocks(count);
  blockDim.x = threads;
  kernel = std::move(code);
  constexpr size_t kStack = 64 * 1024;
  for (Block& here : blocks) {
    here.fibers.resize(threads);
    here.warp_arrived.resize(threads / 32);
    here.warp_generation.resize(threads / 32);
    here.slots.resize(threads);
    for (auto& fiber : here.fibers) {
      fiber.stack.reset(new char[kStack]);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      makecontext(
          &fiber.context,
          +[] {
            kernel();
            block->fibers[threadIdx.x].done = true;
            _longjmp(scheduler, 1);
          },
          0);
    }
  }
  std::vector<unsigned> order(count * threads);
  std::iota(order.begin(), order.end(), 0u);
  static std::mt19937 random(3);
  size_t left = order.size();
  for (int round = 0; left > 0; ++round) {
    if (round % 4 == 0) std::shuffle(order.begin(), order.end(), random);
    bool stuck = true;
    for (unsigned i : order) {
      block = &blocks[i / threads];
      Block::Fiber& fiber = block->fibers[i % threads];
      if (!fiber.can_run()) continue;
      stuck = false;
      enter(static_cast<int>(i / threads));
      threadIdx.x = i % threads;
      go_on(fiber);
      left -= fiber.done;
    }
    if (stuck) {
      std::puts("the threads wait for ever");
      std::exit(1);
    }
  }
}

inline void launch(unsigned threads, std::function<void()> code) {
  launch_together(1, threads, std::move(code), [](int) {});
}

}  // namespace on_host

inline void __syncthreads() {
  on_host::meet(on_host::block->arrived, on_host::block->generation, static_cast<int>(blockDim.x));
}
inline int __syncthreads_count(bool vote) {
  int& votes = on_host::block->votes;
  votes += vote ? 1 : 0;
  __syncthreads();
  const int all = votes;
  __syncthreads();
  votes = 0;
  __syncthreads();
  return all;
}
template <typename T>
T __shfl_sync(unsigned, T value, int lane, int width = 32) {
  const int base = static_cast<int>(threadIdx.x % 32) / width * width;
  return on_host::exchange(value, [&](auto&& of) { return of(base + lane % width); });
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int offset) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return on_host::exchange(
      value, [&](auto&& of) { return of(std::max(lane - offset, lane < offset ? lane : 0)); });
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return on_host::exchange(value, [&](auto&& of) { return of(lane ^ mask); });
}
// What `fold` makes of a warp's values, one after another.
template <typename T, typename Fold>
T fold_warp(T value, Fold&& fold) {
  return on_host::exchange(value, [&](auto&& of) {
    T all = of(0);
    for (int i = 1; i < 32; ++i) all = fold(all, of(i));
    return all;
  });
}
template <typename T>
T __reduce_add_sync(unsigned, T value) {
  return fold_warp(value, [](T a, T b) { return static_cast<T>(a + b); });
}
template <typename T>
T __reduce_max_sync(unsigned, T value) {
  return fold_warp(value, [](T a, T b) { return std::max(a, b); });
}
template <typename T>
T __reduce_min_sync(unsigned, T value) {
  return fold_warp(value, [](T a, T b) { return std::min(a, b); });
}
inline unsigned __ballot_sync(unsigned, bool value) {
  return on_host::exchange(value, [](auto&& of) {
    unsigned lanes = 0;
    for (int i = 0; i < 32; ++i) lanes |= (of(i) ? 1u : 0u) << i;
    return lanes;
  });
}
template <typename T>
void atomicMin(T* address, T value) {
  *address = std::min(*address, value);
}
template <typename T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address += value;
  return before;
}
inline void __threadfence() {}
inline void __syncwarp() {
  on_host::meet_warp();
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __fsqrt_rn(float x) {
  return std::sqrt(x);
}
inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
using std::isnan;
using std::max;
using std::min;
