// A case of the whole sparse step, run on the host and compared with plain loops: by one thread
// block that does the items of several in their order, or by the thread blocks of a cluster in
// turn.
//
// Where blocks are chosen, keys and queries are small integers and are not rotated: the products
// that scores are made of are exact then.
#pragma once

#include "device_on_host.h"

#include "sparse_kernel.cuh"
#include "sparse_run.cu"

#include <cstdio>
#include <random>

namespace trt_resa {
namespace sparse {
int32_t run_head_dim_64(const Args&, void*) {
  return 0;
}
int32_t run_head_dim_96(const Args&, void*) {
  return 0;
}
int32_t run_head_dim_128(const Args&, void*) {
  return 0;
}
int32_t run_head_dim_256(const Args&, void*) {
  return 0;
}
}  // namespace sparse
}  // namespace trt_resa

namespace {

using namespace trt_resa::sparse;
using trt_resa::num_selected;

struct Sequence {
  int kv_len;  // after the step
  int rows = 1;
};

struct Shape {
  int kv_heads = 2;
  int group = 4;
  int block_size = 16;
  double keep_ratio = 0.1;
  int min_blocks = 3;
  int local_blocks = 1;
  int sink_blocks = 0;
  int dense_below = 0;
  bool exact = true;  // integers, no norm, no rotation
  int thread_blocks = 5;
  int team = 1;          // thread blocks of a cluster
  bool crowded = false;  // the selection lies in the first quarter of a sequence, for the most part
};

template <typename T, int kHeadDim, int kHeadTiles, bool kWide>
class Case {
  using C = Config<T, kHeadDim, kHeadTiles, kWide>;

