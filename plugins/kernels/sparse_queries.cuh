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

// Elements from one query in shared memory to the next: the same columns of eight queries lie in
// different banks.
template <int kHeadDim>
constexpr int kQueryPitch = kHeadDim + kVecSize;

// What a thread block still holds in shared memory from the item before.
struct Held {
  int rope_of = -1;  // sequence whose position the RoPE table is for
};

// The queries of one KV head's group. All threads call `load`, then `stage`.
template <typename T, int kHeadDim, int kHeadTiles, int kWarps>
class GroupQueries {
  using L = append::Layout<kHeadDim>;
  static constexpr int kRounds = (8 * kHeadTiles + kWarps - 1) / kWarps;

 public:
  // `row` is the sequence's row.
  __device__ GroupQueries(const Args& a, int row, int kv_head)
      : a_(a), row_(row), appends_((a.roles & kAppend) != 0) {
    const int heads = appends_ ? a.q_heads + 2 * a.kv_heads : a.q_heads;
    source_ = static_cast<const T*>(appends_ ? a.append.qkv : a.q) +
              (static_cast<int64_t>(row) * heads + kv_head * a.group) * kHeadDim + column();
  }

  // Starts the loads. What is copied after them waits behind them, not before.
  __device__ void load(int seq, const append::RopeTable<kHeadDim, 1>& table, Held& held) {
    const append::Params& p = a_.append;
    norms_ = appends_ && p.q_norm != nullptr;
    rotates_ = appends_ && p.rotary_dim > 0;
    if (norms_ && has_vec()) {
      norm_weight_ = Vec<T>::load(static_cast<const T*>(p.q_norm) + column());
    }
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      if (head(i) < a_.group && has_vec()) {
        loaded_[i] = Vec<T>::load(source_ + head(i) * kHeadDim);
      }
    }
    fills_ = rotates_ && held.rope_of != seq;
    if (fills_) {
      held.rope_of = seq;
      angle_ = table.load(p, row_);
    }
  }

  // The queries as kv_append keeps them to `staged` [group, kQueryPitch] in shared memory. Begins
  // and ends with a barrier.
  __device__ void stage(append::RopeTable<kHeadDim, 1>& table, T* staged) {
    if (fills_) table.set(a_.append, angle_);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      if (head(i) >= a_.group) break;
      Vec<T> out = loaded_[i];
      if (appends_) {
        out = append::finish_row<T, kHeadDim>(a_.append, out, norms_, norm_weight_, rotates_, table,
                                              0);
      }
      if (has_vec()) out.store(staged + head(i) * kQueryPitch<kHeadDim> + column());
    }
    __syncthreads();
  }

 private:
  static __device__ int head(int i) { return i * kWarps + static_cast<int>(threadIdx.x) / 32; }
  static __device__ int column() { return static_cast<int>(threadIdx.x) % 32 * kVecSize; }
  static __device__ bool has_vec() { return threadIdx.x % 32 < L::kVecs; }

  const Args& a_;
  int row_;
  bool appends_;
  bool norms_ = false;
  bool rotates_ = false;
  bool fills_ = false;
  typename append::RopeTable<kHeadDim, 1>::Loaded angle_;
  const T* source_;
  Vec<T> norm_weight_;
  Vec<T> loaded_[kRounds];
};

// The new token of one KV head: its K and V into the cache, the last block's summary, the group's
// queries to `q`. Called by all threads; a barrier must follow.
template <typename T, int kHeadDim, int kWarps>
__device__ void append_row(const Args& a, int seq, int row, int kv_len, int kv_head,
                           append::RopeTable<kHeadDim, 1>& table, Held& held) {
  held.rope_of = seq;
  const int group = a.group;
  append::TouchedBlock block;
  block.seq = seq;
  block.index = (kv_len - 1) / a.block_size;
  block.first_row = row;
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
