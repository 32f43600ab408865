// The work of kv_append on one head and one touched cache block, for every kernel that appends.
//
// A cache block is touched where a call appends to it. Its thread block handles every row that
// falls into it, so the summary needs no second launch: the block's valid keys are the older ones,
// read from the cache, and the new ones, which pass through registers. Summaries are rebuilt from
// the valid keys each time: a rewritten key may shrink them, and a recycled block holds another
// sequence's keys beyond kv_len.
//
// Numerics: everything is computed in fp32 and rounded once, to the stored type; minima and maxima
// are taken of the rounded keys. The angle is the fp32 product position * inv_freq, as in the code
// the models were trained with: just below 2^20 rad its rounding alone is worth up to 1/32 rad, the
// same for every implementation that follows that definition. sin_cos.h states the error of what
// follows.
#pragma once

#include "pool.cuh"
#include "sin_cos.h"
#include "threads.cuh"
#include "trt_resa/kv_append.h"
#include "vec.h"

namespace trt_resa {
namespace append {

using Params = trt_resa_kv_append_params;

constexpr int kPasses = 4;  // vectors of new rows in flight per lane
constexpr unsigned kAllLanes = 0xffffffffu;

// How a warp covers the rows of one head: kLanes lanes hold a row, 8 elements each.
template <int kHeadDim>
struct Layout {
  static constexpr int kVecs = kHeadDim / kVecSize;
  static constexpr int kLanes = kVecs <= 8 ? 8 : kVecs <= 16 ? 16 : 32;  // power of two: shuffles
  static constexpr int kRowsPerPass = 32 / kLanes;
  static constexpr int kChunkRows = kPasses * kRowsPerPass;
  static_assert(kHeadDim % kVecSize == 0 && kVecs <= 32);
};

struct TouchedBlock {
  int seq;
  int index;       // in the sequence
  int first_row;   // of this call's rows that fall into the block
  int rows;        // 0: there is no such touched block
  int first_slot;  // of first_row in the block; older keys lie before it
};

// The pool block of a touched block, or -1 where the table has none.
__device__ inline int64_t find_pool_block(const Params& p, const TouchedBlock& block) {
  if (block.index >= p.max_blocks_per_seq) return -1;
  const int64_t entry = static_cast<int64_t>(block.seq) * p.max_blocks_per_seq + block.index;
  const int id = p.block_table[entry];
  return id >= 0 && id < p.num_blocks ? id : -1;
}

// cos and sin of a chunk of rows. A lane reads those of its 8 frequencies as four float4 (cos 0-3,
// cos 4-7, sin 0-3, sin 4-7); groups of 8 frequencies are innermost, so that neighbouring lanes
// read neighbouring float4 and no bank is hit twice.
template <int kHeadDim, int kRows = Layout<kHeadDim>::kChunkRows>
struct RopeTable {
  float4 data[kRows * 4 * (kHeadDim / 2 / kVecSize)];

  __device__ void fill(const Params& p, int first_row, int rows) {
    const int frequencies = p.rotary_dim / 2;
#pragma unroll 1
    for (int i = threadIdx.x; i < rows * frequencies; i += blockDim.x) {
      const int row = kRows == 1 ? 0 : i / frequencies;
      const int frequency = i - row * frequencies;
      set(p, row, frequency, angle({p.position_ids[first_row + row], p.inv_freq[frequency]}));
    }
  }

  // The table of one row in two steps: what this thread's angle comes from is loaded, which nothing
  // waits for yet, and set later.
  struct Loaded {
    int position;
    float inv_freq;
  };
  static __device__ Loaded load(const Params& p, int row) {
    if (!is_one(p)) return {0, 0.0f};
    return {p.position_ids[row], p.inv_freq[threadIdx.x]};
  }
  __device__ void set(const Params& p, const Loaded& loaded) {
    if (is_one(p)) set(p, 0, static_cast<int>(threadIdx.x), angle(loaded));
  }

