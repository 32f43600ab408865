// The data of a case of the sparse step, and what the step makes of it, in plain loops.
//
// Where blocks are chosen, keys and queries are small integers and are not rotated: the products
// that scores are made of are exact then.
#pragma once

#include "device_on_host.h"

#include "blocks.h"

#include <cstdio>
#include <random>

namespace {

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
  int different = 0;     // blocks with other keys than the ones before them; 0: all
  bool crowded = false;  // the selection lies in the first quarter of a sequence, for the most part
  int peak_every = 0;  // blocks: one of so many gets nearly all attention, with the others of these
};

template <typename T, int kHeadDim>
class CaseData {
 protected:
  CaseData(const Shape& shape, const std::vector<Sequence>& sequences, unsigned seed)
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
            const int like = token - s_.different * s_.block_size;
            const int block = token / s_.block_size;
            const bool peak = s_.peak_every > 0 && block % s_.peak_every == 1;
            *kv(seq, token, 0, head, d) = peak ? T(token % 2 == 0 ? 6.0f : -6.0f)
                                          : s_.different > 0 && like >= 0
                                              ? *kv(seq, like, 0, head, d)
                                              : T(weight * static_cast<float>(value()));
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
    const int wanted = trt_resa::num_selected(blocks, s_.keep_ratio, s_.min_blocks);
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
