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

// Small thread blocks, many per multiprocessor: while one waits for another, or finishes an item,
// the others keep the memory busy. Registers set the number, and shared memory for head_dim 256;
// the code for other GPUs than compute capability 9.0 needs a few registers more.
constexpr int resident_thread_blocks(int head_dim, int head_tiles) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
  constexpr int kMost = 3;
#else
  constexpr int kMost = 4;
#endif
  if (head_dim == 256) return 2;
  if (head_tiles == 2) return head_dim == 64 ? 3 : 2;
  return head_dim == 96 ? 3 : kMost;
}

template <typename T_, int kHeadDim_, int kHeadTiles>
struct Config {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;
  using Attend = AttendShape<kHeadDim, kHeadTiles, kWarps>;
  using Score = ScoreShape<kHeadDim, kWarps>;
  static constexpr int kResident = resident_thread_blocks(kHeadDim, kHeadTiles);

  union Shared {
    append::RopeTable<kHeadDim> rope;
    TopK<kThreads> topk;
    AttendShared<Attend> attend;
    MergeShared<kHeadDim, kThreads> merge;
  };
};

// The token's K and V into the cache, its queries to `q`, the last block's summary.
template <typename C>
__device__ void do_append(const Args& a, const Plan& plan, const Progress& progress, int index,
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
  arrive(progress.appended(seq));
  if (index % per_seq * kWarps < a.q_heads && threadIdx.x == 0) {
    add_release(progress.queries_written(seq), 1);
  }
}

// Scores a chunk of a row; whoever is last chooses the row's selection.
template <typename C>
__device__ void do_score(const Args& a, const Plan& plan, const Progress& progress, int index,
                         TopK<kThreads>& shared) {
  __shared__ int scored_before;
  const RowItem item = find_row_item(a, plan.score_end, index);
  const int row = item.row(a);
  const int blocks = blocks_of(a, plan.kv_len[item.seq]);
  const int wanted = plan.selected[item.seq];
  const bool appends = (a.roles & kAppend) != 0;
  int32_t* selection = a.selection + static_cast<int64_t>(row) * a.max_selected;

  if (wanted == blocks) {
    for (int i = threadIdx.x; i < blocks; i += kThreads) selection[i] = i;
  } else {
    score_chunk<typename C::T, C::kHeadDim, kWarps>(
        a, plan, item, progress.queries_written(item.seq), appends ? div_up(a.q_heads, kWarps) : 0,
        shared.histogram, reinterpret_cast<typename C::T*>(shared.candidates));
    if (arrive_counting(progress.scored(a, row), scored_before) != item.pieces - 1) return;
    shared.select(a.keys + static_cast<int64_t>(row) * a.key_pitch,
                  a.counters.histogram + static_cast<int64_t>(row) * kBins, blocks, wanted,
                  selection);
  }
  // Whoever attends waits for the selection alone: the new token's K and V must stand too.
  if (appends) {
    wait(progress.appended(item.seq), div_up(a.q_heads + 2 * a.kv_heads, kWarps));
  }
  if ((a.roles & kAttend) != 0) arrive(progress.selected(a, row));
}

template <typename C>
__device__ void do_attend(const Args& a, const Plan& plan, const Progress& progress, int index,
                          AttendShared<typename C::Attend>& shared) {
  const RowItem item = find_row_item(a, plan.attend_end, index);
  if ((a.roles & kSelect) != 0) wait(progress.selected(a, item.row(a)), 1);
  attend<typename C::T>(a, plan, item, index, shared);
  if (item.pieces > 1) arrive(progress.attended(a, item.row(a)));
}