  // Rotates the 8 elements of one lane; all lanes of the warp call it. Element d of the first half
  // of the rotated part pairs with d + rotary_dim / 2, which another lane holds.
  __device__ void rotate(const Params& p, int row, int lane_in_row, float (&x)[kVecSize]) const {
    constexpr int kLanes = Layout<kHeadDim>::kLanes;
    const int groups = p.rotary_dim / 2 / kVecSize;
    const bool first_half = lane_in_row < groups;
    const bool rotated = lane_in_row < 2 * groups;
    const int group = first_half ? lane_in_row : lane_in_row - groups;
    const int partner = !rotated ? lane_in_row : first_half ? lane_in_row + groups : group;
    float other[kVecSize];
#pragma unroll
    for (int i = 0; i < kVecSize; ++i) other[i] = __shfl_sync(kAllLanes, x[i], partner, kLanes);
    if (!rotated) return;
    const float sign = first_half ? -1.0f : 1.0f;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const float4 cosine = data[(row * 4 + part) * groups + group];
      const float4 sine = data[(row * 4 + part + 2) * groups + group];
      const float c[4] = {cosine.x, cosine.y, cosine.z, cosine.w};
      const float s[4] = {sine.x, sine.y, sine.z, sine.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * part + i;
        x[at] = x[at] * c[i] + sign * other[at] * s[i];
      }
    }
  }

 private:
  static_assert(kHeadDim / 2 <= 128);  // threads of the smallest thread block
  static __device__ bool is_one(const Params& p) {
    return static_cast<int>(threadIdx.x) < p.rotary_dim / 2;
  }
  static __device__ float angle(const Loaded& loaded) {
    return __fmul_rn(static_cast<float>(loaded.position), loaded.inv_freq);
  }
  __device__ void set(const Params& p, int row, int frequency, float angle) {
    const int groups = p.rotary_dim / 2 / kVecSize;
    float* values = reinterpret_cast<float*>(data);
    float sine, cosine;
    sin_cos(angle, &sine, &cosine);
    const int part = row * 4 + frequency % kVecSize / 4;
    const int at = frequency / kVecSize * 4 + frequency % 4;
    values[part * groups * 4 + at] = cosine * p.rope_scale;
    values[(part + 2) * groups * 4 + at] = sine * p.rope_scale;
  }
};

// x * w / sqrt(mean(x^2) + eps) over one head; all lanes of the warp call it, lanes beyond the head
// with zeros.
template <typename T, int kHeadDim>
__device__ void rms_norm(const Vec<T>& weight, float eps, float (&x)[kVecSize]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kVecSize; ++i) sum += x[i] * x[i];
#pragma unroll
  for (int mask = 1; mask < Layout<kHeadDim>::kLanes; mask *= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, mask);
  }
  const float scale = rsqrtf(sum / kHeadDim + eps);
  float w[kVecSize];
  weight.to_floats(w);
#pragma unroll
  for (int i = 0; i < kVecSize; ++i) x[i] *= scale * w[i];
}

// A row of one head as it is kept: normed where there is a weight, rotated where `rotates`, rounded
// once. All lanes of the warp call it, each with its 8 elements.
template <typename T, int kHeadDim, int kRows>
__device__ Vec<T> finish_row(const Params& p, const Vec<T>& raw, bool norms,
                             const Vec<T>& norm_weight, bool rotates,
                             const RopeTable<kHeadDim, kRows>& table, int row_in_table) {
  float x[kVecSize];
  raw.to_floats(x);
  if (norms) rms_norm<T, kHeadDim>(norm_weight, p.norm_eps, x);
  if (rotates) {
    table.rotate(p, row_in_table, threadIdx.x % Layout<kHeadDim>::kLanes, x);
  }
  return Vec<T>::from_floats(x);
}

// Running element-wise minimum and maximum of the keys that one lane saw.
template <typename T>
struct Extrema {
  Vec<T> low = Vec<T>::filled(Pair<T>::kInfinity);
  Vec<T> high = Vec<T>::filled(Pair<T>::kMinusInfinity);

  __device__ void add(const Vec<T>& key) {
    low = min_nan(low, key);
    high = max_nan(high, key);
  }

  // With what the lanes of a warp saw that have the same columns of other rows: kLanes hold a row.
  template <int kLanes>
  __device__ void merge_rows() {
#pragma unroll
    for (int mask = kLanes; mask < 32; mask *= 2) {
      low = min_nan(low, shuffle_xor(low, mask));
      high = max_nan(high, shuffle_xor(high, mask));
    }
  }
};

// The K (`part` 0) or V (1) of a KV head in a pool block, and its summary.
template <typename T>
__device__ __forceinline__ T* cache_rows(const Params& p, int64_t pool_block, int part,
                                         int kv_head) {
  return pool<T>(p.kv, p.indirect) +
         ((pool_block * 2 + part) * p.kv_heads + kv_head) * p.block_size * p.head_dim;
}
template <typename T>
__device__ __forceinline__ T* summary_of(const Params& p, int64_t pool_block, int kv_head) {
  return pool<T>(p.summary, p.indirect) + (pool_block * p.kv_heads + kv_head) * 2 * p.head_dim;
}

