// How long all thread blocks of clusters of 16 take to send one another so many bytes, three times
// in a row: by a bulk copy to each, by st.async of 16 bytes with a warp for each receiver, or by
// threads that send to one after another; with and without copies from memory in flight.
//
// nvcc -std=c++17 -O3 -arch=sm_90a -I../../plugins/kernels -I../../plugins/include -o exchange
// exchange.cu
#include <cstdint>

#include "cluster.cuh"
#include "launch.h"
#include "mma.cuh"

using namespace trt_resa;

constexpr int kRanks = 16;
constexpr int kClusters = 4;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMostBytes = 1040;
constexpr int kRounds = 3;
constexpr int kChunks = 200000;  // of 4 KB, from which copies come

enum Way : int { kBulk, kWarpEach, kOneAfterAnother };

struct alignas(128) Shared {
  char ring[128 * 1024];
  alignas(16) uint32_t sent[kRounds][kRanks][kMostBytes / 4];
  uint64_t there[kRounds];
};

// `clocks` [thread blocks, kRounds]: cycles of each exchange. Copies begin with the `first` chunk.
__global__ void __launch_bounds__(kThreads, 1)
    exchange(const char* base, const int* order, int first, int copied_kb, int bytes, Way way,
             long long* clocks) {
  extern __shared__ __align__(128) char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const int rank = cluster::rank(), thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  if (thread == 0) {
    for (auto& barrier : s.there) cluster::make_barrier(barrier, 1);
    cluster::fence_barriers();
  }
  for (int round = 0; round < kRounds; ++round) {
    for (int i = thread; i < kMostBytes / 4; i += kThreads) s.sent[round][rank][i] = i;
  }
  cluster::arrive();
  cluster::wait();
  __syncthreads();
  for (int chunk = 0; chunk < copied_kb / 32; ++chunk) {  // 4 KB per warp each
    const char* from =
        base +
        static_cast<size_t>(order[(first + blockIdx.x * 32 + warp * 4 + chunk) % kChunks]) * 4096;
    const uint32_t to =
        opaque_address(shared_address(s.ring) + warp * 16384 + chunk % 4 * 4096 + lane * 16);
#pragma unroll
    for (int i = 0; i < 8; ++i) cp_async_16_once(to + i * 512, from + (i * 32 + lane) * 16, true);
    cp_async_commit();
  }
  long long before = clock64();
  for (int round = 0; round < kRounds; ++round) {
    auto* own = reinterpret_cast<float4*>(s.sent[round][rank]);
    uint64_t& there = s.there[round];
    if (way == kBulk) cluster::fence_before_send();
    __syncthreads();
    if (thread == 0) cluster::arrive_expecting(there, (kRanks - 1) * bytes);
    if (way == kOneAfterAnother) {
      for (int i = thread; i < bytes / 16; i += kThreads) {
        const float4 vec = own[i];
        for (int step = 1; step < kRanks; ++step) {
          cluster::send(own + i, vec, there, (rank + step) % kRanks);
        }
      }
    } else {
      for (int peer = warp; peer < kRanks; peer += kWarps) {
        if (peer == rank) continue;
        if (way == kBulk) {
          if (lane == 0) cluster::send_bytes(own, bytes, there, peer);
        } else {
          for (int i = lane; i < bytes / 16; i += 32) cluster::send(own + i, own[i], there, peer);
        }
      }
    }
    cluster::wait_for(there, 0);
    const long long now = clock64();
    if (thread == 0) clocks[blockIdx.x * kRounds + round] = now - before;
    before = now;
  }
  cp_async_wait<0>();
  cluster::arrive();
  cluster::wait();
}

int main() {
  char* buffer;
  long long* clocks;
  constexpr int kBlocks = kClusters * kRanks;
  CHECK(cudaMalloc(&buffer, static_cast<size_t>(kChunks) * 4096));
  CHECK(cudaMalloc(&clocks, kBlocks * kRounds * sizeof(long long)));
  const int* order = random_order(kChunks);
  allow(exchange, sizeof(Shared));
  ClusterLaunch launch(kRanks, kClusters, kThreads, sizeof(Shared));

  const char* const names[] = {"bulk copies", "st.async, a warp for each", "one after another"};
  for (int copied_kb : {0, 128}) {
    for (Way way : {kBulk, kWarpEach, kOneAfterAnother}) {
      for (int bytes : {16, 64, 128, 256, 528, kMostBytes}) {
        std::vector<long long> medians[kRounds];
        for (int replay = 0; replay < 9; ++replay) {
          CHECK(cudaLaunchKernelEx(&launch.config, exchange, const_cast<const char*>(buffer), order,
                                   replay * 8000, copied_kb, bytes, way, clocks));
          std::vector<long long> of_blocks(kBlocks * kRounds);
          CHECK(cudaMemcpy(of_blocks.data(), clocks, of_blocks.size() * sizeof(long long),
                           cudaMemcpyDeviceToHost));
          for (int round = 0; round < kRounds; ++round) {
            std::vector<long long> some;
            for (int i = 0; i < kBlocks; ++i) some.push_back(of_blocks[i * kRounds + round]);
            std::sort(some.begin(), some.end());
            medians[round].push_back(some[kBlocks / 2]);
          }
        }
        std::printf("%3d KB in flight, %s, %4d bytes:", copied_kb, names[way], bytes);
        for (auto& of_round : medians) {
          std::sort(of_round.begin(), of_round.end());
          std::printf(" %lld", of_round[4]);
        }
        std::printf(" cycles\n");
      }
    }
  }
}