// Merges the parts of a slice of one query head.
template <typename C>
__device__ void do_merge(const Args& a, const Plan& plan, const Progress& progress, int index,
                         MergeShared<C::kHeadDim, kThreads>& shared) {
  using Shared = MergeShared<C::kHeadDim, kThreads>;
  const int slice = index % Shared::kSlices;
  const int seq = index / Shared::kSlices / a.q_heads;
  const int head = index / Shared::kSlices % a.q_heads;
  if (plan.kv_len[seq] == 0) return;
  const int group = a.q_heads / a.kv_heads;
  const int kv_head = head / group;
  const int begin = seq == 0 ? 0 : plan.attend_end[seq - 1];
  const int parts = (plan.attend_end[seq] - begin) / a.kv_heads;
  if (parts == 1) return;
  wait(progress.attended(a, seq * a.kv_heads + kv_head), parts);
  const int64_t out_head = static_cast<int64_t>(plan.query_row[seq]) * a.q_heads + head;
  merge_parts<typename C::T, C::kHeadDim, kThreads>(a, out_head, head % group, slice,
                                                    begin + kv_head * parts, parts, shared);
}

// Brings what the plan and every address come from to the L2 cache, also while the kernel before
// still runs: a line that it writes afterwards is replaced there.
__device__ __forceinline__ void prefetch(const Args& a) {
  constexpr int kLineEntries = 128 / sizeof(int32_t);
  const int64_t entries = static_cast<int64_t>(a.batch_size) * a.max_blocks_per_seq;
  const int64_t entry = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kLineEntries;
  const auto fetch = [](const void* line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); };
  if (entry < entries) fetch(a.block_table + entry);
  if (entry < a.batch_size) {
    fetch(a.kv_lens + entry);
    if (a.cu_query_lens != nullptr) fetch(a.cu_query_lens + entry);
    if (a.given_counts != nullptr) fetch(a.given_counts + entry);
    if ((a.roles & kAppend) != 0 && a.append.rotary_dim > 0) {
      fetch(a.append.position_ids);
      fetch(a.append.inv_freq);
    }
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads, C::kResident)
    sparse_kernel(const __grid_constant__ Args a) {
  extern __shared__ __align__(128) char dynamic_shared[];
  typename C::Shared& shared = *reinterpret_cast<typename C::Shared*>(dynamic_shared);
  __shared__ Plan plan;
  __shared__ int drawn, turn;

  allow_next_kernel();
  prefetch(a);
  wait_for_previous_kernel();
  const bool draws = threadIdx.x == kThreads - 1;
  if (draws) {
    turn = a.counters.ticket[1];
    drawn = atomicAdd(a.counters.ticket, 1);
  }
  make_plan<kWarps>(a, C::Score::kPerRound, MergeShared<C::kHeadDim, kThreads>::kSlices, plan);
  __syncthreads();

  const int words = static_cast<int>(set_words(a.batch_size, a.kv_heads));
  const Progress progress{a.counters.sets + turn * words};
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < words; i += gridDim.x * kThreads) {
    a.counters.sets[(turn ^ 1) * words + i] = 0;
  }
  int item = drawn;
  while (item < plan.items()) {
    // Drawn ahead, so that the next number does not cost a round trip to the L2 cache.
    int next = 0;
    if (draws) next = atomicAdd(a.counters.ticket, 1);
    int index = item;
    if (index < plan.append_items) {
      do_append<C>(a, plan, progress, index, shared.rope);
    } else if ((index -= plan.append_items) < plan.score_items) {
      do_score<C>(a, plan, progress, index, shared.topk);
    } else if ((index -= plan.score_items) < plan.attend_items) {
      do_attend<C>(a, plan, progress, index, shared.attend);
    } else {
      do_merge<C>(a, plan, progress, index - plan.attend_items, shared.merge);
    }
    __syncthreads();  // the item's shared memory is free, and `drawn` has been read by all
    if (draws) drawn = next;
    __syncthreads();
    item = drawn;
  }
  // Each thread block draws one number beyond the last item; with the last of these all have drawn.
  if (item == plan.items() + static_cast<int>(gridDim.x) - 1) {
    if (draws) {
      a.counters.ticket[0] = 0;
      a.counters.ticket[1] = turn ^ 1;
    }
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
