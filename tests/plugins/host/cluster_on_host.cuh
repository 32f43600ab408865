// Stands in for cluster.cuh: the thread blocks of a cluster take turns, each with shared memory of
// its own. What is sent arrives at once.
#pragma once

#include <map>

#include "device_on_host.h"
#include "mma.cuh"

namespace trt_resa {
namespace cluster {

struct Barrier {
  int expected = 0;
  int arrived = 0;
  int bytes = 0;  // announced and not yet there
  int phase = 0;

  void settle() {
    if (arrived > expected) {
      std::puts("too many arrive at a barrier");
      std::exit(1);
    }
    if (arrived < expected || bytes != 0) return;
    arrived = 0;
    ++phase;
  }
};

inline int current_multiprocessor = 0, current_rank = 0, current_size = 1;
inline std::vector<char*> memories(1);  // of all ranks
inline std::map<const void*, Barrier> barriers;
inline std::map<const void*, int> arrived;  // generation in which a thread's fiber arrived
inline int arrivals = 0, generation = 0;

// A cluster whose shared memories are `given`, at a multiprocessor.
inline void begin(int multiprocessor, const std::vector<char*>& given) {
  current_multiprocessor = multiprocessor;
  current_size = static_cast<int>(given.size());
  memories = given;
  barriers.clear();
  arrived.clear();
  arrivals = 0;
}
inline void enter(int rank) {
  current_rank = rank;
  shared_memory = memories[rank];
}

inline int size() {
  return current_size;
}
inline int size_log2() {
  return 31 - __clz(size());
}
inline int rank() {
  return current_rank;
}
inline int count() {
  return static_cast<int>(gridDim.x) / current_size;
}
inline int multiprocessor() {
  return current_multiprocessor;
}

inline const void* fiber() {
  return &on_host::block->fibers[threadIdx.x];
}
inline void arrive() {
  arrived[fiber()] = generation;
  if (++arrivals == current_size * static_cast<int>(blockDim.x)) {
    arrivals = 0;
    ++generation;
  }
}
inline void wait() {
  on_host::await_change(generation, arrived.at(fiber()));
}

template <typename T>
T* address_at(const T* pointer, int rank) {
  const auto offset = reinterpret_cast<const char*>(pointer) - memories[current_rank];
  return reinterpret_cast<T*>(memories[rank] + offset);
}

inline void make_barrier(uint64_t& barrier, int arrivals) {
  barriers[&barrier] = Barrier{arrivals};
}
inline void fence_barriers() {}
inline void arrive_expecting(uint64_t& barrier, int bytes) {
  Barrier& here = barriers.at(&barrier);
  ++here.arrived;
  here.bytes += bytes;
  here.settle();
}
inline void wait_for(uint64_t& barrier, int parity) {
  const int& phase = barriers.at(&barrier).phase;
  if (phase % 2 == parity) on_host::await_change(phase, phase);
}
template <typename T>
void send(const T* target, const T& value, const uint64_t& barrier, int rank) {
  *address_at(target, rank) = value;
  Barrier& there = barriers.at(address_at(&barrier, rank));
  there.bytes -= static_cast<int>(sizeof(T));
  there.settle();
}

inline void send_bytes(const void* bytes, int count, const uint64_t& barrier, int rank) {
  std::memcpy(address_at(static_cast<char*>(const_cast<void*>(bytes)), rank), bytes, count);
  Barrier& there = barriers.at(address_at(&barrier, rank));
  there.bytes -= count;
  there.settle();
}
inline void fence_before_send() {}

}  // namespace cluster
}  // namespace trt_resa
