// The kernel of the sparse step: resident thread blocks that draw work items of four kinds.
#pragma once

#include "dependent_launch.cuh"
#include "kv_append.cuh"
#include "launch.h"
#include "sparse_args.h"
#include "sparse_attend.cuh"
#include "sparse_plan.cuh"
#include "sparse_scores.cuh"
#include "sparse_sync.cuh"
#include "sparse_topk.cuh"

namespace trt_resa {
namespace sparse {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;

template <typename T_, int kHeadDim_, int kHeadTiles>
struct Config {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;
  using Attend = AttendShape<kHeadDim, kHeadTiles, kWarps>;
  using Score = ScoreShape<kHeadDim, kWarps>;
  // Small thread blocks, many per multiprocessor: while one waits for another, or finishes an item,
  // the others keep the memory busy. Registers and shared memory set the number.
  static constexpr bool kRoomForFour = kHeadDim != 96 && kHeadTiles * kHeadDim <= 128;
  static constexpr int kResident = kHeadDim == 256 ? 2 : kRoomForFour ? 4 : 3;

  union Shared {
    append::RopeTable<kHeadDim> rope;
    TopK<kThreads> topk;
    AttendShared<Attend> attend;
    MergeShared<kHeadDim, kThreads> merge;
  };
};

// The token's K and V into the cache, its queries to `q`, the last block's summary.
template <typename C>
__device__ void do_append(const Args& a, const Plan& plan, int index,
                          append::RopeTable<C::kHeadDim>& table) {
  const int per_seq = div_up(a.q_heads + 2 * a.kv_heads, kWarps);
  const int seq = index / per_seq;
  const int kv_len = plan.kv_len[seq];
  if (kv_len == 0) return;
  append::TouchedBlock block;
  block.seq = seq;
  block.index = (kv_len - 1) / a.block_size;
  block.first_row = plan.query_row[seq];
  block.rows = 1;
  block.first_slot = (kv_len - 1) % a.block_size;
  append::append_head<typename C::T>(a.append, block, index % per_seq * kWarps + threadIdx.x / 32,
                                     table);
  __shared__ int unused;
  arrive(a.counters.appended + seq, unused);
}

// Scores a chunk of a row; whoever is last chooses the row's selection.
template <typename C>
__device__ void do_score(const Args& a, const Plan& plan, int index, TopK<kThreads>& shared) {
  __shared__ int arrived_before;
  const RowItem item = find_row_item(a, plan.score_end, index);
  const int row = item.row(a);
  const int blocks = static_cast<int>(num_blocks(plan.kv_len[item.seq], a.block_size));
  const int wanted = plan.selected[item.seq];
  const int appended = (a.roles & kAppend) != 0 ? div_up(a.q_heads + 2 * a.kv_heads, kWarps) : 0;
  int32_t* selection = a.selection + static_cast<int64_t>(row) * a.max_selected;

  if (wanted == blocks) {
    if (appended > 0) wait(a.counters.appended + item.seq, appended);
    for (int i = threadIdx.x; i < blocks; i += kThreads) selection[i] = i;
  } else {
    score_chunk<typename C::T, C::kHeadDim, kWarps>(a, plan, item, appended);
    if (arrive(a.counters.arrived + row, arrived_before) != item.pieces - 1) return;
    if (threadIdx.x == 0) a.counters.arrived[row] = 0;
    shared.select(a.keys + static_cast<int64_t>(row) * a.key_pitch,
                  a.counters.histogram + static_cast<int64_t>(row) * kBins, blocks, wanted,
                  selection);
  }
  if ((a.roles & kAttend) != 0) arrive(a.counters.ready + row, arrived_before);
}

template <typename C>
__device__ void do_attend(const Args& a, const Plan& plan, int index,
                          AttendShared<typename C::Attend>& shared) {
  __shared__ int unused;
  const RowItem item = find_row_item(a, plan.attend_end, index);
  if ((a.roles & kSelect) != 0) wait(a.counters.ready + item.row(a), 1);
  attend<typename C::T>(a, plan, item, index, shared);
  arrive(a.counters.done + item.row(a), unused);
}

// Merges the parts of one query head. The last of a sequence finds everyone past its waits and
// resets the counters.
template <typename C>
__device__ void do_merge(const Args& a, const Plan& plan, int index,
                         MergeShared<C::kHeadDim, kThreads>& shared) {
  __shared__ int merged_before;
  const int seq = index / a.q_heads;
  const int head = index % a.q_heads;
  if (plan.kv_len[seq] == 0) return;
  const int group = a.q_heads / a.kv_heads;
  const int kv_head = head / group;
  const int first_row = seq * a.kv_heads;
  const int begin = seq == 0 ? 0 : plan.attend_end[seq - 1];
  const int parts = (plan.attend_end[seq] - begin) / a.kv_heads;
  wait(a.counters.done + first_row + kv_head, parts);
  if (parts > 1) {
    const int64_t out_head = static_cast<int64_t>(plan.query_row[seq]) * a.q_heads + head;
    merge_parts<typename C::T, C::kHeadDim, kThreads>(a, out_head, head % group,
                                                      begin + kv_head * parts, parts, shared);
  }
  if (arrive(a.counters.merged + seq, merged_before) != a.q_heads - 1) return;
  for (int i = threadIdx.x; i < a.kv_heads; i += kThreads) {
    a.counters.ready[first_row + i] = 0;
    a.counters.done[first_row + i] = 0;
  }
  if (threadIdx.x == 0) {
    a.counters.appended[seq] = 0;
    a.counters.merged[seq] = 0;
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads, C::kResident)
    sparse_kernel(const __grid_constant__ Args a) {
  extern __shared__ __align__(128) char dynamic_shared[];
  typename C::Shared& shared = *reinterpret_cast<typename C::Shared*>(dynamic_shared);
  __shared__ Plan plan;
  __shared__ int drawn;

  allow_next_kernel();
  wait_for_previous_kernel();
  const bool draws = threadIdx.x == kThreads - 1;
  if (draws) drawn = atomicAdd(a.counters.ticket, 1);
  make_plan<kWarps>(a, C::Score::kChunk, plan);
  __syncthreads();

  int item = drawn;
  while (item < plan.items()) {
    // Drawn ahead, so that the next number does not cost a round trip to the L2 cache.
    int next = 0;
    if (draws) next = atomicAdd(a.counters.ticket, 1);
    int index = item;
    if (index < plan.append_items) {
      do_append<C>(a, plan, index, shared.rope);
    } else if ((index -= plan.append_items) < plan.score_items) {
      do_score<C>(a, plan, index, shared.topk);
    } else if ((index -= plan.score_items) < plan.attend_items) {
      do_attend<C>(a, plan, index, shared.attend);
    } else {
      do_merge<C>(a, plan, index - plan.attend_items, shared.merge);
    }
    __syncthreads();  // the item's shared memory is free, and `drawn` has been read by all
    if (draws) drawn = next;
    __syncthreads();
    item = drawn;
  }
  // Each thread block draws one number beyond the last item; the last of these resets the counter.
  if (item == plan.items() + static_cast<int>(gridDim.x) - 1) {
    if (draws) *a.counters.ticket = 0;
    if (a.counts != nullptr) {
      for (int i = threadIdx.x; i < a.batch_size; i += kThreads) a.counts[i] = plan.selected[i];
    }
  }
}

// As many thread blocks as the device holds at once.
template <typename C>
int32_t launch_kernel(const Args& args, void* stream) {
  constexpr size_t kSharedBytes = sizeof(typename C::Shared);
  int device = 0, multiprocessors = 0, resident = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(sparse_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(kSharedBytes));
  }
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, sparse_kernel<C>, kThreads,
                                                          kSharedBytes);
  }
  if (error != cudaSuccess) return cuda_status(error);
  const dim3 grid(static_cast<unsigned>(multiprocessors * resident));
  return launch(sparse_kernel<C>, grid, dim3(kThreads), stream, args,
                LaunchOptions{kSharedBytes, true});
}

template <typename T, int kHeadDim>
int32_t launch_for_group(const Args& args, void* stream) {
  return args.q_heads / args.kv_heads <= 8 ? launch_kernel<Config<T, kHeadDim, 1>>(args, stream)
                                           : launch_kernel<Config<T, kHeadDim, 2>>(args, stream);
}

template <int kHeadDim>
int32_t launch_for_type(const Args& args, void* stream) {
  return args.dtype == TRT_RESA_FLOAT16 ? launch_for_group<__half, kHeadDim>(args, stream)
                                        : launch_for_group<__nv_bfloat16, kHeadDim>(args, stream);
}

}  // namespace sparse
}  // namespace trt_resa
