// The queries of a group for whoever scores or attends, and the append of a row's new token.
//
// Where the launch appends, every thread block makes the queries that it needs from qkv itself: a
// group is a few rows, and nobody waits for another thread block. Among items, the row's last part,
// which sees the new token, waits for the append; in a team whoever appends attends to it itself.
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

// The queries of one KV head's group. All threads call `prepare`, `load`, `stage`.
template <typename T, int kHeadDim, int kHeadTiles, int kWarps>
class GroupQueries {
  using L = append::Layout<kHeadDim>;
  static constexpr int kRounds = (8 * kHeadTiles + kWarps - 1) / kWarps;

 public:
  // `row` is the sequence's row.
  __device__ GroupQueries(const Args& a, int row)
      : a_(a), row_(row), appends_((a.roles & kAppend) != 0) {}

  // Starts the loads of what is needed beside the queries.
  __device__ void prepare(int seq, const append::RopeTable<kHeadDim, 1>& table, Held& held) {
    const append::Params& p = a_.append;
    norms_ = appends_ && p.q_norm != nullptr;
    rotates_ = appends_ && p.rotary_dim > 0;
    if (norms_ && has_vec()) {
      norm_weight_ = Vec<T>::load(static_cast<const T*>(p.q_norm) + column());
    }
    fills_ = rotates_ && held.rope_of != seq;
    if (fills_) {
      held.rope_of = seq;
      angle_ = table.load(p, row_);
    }
  }

  // Starts the queries' loads. What is copied after them waits behind them, not before.
  __device__ void load(int kv_head) {
    const int heads = appends_ ? a_.q_heads + 2 * a_.kv_heads : a_.q_heads;
    const T* source =
        static_cast<const T*>(appends_ ? a_.append.qkv : a_.q) +
        static_cast<uint64_t>(static_cast<uint32_t>(row_ * heads + kv_head * a_.group)) * kHeadDim +
        column();
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      if (head(i) < a_.group && has_vec()) {
        loaded_[i] = Vec<T>::load(source + head(i) * kHeadDim);
      }
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
  static __device__ int head(int i) { return i * kWarps + warp_index(); }
  static __device__ int column() { return lane_index() * kVecSize; }
  static __device__ bool has_vec() { return lane_index() < L::kVecs; }

  const Args& a_;
  int row_;
  bool appends_;
  bool norms_ = false;
  bool rotates_ = false;
  bool fills_ = false;
  typename append::RopeTable<kHeadDim, 1>::Loaded angle_;
  Vec<T> norm_weight_;
  Vec<T> loaded_[kRounds];
};

// The new token of one KV head, by a thread block that stages the group's queries as well. All
// threads call `load`, `store`, and after another barrier `summarise`; where it is not the one that
// `appends` they do nothing.
template <typename T, int kHeadDim, int kWarps>
class NewToken {
  using L = append::Layout<kHeadDim>;

 public:
  // `row` is the sequence's row, of `kv_len` tokens with this one.
  __device__ NewToken(const Args& a, bool appends, int row, int kv_len, int kv_head)
      : a_(a),
        appends_(appends),
        row_(row),
        last_block_((kv_len - 1) >> a.block_shift),
        slot_((kv_len - 1) & (a.block_size - 1)),
        kv_head_(kv_head) {}

  // Starts the loads: a warp has K, another one V.
  __device__ void load(const int32_t* table) {
    if (!appends_ || part() < 0) return;
    entry_ = table[last_block_];
    if (!has_vec()) return;
    const append::Params& p = a_.append;
    const int64_t heads = a_.q_heads + 2 * a_.kv_heads;
    const int64_t head = row_ * heads + a_.q_heads + part() * a_.kv_heads + kv_head_;
    loaded_ = Vec<T>::load(static_cast<const T*>(p.qkv) + head * kHeadDim + column());
    if (part() == 0 && p.k_norm != nullptr) {
      norm_weight_ = Vec<T>::load(static_cast<const T*>(p.k_norm) + column());
    }
  }

  // K and V to the cache, and the queries, which are `staged`, to `q`. The RoPE table stands.
  __device__ void store(const append::RopeTable<kHeadDim, 1>& table, const T* staged) {
    if (!appends_) return;
    const append::Params& p = a_.append;
    T* q = static_cast<T*>(p.q) +
           static_cast<int64_t>(row_ * a_.q_heads + kv_head_ * a_.group) * kHeadDim;
#pragma unroll 1
    for (int i = threadIdx.x; i < a_.group * L::kVecs; i += 32 * kWarps) {
      const int head = i / L::kVecs, vec = i % L::kVecs;
      Vec<T>::load(staged + head * kQueryPitch<kHeadDim> + vec * kVecSize).store(q + i * kVecSize);
    }
    if (part() < 0) return;
    if (part() == 0) {
      loaded_ = append::finish_row<T, kHeadDim>(p, loaded_, p.k_norm != nullptr, norm_weight_,
                                                p.rotary_dim > 0, table, 0);
    }
    if (!has_vec() || !is_pool_block(a_, entry_)) return;
    loaded_.store(append::cache_rows<T>(p, entry_, part(), kv_head_) + slot_ * kHeadDim + column());
  }

  // The last block's summary, by one warp.
  __device__ void summarise() const {
    if (!appends_ || part() != 1 || !is_pool_block(a_, entry_)) return;
    const int row_in_pass = lane_index() / L::kLanes;
    const T* keys = append::cache_rows<const T>(a_.append, entry_, 0, kv_head_) + column();
    append::Extrema<T> extrema;
#pragma unroll 8
    for (int slot = row_in_pass; slot <= slot_; slot += L::kRowsPerPass) {
      if (has_vec_of_row()) extrema.add(Vec<T>::load(keys + slot * kHeadDim));
    }
    extrema.template merge_rows<L::kLanes>();
    if (row_in_pass > 0 || !has_vec_of_row()) return;
    T* summary = append::summary_of<T>(a_.append, entry_, kv_head_) + column();
    extrema.low.store(summary);
    extrema.high.store(summary + kHeadDim);
  }

 private:
  // 0: this warp has K, 1: V.
  static __device__ int part() { return warp_index() - (kWarps - 2); }
  static __device__ int column() { return static_cast<int>(threadIdx.x) % L::kLanes * kVecSize; }
  static __device__ bool has_vec_of_row() { return threadIdx.x % L::kLanes < L::kVecs; }
  // Of the one row.
  static __device__ bool has_vec() { return lane_index() < L::kVecs; }

  const Args& a_;
  const bool appends_;
  const int row_;
  const int last_block_;
  const int slot_;
  const int kv_head_;
  int entry_ = -1;  // of the last block in the table
  Vec<T> loaded_;
  Vec<T> norm_weight_;
};

// The same as an item, with the group's queries to `q`. Called by all threads; a barrier must
// follow.
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
    const int i = base + warp_index();
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
