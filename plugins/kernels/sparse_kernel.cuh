// The kernel of the sparse step: resident thread blocks that draw work items of four kinds.
//
// Its instructions are many and most run once per item, so that fetching them takes much of the
// time of a step on short contexts: loops are kept rolled and calls few, where the rate does not
// need more.
#pragma once

#include <type_traits>

#include "dependent_launch.cuh"
#include "kv_append.cuh"
#include "mma.cuh"
#include "sparse_args.h"
#include "sparse_attend.cuh"
#include "sparse_keys.cuh"
#include "sparse_merge.cuh"
#include "sparse_plan.cuh"
#include "sparse_queries.cuh"
#include "sparse_scores.cuh"
#include "sparse_sync.cuh"
#include "sparse_team.cuh"
#include "sparse_topk.cuh"

namespace trt_resa {
namespace sparse {

// What the code for an architecture can count on. A multiprocessor of a wide one gives a thread
// block more than 200 KB of shared memory, and one thread block has it to itself. Elsewhere it
// makes do with 100 KB, and as many run as fit.
TRT_RESA_HOST_DEVICE constexpr bool is_wide(int compute_capability) {
  return compute_capability == 90 || compute_capability == 100;
}

// Whether there are teams on such a multiprocessor.
TRT_RESA_HOST_DEVICE constexpr bool has_teams(bool wide, int head_dim) {
  return wide && head_dim <= 128;
}

// kTeams: for launches of clusters, which work in teams where that suits the lengths.
template <typename T_, int kHeadDim_, int kHeadTiles_, bool kWide, bool kTeams>
struct Config {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kHeadTiles = kHeadTiles_;
  static constexpr bool kIsWide = kWide;
  static constexpr int kWarps = !kWide && kHeadDim == 256 ? 4 : 8;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kResident = !kWide && kHeadDim * kHeadTiles <= 128 ? 2 : 1;
  static constexpr int kListed = kWide ? 2048 : 512;  // blocks listed in shared memory
  static constexpr int kRingBudget = kWide ? 160 * 1024 : 64 * 1024;
  using Attend = AttendShape<kHeadDim, kHeadTiles, kWarps, kRingBudget>;
  using Score = ScoreShape<kHeadDim, kHeadTiles, kWarps, kRingBudget>;
  static_assert(Score::kPerRound >= kMinScored);

  static constexpr bool kHasTeams = kTeams;
  static_assert(!kTeams || has_teams(kWide, kHeadDim));
  using Team = TeamShape<kHeadDim, kHeadTiles, kWarps>;

  // What items use, of which a thread block does one at a time.
  struct Items {
    union {
      char summaries[Score::kStages * Score::kStageBytes];
      TopK<kThreads, kRingBudget / 20 * 4> topk;
      AttendShared<Attend> attend;
      MergeShared<kRingBudget> merge;
    };
    uint32_t bins[kBins];
    int32_t list[kListed];
    // By head (sparse_keys.cuh): the sums over each warp's blocks, and the row's as a log.
    SoftmaxState of_warps[kWarps][Score::kHeads];
    alignas(16) float head_logs[Score::kHeads];
  };
  struct NoTeam {};
  struct Shared {
    union {
      Items items;
      std::conditional_t<kHasTeams, TeamShared<Team>, NoTeam> team;
    };
    append::RopeTable<kHeadDim, 1> rope;
    alignas(16) char queries[8 * kHeadTiles * kQueryPitch<kHeadDim> * sizeof(T)];

