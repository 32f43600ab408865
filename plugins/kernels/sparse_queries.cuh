// The queries of a group for whoever scores or attends, and the append of a row's new token.
//
// Where the launch appends, every thread block makes the queries that it needs from qkv itself: a
// group is a few rows, and nobody waits for another thread block. Only the row's last part, which
// sees the new token, waits for the append.
#pragma once

#include "kv_append.cuh"
#include "sparse_args.h"
#include "sparse_plan.cuh"

namespace trt_resa {
namespace sparse {

// What a thread block still holds in shared memory from the item before.
struct Held {
  int rope_of = -1;  // sequence whose position the RoPE table is for
};

// The queries of one KV head's group to `staged` [group, kHeadDim] in shared memory, as kv_append
// keeps them. `meanwhile` is called when the loads are under way: what it loads itself waits behind
// them, not before. Called by all threads; ends with a barrier.
template <typename T, int kHeadDim, int kWarps, typename Meanwhile>
__device__ void stage_queries(const Args& a, const Plan& plan, int seq, int kv_head,
                              append::RopeTable<kHeadDim>& table, T* staged, Held& held,
                              Meanwhile&& meanwhile) {
  using L = append::Layout<kHeadDim>;
  const append::Params& p = a.append;
  const int group = a.q_heads / a.kv_heads;
  const int row = plan.query_row[seq];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool has_vec = lane < L::kVecs;
  const bool appends = (a.roles & kAppend) != 0;
  const int heads = appends ? a.q_heads + 2 * a.kv_heads : a.q_heads;
  const T* source = static_cast<const T*>(appends ? p.qkv : a.q) +
                    (static_cast<int64_t>(row) * heads + kv_head * group) * kHeadDim +
                    lane * kVecSize;
  const bool norms = appends && p.q_norm != nullptr;
  const bool rotates = appends && p.rotary_dim > 0;
  Vec<T> norm_weight;
  if (norms && has_vec) {
    norm_weight = Vec<T>::load(static_cast<const T*>(p.q_norm) + lane * kVecSize);
  }
  constexpr int kRounds = (kMaxGroup + kWarps - 1) / kWarps;
  Vec<T> loaded[kRounds];
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int head = i * kWarps + warp;
    if (head < group && has_vec) loaded[i] = Vec<T>::load(source + head * kHeadDim);
  }
  if (rotates && held.rope_of != seq) {
    table.fill(p, row, 1);
    held.rope_of = seq;
  }
  meanwhile();
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int head = i * kWarps + warp;
    if (head >= group) break;
    Vec<T> out = loaded[i];
    if (appends) {
      out = append::finish_row<T, kHeadDim>(p, out, norms, norm_weight, rotates, table, 0);
    }
    if (has_vec) out.store(staged + head * kHeadDim + lane * kVecSize);
  }
  __syncthreads();
}

// The new token of one KV head: its K and V into the cache, the last block's summary, the group's
// queries to `q`. Called by all threads; a barrier must follow.
template <typename T, int kHeadDim, int kWarps>
__device__ void append_row(const Args& a, const Plan& plan, int seq, int kv_head,
                           append::RopeTable<kHeadDim>& table, Held& held) {
  held.rope_of = seq;
  const int kv_len = plan.kv_len[seq];
  const int group = a.q_heads / a.kv_heads;
  append::TouchedBlock block;
  block.seq = seq;
  block.index = (kv_len - 1) / a.block_size;
  block.first_row = plan.query_row[seq];
  block.rows = 1;
  block.first_slot = (kv_len - 1) % a.block_size;
#pragma unroll 1
  for (int base = 0; base < group + 2; base += kWarps) {
    const int i = base + static_cast<int>(threadIdx.x) / 32;
    const int head = i < group        ? kv_head * group + i
                     : i == group     ? a.q_heads + kv_head
                     : i == group + 1 ? a.q_heads + a.kv_heads + kv_head
                                      : a.q_heads + 2 * a.kv_heads;  // none
    __syncthreads();                                                 // the table is free
    append::append_head<T>(a.append, block, head, table);
  }
}

}  // namespace sparse
}  // namespace trt_resa