 public:
  Case(const Shape& shape, const std::vector<Sequence>& sequences, unsigned seed)
      : s_(shape), sequences_(sequences), random_(seed) {
    const int batch = static_cast<int>(sequences.size());
    const int q_heads = s_.kv_heads * s_.group, heads = q_heads + 2 * s_.kv_heads;
    for (const auto& sequence : sequences) {
      query_lens_.push_back(query_lens_.back() + sequence.rows);
      kv_lens_.push_back(sequence.kv_len);
      max_blocks_ = std::max(max_blocks_, blocks_of_tokens(sequence.kv_len));
    }
    const int rows = query_lens_.back();
    // Pool blocks in random order; the unused ones hold NaN.
    const int pool = batch * max_blocks_ + 3;
    std::vector<int> ids(pool);
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), random_);
    table_.assign(static_cast<size_t>(batch) * max_blocks_, -1);
    const T nan = T(std::nanf(""));
    kv_.assign(static_cast<size_t>(pool) * 2 * s_.kv_heads * s_.block_size * kHeadDim, nan);
    summary_.assign(static_cast<size_t>(pool) * s_.kv_heads * 2 * kHeadDim, nan);
    for (int seq = 0; seq < batch; ++seq) {
      for (int block = 0; block < blocks_of_tokens(kv_lens_[seq]); ++block) {
        table_[seq * max_blocks_ + block] = ids.back();
        ids.pop_back();
      }
      for (int token = 0; token + 1 < kv_lens_[seq]; ++token) {
        for (int head = 0; head < s_.kv_heads; ++head) {
          for (int d = 0; d < kHeadDim; ++d) {
            const float weight = s_.crowded && 4 * token < kv_lens_[seq] ? 3.0f : 1.0f;
            *kv(seq, token, 0, head, d) = T(weight * static_cast<float>(value()));
            *kv(seq, token, 1, head, d) = value();
          }
        }
      }
      for (int block = 0; block + 1 < blocks_of_tokens(kv_lens_[seq]); ++block)
        summarise(seq, block);
    }
    qkv_.resize(static_cast<size_t>(rows) * heads * kHeadDim);
    for (auto& x : qkv_) x = value();
    q_.assign(static_cast<size_t>(rows) * q_heads * kHeadDim, nan);
    out_ = q_;
    norm_.resize(2 * kHeadDim);
    for (auto& x : norm_) x = T(0.5f + uniform());
    for (int i = 0; i < kHeadDim / 2; ++i) {
      inv_freq_.push_back(std::pow(10000.0f, -2.0f * static_cast<float>(i) / kHeadDim));
    }
    for (int row = 0; row < rows; ++row) positions_.push_back(0);
    for (int seq = 0; seq < batch; ++seq) {
      for (int row = query_lens_[seq]; row < query_lens_[seq + 1]; ++row) {
        positions_[row] = kv_lens_[seq] - 1;
      }
    }
  }

  bool run() {
    Args a = {};
    auto& p = a.append;
    a.roles = kAppend | kSelect | kAttend;
    p.qkv = qkv_.data();
    p.position_ids = positions_.data();
    p.cu_query_lens = query_lens_.data();
    p.kv_lens = kv_lens_.data();
    p.block_table = table_.data();
    p.inv_freq = inv_freq_.data();
    p.q = q_.data();
    p.kv = kv_.data();
    p.summary = summary_.data();
    p.num_rows = query_lens_.back();
    p.batch_size = static_cast<int>(sequences_.size());
    p.max_blocks_per_seq = max_blocks_;
    p.num_blocks = static_cast<int>(kv_.size() / (2 * s_.kv_heads * s_.block_size * kHeadDim));
    p.q_heads = s_.kv_heads * s_.group;
    p.kv_heads = s_.kv_heads;
    p.head_dim = kHeadDim;
    p.block_size = s_.block_size;
    p.rotary_dim = s_.exact ? 0 : kHeadDim / 2;
    p.rope_scale = 1.1f;
    p.norm_eps = 1e-5f;
    if (!s_.exact) {
      p.q_norm = norm_.data();
      p.k_norm = norm_.data() + kHeadDim;
    }
    a.q = q_.data();
    a.kv = kv_.data();
    a.summary = summary_.data();
    a.out = out_.data();
    a.cu_query_lens = query_lens_.data();
    a.kv_lens = kv_lens_.data();
    a.block_table = table_.data();
    a.batch_size = p.batch_size;
    a.max_blocks_per_seq = max_blocks_;
    a.num_blocks = p.num_blocks;
    a.q_heads = p.q_heads;
    a.kv_heads = s_.kv_heads;
    a.head_dim = kHeadDim;
    a.block_size = s_.block_size;
    a.min_blocks = s_.min_blocks;
    a.local_blocks = s_.local_blocks;
    a.sink_blocks = s_.sink_blocks;
    a.dense_below = s_.dense_below;
    a.dtype = 0;
    a.score_scale = 1.4426950408889634f / std::sqrt(static_cast<float>(kHeadDim));
    a.keep_ratio = s_.keep_ratio;
    if (check(a) != TRT_RESA_OK) {
      std::puts("the case is refused");
      return false;
    }
    const Sizes sizes = carve(a, nullptr, nullptr);
    std::vector<uint4> workspace(sizes.workspace / 16 + 16), counters(sizes.counters / 16 + 16);
    std::memset(workspace.data(), 0xa5, workspace.size() * 16);
    std::memset(counters.data(), 0, counters.size() * 16);
    carve(a, workspace.data(), counters.data());

    const auto before = kv_;
    using Shared = typename C::Shared;
    constexpr size_t kBytes = (sizeof(Shared) + 127) / 128 * 128;
    const std::unique_ptr<void, decltype(&std::free)> memory(
        std::aligned_alloc(128, kBytes * s_.team), &std::free);
    std::memset(memory.get(), 0xa5, kBytes * s_.team);
    std::vector<char*> memories;
    for (int rank = 0; rank < s_.team; ++rank) {
      memories.push_back(static_cast<char*>(memory.get()) + rank * kBytes);
    }
    const int rows = a.batch_size * a.kv_heads;
    const int clusters = s_.team > 1 ? rows + rows / s_.team + 2 : s_.thread_blocks;
    gridDim.x = clusters * s_.team;
    for (int id = 0; id < clusters; ++id) {
      trt_resa::cluster::begin(id, memories);
      const auto enter = [&](int rank) {
        trt_resa::cluster::enter(rank);
        blockIdx.x = id * s_.team + rank;
      };
      on_host::launch_together(
          s_.team, C::kThreads,
          [&] { trt_resa::sparse::run<C>(a, *reinterpret_cast<Shared*>(trt_resa::shared_memory)); },
          enter);
    }
    for (const uint4& words : counters) {
      if ((words.x | words.y | words.z | words.w) != 0) {
        std::puts("counters are left behind");
        return false;
      }
    }
    return compare(before);
  }

 private:
  int blocks_of_tokens(int tokens) const { return (tokens + s_.block_size - 1) / s_.block_size; }
  float uniform() { return static_cast<float>(random_() % 20001) / 10000.0f - 1.0f; }
  T value() { return T(s_.exact ? static_cast<float>(random_() % 7) - 3.0f : uniform()); }

  T* kv(int seq, int token, int which, int head, int d) {
    const int64_t block = table_[seq * max_blocks_ + token / s_.block_size];
    return &kv_[(((block * 2 + which) * s_.kv_heads + head) * s_.block_size +
                 token % s_.block_size) *
                    kHeadDim +
                d];
  }
  T* summary(int seq, int block, int head, int which, int d) {
    const int64_t id = table_[seq * max_blocks_ + block];
    return &summary_[((id * s_.kv_heads + head) * 2 + which) * kHeadDim + d];
  }
  void summarise(int seq, int block) {
    const int begin = block * s_.block_size;
    const int end = std::min(begin + s_.block_size, kv_lens_[seq]);
    for (int head = 0; head < s_.kv_heads; ++head) {
      for (int d = 0; d < kHeadDim; ++d) {
        float low = INFINITY, high = -INFINITY;
        for (int token = begin; token < end; ++token) {
          low = std::min(low, static_cast<float>(*kv(seq, token, 0, head, d)));
          high = std::max(high, static_cast<float>(*kv(seq, token, 0, head, d)));
        }
        *summary(seq, block, head, 0, d) = T(low);
        *summary(seq, block, head, 1, d) = T(high);
      }
    }
  }

  // A head of qkv as it is to be kept.
  std::vector<float> finished(int row, int head, bool is_key, bool is_value) const {
    const int heads = s_.kv_heads * (s_.group + 2);
    const T* source = &qkv_[(static_cast<size_t>(row) * heads + head) * kHeadDim];
    std::vector<float> x(source, source + kHeadDim);
    if (s_.exact || is_value) return x;
    double squares = 0;
    for (float e : x) squares += static_cast<double>(e) * e;
    const double scale = 1 / std::sqrt(squares / kHeadDim + 1e-5);
    for (int d = 0; d < kHeadDim; ++d) {
      x[d] *= static_cast<float>(scale * static_cast<float>(norm_[d + (is_key ? kHeadDim : 0)]));
    }
    const int half = kHeadDim / 4;  // of the rotated part
    for (int i = 0; i < half; ++i) {
      const float angle = static_cast<float>(positions_[row]) * inv_freq_[i];
      const double c = std::cos(static_cast<double>(angle)) * 1.1f;
      const double s = std::sin(static_cast<double>(angle)) * 1.1f;
      const double a = x[i], b = x[i + half];
      x[i] = static_cast<float>(a * c - b * s);
      x[i + half] = static_cast<float>(b * c + a * s);
    }
    return x;
  }

  static bool near(float got, float wanted, float tolerance) {
    return std::abs(got - wanted) <= tolerance * (1.0f + std::abs(wanted));  // NaN is not near
  }

  bool compare(const std::vector<T>& before) {
    const float rounding = s_.exact                                      ? 0.0f
                           : sizeof(T) == 2 && std::is_same_v<T, __half> ? 1e-3f
                                                                         : 8e-3f;
    std::vector<T> expected_kv = before;
    std::swap(expected_kv, kv_);  // kv_ is what is expected, expected_kv what came out
    const std::vector<T> got_summary = summary_;
    for (size_t seq = 0; seq < sequences_.size(); ++seq) {
      if (sequences_[seq].rows != 1 || kv_lens_[seq] == 0) continue;
      const int row = query_lens_[seq], token = kv_lens_[seq] - 1, q_heads = s_.kv_heads * s_.group;
      for (int head = 0; head < s_.kv_heads; ++head) {
        const auto key = finished(row, q_heads + head, true, false);
        const auto val = finished(row, q_heads + s_.kv_heads + head, false, true);
        for (int d = 0; d < kHeadDim; ++d) {
          *kv(seq, token, 0, head, d) = T(key[d]);
          *kv(seq, token, 1, head, d) = T(val[d]);
        }
      }
      summarise(static_cast<int>(seq), token / s_.block_size);
    }
    for (size_t i = 0; i < kv_.size(); ++i) {
      const float wanted = static_cast<float>(kv_[i]), got = static_cast<float>(expected_kv[i]);
      if (std::isnan(wanted) ? !std::isnan(got) : !near(got, wanted, rounding)) {
        std::printf("cache at %zu: %f, not %f\n", i, got, wanted);
        return false;
      }
    }
    for (size_t i = 0; i < summary_.size(); ++i) {
      const float wanted = static_cast<float>(summary_[i]),
                  got = static_cast<float>(got_summary[i]);
      if (std::isnan(wanted) ? !std::isnan(got) : !near(got, wanted, rounding)) {
        std::printf("summaries at %zu: %f, not %f\n", i, got, wanted);
        return false;
      }
    }
    for (size_t seq = 0; seq < sequences_.size(); ++seq) {
      for (int row = query_lens_[seq]; row < query_lens_[seq + 1]; ++row) {
        if (!compare_row(static_cast<int>(seq), row)) return false;
      }
    }
    return true;
  }

  bool compare_row(int seq, int row) {
    const bool used = sequences_[seq].rows == 1 && kv_lens_[seq] > 0;
    const int q_heads = s_.kv_heads * s_.group;
    for (int kv_head = 0; kv_head < s_.kv_heads; ++kv_head) {
      std::vector<std::vector<float>> queries;
      for (int i = 0; i < s_.group; ++i) {
        auto query = finished(row, kv_head * s_.group + i, false, false);
        for (float& x : query) x = static_cast<float>(T(x));
        queries.push_back(query);
      }
      const std::vector<int> chosen =
          used ? choose_blocks(seq, kv_head, queries) : std::vector<int>();
      for (int i = 0; i < s_.group; ++i) {
        const size_t at = (static_cast<size_t>(row) * q_heads + kv_head * s_.group + i) * kHeadDim;
        if (!used) {
          if (!std::isnan(static_cast<float>(out_[at])))
            return std::puts("a row was written"), false;
          continue;
        }
        std::vector<double> sum(kHeadDim);
        double weights = 0;
        for (int block : chosen) {
          const int end = std::min((block + 1) * s_.block_size, kv_lens_[seq]);
          for (int token = block * s_.block_size; token < end; ++token) {
            double score = 0;
            for (int d = 0; d < kHeadDim; ++d) {
              score += queries[i][d] *
                       static_cast<double>(static_cast<float>(*kv(seq, token, 0, kv_head, d)));
            }
            const double weight = std::exp(score / std::sqrt(static_cast<double>(kHeadDim)) - 8.0);
            weights += weight;
            for (int d = 0; d < kHeadDim; ++d) {
              sum[d] += weight * static_cast<float>(*kv(seq, token, 1, kv_head, d));
            }
          }
        }
        const float tolerance = std::is_same_v<T, __half> ? 4e-3f : 3e-2f;
        for (int d = 0; d < kHeadDim; ++d) {
          const auto wanted = static_cast<float>(sum[d] / weights);
          const auto q_got = static_cast<float>(q_[at + d]);
          const float rounding = s_.exact ? 0.0f : tolerance;
          if (!near(q_got, queries[i][d], rounding) ||
              !near(static_cast<float>(out_[at + d]), wanted, tolerance)) {
            std::printf("sequence %d of %d tokens, head %d, element %d: q %f (%f), out %f (%f)\n",
                        seq, kv_lens_[seq], kv_head * s_.group + i, d, q_got, queries[i][d],
                        static_cast<float>(out_[at + d]), wanted);
            return false;
          }
        }
      }
    }
    return true;
  }

  std::vector<int> choose_blocks(int seq, int kv_head,
                                 const std::vector<std::vector<float>>& queries) {
    const int blocks = blocks_of_tokens(kv_lens_[seq]);
    std::vector<int> order(blocks);
    std::iota(order.begin(), order.end(), 0);
    if (kv_lens_[seq] <= s_.dense_below) return order;
    const int end = blocks - s_.local_blocks;
    std::vector<double> scores(blocks);
    for (const auto& query : queries) {
      std::vector<double> weights(blocks);
      double all = 0;
      for (int block = s_.sink_blocks; block < end; ++block) {
        double centre = 0, spread = 0;
        for (int d = 0; d < kHeadDim; ++d) {
          const double low = static_cast<float>(*summary(seq, block, kv_head, 0, d));
          const double high = static_cast<float>(*summary(seq, block, kv_head, 1, d));
          centre += query[d] * (low + high) / 2;
          spread += std::pow(query[d] * (high - low) / 2, 2);
        }
        const double term = (centre + std::sqrt(spread)) / std::sqrt(static_cast<double>(kHeadDim));
        all += weights[block] = std::exp(term);
      }
      for (int block = 0; block < blocks; ++block) scores[block] += weights[block] / all;
    }
    for (int block = 0; block < blocks; ++block) {
      if (block < s_.sink_blocks || block >= end) scores[block] = INFINITY;
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](int x, int y) { return scores[x] > scores[y]; });
    const int wanted = num_selected(blocks, s_.keep_ratio, s_.min_blocks);
    if (wanted < blocks) {
      const double last = scores[order[wanted - 1]], next = scores[order[wanted]];
      if (last != next && last < next * (1 + 1e-5)) {
        std::puts("two blocks are too close to one another: take another seed");
        return {};
      }
    }
    order.resize(wanted);
    std::sort(order.begin(), order.end());
    return order;
  }

  Shape s_;
  std::vector<Sequence> sequences_;
  std::mt19937 random_;
  int max_blocks_ = 1;
  std::vector<int32_t> query_lens_{0}, kv_lens_, table_, positions_;
  std::vector<T> kv_, summary_, qkv_, q_, out_, norm_;
  std::vector<float> inv_freq_;
};

}  // namespace