    __device__ T* staged() { return reinterpret_cast<T*>(queries); }
  };
  // With the plan, arguments and a few words it fits what a thread block is given.
  static_assert(sizeof(Shared) + sizeof(Plan) + (kHasTeams ? sizeof(Args) : 0) + 64 +
                    kSharedAlign <=
                (kWide ? 227 : 99) * 1024);
};

// The part's selection, from its first block on; null: all blocks in order.
template <typename C>
__device__ const int32_t* choose(const Args& a, const Plan& plan, const RowItem& item,
                                 const Part& part, int32_t* counters, typename C::Shared& shared) {
  const int row = item.row(a);
  const int blocks = blocks_of(a, plan.kv_len[item.seq]);
  const int wanted = plan.selected[item.seq];
  const bool attends = (a.roles & kAttend) != 0;
  int32_t* selection = a.selection + static_cast<int64_t>(row) * a.max_selected + part.first_block;
  if ((a.roles & kSelect) == 0) return selection;
  if (wanted == blocks) {
    if (attends) return nullptr;
#pragma unroll 1
    for (int i = threadIdx.x; i < blocks; i += C::kThreads) selection[i] = i;
    return selection;
  }
  if (attends && part.end_block - part.first_block <= C::kListed) selection = shared.items.list;
  wait(counters + kKeyedWord, scored_items(a, plan, item.seq));
  shared.items.topk.select(a.keys + static_cast<int64_t>(row) * a.key_pitch,
                           counters + kHistogramWord, blocks, wanted, part.first_block,
                           part.end_block, selection, shared.items.bins);
  __syncthreads();
  return selection;
}

// Attends to a part of a row's selection, whose queries are staged; whoever is last merges the
// parts and clears the counters.
template <typename C>
__device__ void do_attend(const Args& a, const Plan& plan, const RowItem& item, int index,
                          int32_t* counters, typename C::Shared& shared) {
  __shared__ int attended_before;
  using T = typename C::T;
  const int group = a.group;
  const int64_t first_head =
      static_cast<int64_t>(plan.query_row[item.seq]) * a.q_heads + item.kv_head * group;
  const Part part = part_of(a, plan, item);
  const int32_t* selection = choose<C>(a, plan, item, part, counters, shared);
  if ((a.roles & kAttend) != 0) {
    // The new token is in the last block, of which two parts may have a piece.
    if ((a.roles & kAppend) != 0 && part.end_block == plan.selected[item.seq]) {
      wait(counters + kAppendedWord, 1);
    }
    PartTiles tiles{a, selection, table_of(a, item.seq), plan.kv_len[item.seq], part};
    Attention<T, typename C::Attend, PartTiles> attention(a, item.kv_head, tiles,
                                                          shared.items.attend);
    attention.run(shared.staged(), [&](int head, int column, const SoftmaxState& state,
                                       const float (&sum)[4]) {
      if (item.pieces == 1) {
        store_four(static_cast<T*>(a.out) + (first_head + head) * C::kHeadDim + column, sum,
                   softmax_inverse(state));
        return;
      }
      const int64_t slot = static_cast<int64_t>(index) * group + head;
      *reinterpret_cast<float4*>(a.partials.accumulators + slot * C::kHeadDim + column) =
          make_float4(sum[0], sum[1], sum[2], sum[3]);
      if (column == 0) a.partials.states[slot] = state;
    });
  }
  const auto clear = [&] {
#pragma unroll 1
    for (int i = threadIdx.x; i < row_words(a.roles); i += C::kThreads) counters[i] = 0;
  };
  if (item.pieces == 1) {
    clear();
    return;
  }
  if (arrive_counting(counters + kAttendedWord, attended_before) + 1 != item.pieces) return;
  merge_parts<T, C::kHeadDim, C::kThreads>(a, first_head, item.first, item.pieces,
                                           shared.items.merge, clear);
}

// Makes the keys of a chunk of a row's blocks, and counts them in the row's histogram.
template <typename C>
__device__ void make_keys(const Args& a, const Plan& plan, const RowItem& item, int32_t* counters,
                          typename C::Shared& shared) {
  auto& own = shared.items;
  const int64_t row = item.row(a);
  wait(counters + kScoredWord, item.pieces);
  make_head_logs<C::kWarps>(a.term_sums + row * a.sum_pitch * a.term_pitch, item.pieces,
                            a.term_pitch, a.group, own.head_logs);
#pragma unroll 1
  for (int i = threadIdx.x; i < kBins; i += C::kThreads) own.bins[i] = 0;
  __syncthreads();
  const int32_t* table = table_of(a, item.seq);
  const int blocks = blocks_of(a, plan.kv_len[item.seq]);
  const int size = plan.score_rounds * C::Score::kPerRound;
  const int end = min((item.piece + 1) * size, blocks);
#pragma unroll 1
  for (int block = item.piece * size + threadIdx.x; block < end; block += C::kThreads) {
    const int64_t at = row * a.key_pitch + block;
    const uint32_t key =
        block_key(a, block, blocks, table[block], a.terms + at * a.term_pitch, own.head_logs);
    a.keys[at] = key;
    atomicAdd(&own.bins[bin_of(key, bins_begin(blocks))], 1u);
  }
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < kBins; i += C::kThreads) {
    // The row's histogram has one line per atomic: keys crowd in neighbouring bins.
    if (own.bins[i] != 0) {
      atomicAdd(counters + kHistogramWord + bin_slot(i), static_cast<int>(own.bins[i]));
    }
  }
}

// Does an item; returns the counter that is then to be raised, or null.
template <typename C>
__device__ int32_t* do_item(const Args& a, const Plan& plan, int index, typename C::Shared& shared,
                            Held& held) {
  using T = typename C::T;
  const bool scores = index < plan.score_items;
  if (!scores && (index -= plan.score_items) < plan.append_items) {
    const int seq =
        static_cast<int>(static_cast<unsigned>(index) / static_cast<unsigned>(a.kv_heads));
    if (plan.kv_len[seq] == 0) return nullptr;
    append_row<T, C::kHeadDim, C::kWarps>(a, seq, plan.query_row[seq], plan.kv_len[seq],
                                          index - seq * a.kv_heads, shared.rope, held);
    return row_counters(a, index) + kAppendedWord;
  }
  if (!scores) index -= plan.append_items;
  if (!scores && index < plan.score_items) {
    const RowItem item = find_row_item(a, plan.score_end, index);
    int32_t* counters = row_counters(a, item.row(a));
    make_keys<C>(a, plan, item, counters, shared);
    return counters + kKeyedWord;
  }
  if (!scores) index -= plan.score_items;
  const RowItem item = find_row_item(a, scores ? plan.score_end : plan.attend_end, index);
  int32_t* counters = row_counters(a, item.row(a));
  const int row_blocks = blocks_of(a, plan.kv_len[item.seq]);
  const int first_block = item.piece * plan.score_rounds * C::Score::kPerRound;
  ScoreItem<T, typename C::Score> score(
      a, {item.seq, row_blocks, first_block, row_blocks, scores ? plan.score_rounds : 0},
      shared.items.summaries);
  GroupQueries<T, C::kHeadDim, C::kHeadTiles, C::kWarps> queries(a, plan.query_row[item.seq]);
  const bool has_queries = scores || (a.roles & kAttend) != 0;
  if (has_queries) {
    queries.prepare(item.seq, shared.rope, held);
    queries.load(item.kv_head);
  }
  const int row = item.row(a);
  score.begin(item.kv_head);
  if (has_queries) queries.stage(shared.rope, shared.staged());
  score.go_on();
  score.finish(shared.staged(),
               a.terms + (static_cast<int64_t>(row) * a.key_pitch + first_block) * a.term_pitch,
               shared.items.of_warps);
  if (!scores) {
    do_attend<C>(a, plan, item, index, counters, shared);
    return nullptr;
  }
  __syncthreads();
  if (threadIdx.x < a.term_pitch) {
    const int64_t at = static_cast<int64_t>(row) * a.sum_pitch + item.piece;
    a.term_sums[at * a.term_pitch + threadIdx.x] =
        merge_warps(shared.items.of_warps, static_cast<int>(threadIdx.x));
  }
  return counters + kScoredWord;
}

// Brings what the plan and every address come from to the L2 cache, also while the kernel before
// still runs: a line that it writes afterwards is replaced there.
__device__ __forceinline__ void prefetch(const Args& a) {
  constexpr int kLineEntries = kLineBytes / sizeof(int32_t);
  const int64_t entries = static_cast<int64_t>(a.batch_size) * a.max_blocks_per_seq;
  const int entry = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * kLineEntries;
  if (entry < entries) prefetch_line(a.block_table + entry);
  if (entry < a.batch_size) {
    prefetch_line(a.kv_lens + entry);
    if (a.cu_query_lens != nullptr) prefetch_line(a.cu_query_lens + entry);
    if (a.given_counts != nullptr) prefetch_line(a.given_counts + entry);
    if ((a.roles & kAppend) != 0 && a.append.rotary_dim > 0) {
      prefetch_line(a.append.position_ids);
      prefetch_line(a.append.inv_freq);
    }
  }
}

template <typename C>
__device__ void run_items(const Args& a, typename C::Shared& shared) {
  __shared__ Plan plan;
  __shared__ int drawn;

  const bool draws = threadIdx.x == C::kThreads - 1;
  if (draws) drawn = atomicAdd(a.counters.ticket, 1);
  make_plan(a, C::Score::kPerRound, plan);
  __syncthreads();

  Held held;
  int item = drawn;
#pragma unroll 1
  while (item < plan.items()) {
    int next = 0;
    // What waits must not hold another item meanwhile; what does not draws its next one early.
    const bool waits = item >= plan.score_items + plan.append_items;
    if (draws && !waits) next = atomicAdd(a.counters.ticket, 1);
    int32_t* done = do_item<C>(a, plan, item, shared, held);
    if (draws && waits) next = atomicAdd(a.counters.ticket, 1);
    __syncthreads();  // the item's shared memory is free, and `drawn` has been read by all
    if (done != nullptr && threadIdx.x == 0) add_release(done, 1);
    if (draws) drawn = next;
    __syncthreads();
    item = drawn;
  }
  // Each thread block draws one number beyond the last item; with the last of these all have drawn.
  if (item == plan.items() + static_cast<int>(gridDim.x) - 1) {
    if (draws) *a.counters.ticket = 0;
    if (a.counts != nullptr) {
#pragma unroll 1
      for (int i = threadIdx.x; i < a.batch_size; i += C::kThreads) a.counts[i] = plan.selected[i];
    }
  }
}

// The same where teams do not suit. A function of its own: mixed with this, what teams execute
// takes longer. It would read its arguments line by line where they are, in global memory to it.
template <typename C>
__device__ __noinline__ void run_items_instead(const Args& a, typename C::Shared& shared) {
  constexpr int kWords = sizeof(Args) / sizeof(uint32_t);
  alignas(Args) __shared__ uint32_t words[kWords];
#pragma unroll 1
  for (int i = threadIdx.x; i < kWords; i += C::kThreads) {
    words[i] = reinterpret_cast<const uint32_t*>(&a)[i];
  }
  __syncthreads();
  run_items<C>(*reinterpret_cast<const Args*>(words), shared);
}

template <typename C>
__device__ void run(const Args& a, typename C::Shared& shared) {
  if constexpr (C::kHasTeams) {
    Team<typename C::T, C::kHeadDim, typename C::Team> team(a, shared.team);
    if (team.run(shared.rope, shared.staged())) return;
  }
  allow_next_kernel();
  prefetch(a);
  wait_for_previous_kernel();
  if constexpr (C::kHasTeams) {
    run_items_instead<C>(a, shared);
  } else {
    run_items<C>(a, shared);
  }
}

// Compiled to nothing for the architectures that take the other width.
template <typename C>
__global__ void __launch_bounds__(C::kThreads, C::kResident)
    sparse_kernel(const __grid_constant__ Args a) {
#ifdef __CUDA_ARCH__
  if constexpr (C::kIsWide == is_wide(__CUDA_ARCH__ / 10)) {
    extern __shared__ __align__(kSharedAlign) char dynamic_shared[];
    run<C>(a, *reinterpret_cast<typename C::Shared*>(dynamic_shared));
  }
#endif
}

}  // namespace sparse
}  // namespace trt_resa
