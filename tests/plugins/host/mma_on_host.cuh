// Stands in for mma.cuh: copies that are done at once, and products computed as they are defined.
// An address in shared memory is an offset from what the test declares to be shared memory.
#pragma once

#include "device_on_host.h"

namespace trt_resa {

inline char* shared_memory = nullptr;

inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const char*>(pointer) - shared_memory);
}
inline void cp_async_16(uint32_t target, const void* source, int bytes) {
  std::memset(shared_memory + target, 0, 16);
  std::memcpy(shared_memory + target, source, static_cast<size_t>(bytes));
}
inline void cp_async_16(uint32_t target, const void* source, bool valid) {
  cp_async_16(target, source, valid ? 16 : 0);
}
template <typename T>
T keep_in_register(T value) {
  return value;
}
inline uint32_t opaque_address(uint32_t address) {
  return address;
}
inline void cp_async_16_once(uint32_t target, const void* source, bool valid) {
  cp_async_16(target, source, valid);
}
inline void cp_async_4(uint32_t target, const void* source) {
  std::memcpy(shared_memory + target, source, 4);
}
inline void cp_async_commit() {}
template <int kPending>
void cp_async_wait() {}
constexpr int kLineBytes = 128;
inline void prefetch_line(const void*) {}
inline void prefetch_bytes(const void*, int) {}
inline void discard_line(void* line) {
  std::memset(line, on_host::kGarbage, kLineBytes);
}

// Element `column` of row `row` of matrix `matrix`, whose rows the lanes' addresses name.
template <typename Of>
uint16_t matrix_element(Of&& address_of, int matrix, int row, int column) {
  uint16_t element;
  std::memcpy(&element, shared_memory + address_of(matrix * 8 + row) + column * 2, 2);
  return element;
}
inline uint32_t pack(uint16_t low, uint16_t high) {
  return low | static_cast<uint32_t>(high) << 16;
}

inline void load_matrices(uint32_t address, uint32_t (&out)[4]) {
  const int lane = static_cast<int>(threadIdx.x % 32), row = lane / 4, column = lane % 4 * 2;
  on_host::exchange(address, [&](auto&& of) {
    for (int i = 0; i < 4; ++i) {
      out[i] = pack(matrix_element(of, i, row, column), matrix_element(of, i, row, column + 1));
    }
    return 0u;
  });
}
inline void load_matrices_transposed(uint32_t address, uint32_t (&out)[4]) {
  const int lane = static_cast<int>(threadIdx.x % 32), row = lane % 4 * 2, column = lane / 4;
  on_host::exchange(address, [&](auto&& of) {
    for (int i = 0; i < 4; ++i) {
      out[i] = pack(matrix_element(of, i, row, column), matrix_element(of, i, row + 1, column));
    }
    return 0u;
  });
}
inline uint32_t transpose_matrix(uint32_t x) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return on_host::exchange(x, [&](auto&& of) {
    // Element (row, column) lies in lane 4 * row + column / 2, in the half column % 2.
    const auto element = [&](int row, int column) {
      return static_cast<uint16_t>(of(4 * row + column / 2) >> 16 * (column % 2));
    };
    const int row = lane % 4 * 2, column = lane / 4;
    return pack(element(row, column), element(row + 1, column));
  });
}

template <typename T>
float element_of(uint32_t word, int half) {
  const auto bits = static_cast<uint16_t>(word >> 16 * half);
  T value;
  std::memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}

template <typename T>
void multiply_add(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float left[2][16], right[2][16];  // rows lane / 4 and + 8; columns 2 * (lane % 4) and the next
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  for (int word = 0; word < 6; ++word) {
    on_host::exchange(words[word], [&](auto&& of) {
      for (int i = 0; i < 4; ++i) {
        for (int half = 0; half < 2; ++half) {
          if (word < 4) {
            left[word % 2][word / 2 * 8 + i * 2 + half] = element_of<T>(of(lane / 4 * 4 + i), half);
            continue;
          }
          for (int column = 0; column < 2; ++column) {
            right[column][(word - 4) * 8 + i * 2 + half] =
                element_of<T>(of((lane % 4 * 2 + column) * 4 + i), half);
          }
        }
      }
      return 0u;
    });
  }
  for (int row = 0; row < 2; ++row) {
    for (int column = 0; column < 2; ++column) {
      float sum = d[row * 2 + column];
      for (int k = 0; k < 16; ++k) sum += left[row][k] * right[column][k];
      d[row * 2 + column] = sum;
    }
  }
}

}  // namespace trt_resa