// One head of one touched block by one warp. All warps of the thread block call it for the same
// block, those beyond the last head too: they share the table.
template <typename T, int kHeadDim, int kRows>
__device__ void append_head(const Params& p, const TouchedBlock& block, int head,
                            RopeTable<kHeadDim, kRows>& table) {
  using L = Layout<kHeadDim>;
  const int64_t pool_block = find_pool_block(p, block);
  const int heads = p.q_heads + 2 * p.kv_heads;
  const bool is_query = head < p.q_heads;
  const bool is_key = !is_query && head < p.q_heads + p.kv_heads;
  const bool is_value = !is_query && !is_key;
  const int lane_in_row = threadIdx.x % L::kLanes;
  const int row_in_pass = lane_index() / L::kLanes;
  const bool has_vec = head < heads && lane_in_row < L::kVecs;
  const int column = lane_in_row * kVecSize;

  // Source, destination and their strides from one of the block's rows to the next.
  const T* source = static_cast<const T*>(p.qkv) +
                    (static_cast<int64_t>(block.first_row) * heads + head) * kHeadDim + column;
  const int64_t source_stride = static_cast<int64_t>(heads) * kHeadDim;
  T* target;
  int64_t target_stride;
  const T* old_keys = nullptr;
  int kv_head = 0;
  if (is_query) {
    target = static_cast<T*>(p.q) +
             (static_cast<int64_t>(block.first_row) * p.q_heads + head) * kHeadDim + column;
    target_stride = static_cast<int64_t>(p.q_heads) * kHeadDim;
  } else {
    kv_head = head - p.q_heads - (is_key ? 0 : p.kv_heads);
    T* rows = cache_rows<T>(p, pool_block, is_key ? 0 : 1, kv_head) + column;
    old_keys = rows;
    target = rows + block.first_slot * kHeadDim;
    target_stride = kHeadDim;
  }
  const bool writes = has_vec && (is_query || pool_block >= 0);

  Vec<T> norm_weight;
  const void* norm = is_query ? p.q_norm : is_key ? p.k_norm : nullptr;
  if (norm != nullptr && has_vec) {
    norm_weight = Vec<T>::load(static_cast<const T*>(norm) + column);
  }

  // The next chunk's rows are loaded before the present chunk is finished; the first one's before
  // the older keys are read.
  Vec<T> loaded[kPasses];
  const auto load = [&](int chunk) {
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int row = chunk + i * L::kRowsPerPass + row_in_pass;
      loaded[i] =
          has_vec && row < block.rows ? Vec<T>::load(source + row * source_stride) : Vec<T>();
    }
  };
  load(0);

  Extrema<T> extrema;
  const bool summarises = is_key && writes;
  if (summarises) {
#pragma unroll 4
    for (int slot = row_in_pass; slot < block.first_slot; slot += L::kRowsPerPass) {
      extrema.add(Vec<T>::load(old_keys + slot * kHeadDim));
    }
  }

#pragma unroll 1
  for (int chunk = 0; chunk < block.rows; chunk += kRows) {
    const int chunk_rows = min(kRows, block.rows - chunk);
    if (p.rotary_dim > 0) {
      if (chunk > 0) __syncthreads();  // the last chunk's readers are done
      table.fill(p, block.first_row + chunk, chunk_rows);
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      if (i * L::kRowsPerPass >= chunk_rows) break;
      const int row_in_chunk = i * L::kRowsPerPass + row_in_pass;
      Vec<T> out = loaded[i];
      if (!is_value) {
        out = finish_row<T, kHeadDim>(p, out, norm != nullptr, norm_weight, p.rotary_dim > 0, table,
                                      min(row_in_chunk, chunk_rows - 1));
      }
      if (writes && row_in_chunk < chunk_rows) {
        const int64_t row = chunk + row_in_chunk;
        out.store(target + row * target_stride);
        if (is_key) extrema.add(out);
      }
    }
    load(chunk + kRows);
  }

  if (!is_key) return;  // the same for all lanes of a warp
  extrema.template merge_rows<L::kLanes>();
  if (summarises && row_in_pass == 0) {
    T* summary = summary_of<T>(p, pool_block, kv_head) + column;
    extrema.low.store(summary);
    extrema.high.store(summary + kHeadDim);
  }
}

}  // namespace append
}  // namespace trt_resa
