#include "attributes.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "host.h"
#include "trt_resa/sparse_step.h"

namespace trt_resa {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorRTPhase;

constexpr double kMaxInt = 2147483647.0;

struct Row {
  const char* name;
  PluginFieldType type;
  size_t offset;
  double min;
  double max;
};

#define TRT_RESA_ROW(member, type, min, max)                               \
  Row {                                                                    \
    #member, PluginFieldType::type, offsetof(Attributes, member), min, max \
  }

// The ranges of single fields; what several must fulfil together is checked by the kernel library.
// The last row is not a user's.
constexpr Row kTable[kNumSerialized] = {
    TRT_RESA_ROW(layer, kINT32, 0, 1023),
    TRT_RESA_ROW(q_heads, kINT32, 1, 4096),
    TRT_RESA_ROW(kv_heads, kINT32, 1, 4096),
    TRT_RESA_ROW(head_dim, kINT32, 64, 256),
    TRT_RESA_ROW(block_size, kINT32, 16, 64),
    TRT_RESA_ROW(rotary_dim, kINT32, 0, 256),
    TRT_RESA_ROW(rope_scale, kFLOAT32, 1e-6, 1e6),
    TRT_RESA_ROW(norm_eps, kFLOAT32, 0, 1),
    TRT_RESA_ROW(softmax_scale, kFLOAT32, 1e-6, 1e6),
    TRT_RESA_ROW(keep_ratio, kFLOAT32, 1e-6, 1),
    TRT_RESA_ROW(min_blocks, kINT32, 1, 65536),
    TRT_RESA_ROW(local_blocks, kINT32, 1, 65536),
    TRT_RESA_ROW(sink_blocks, kINT32, 0, 65536),
    TRT_RESA_ROW(dense_below, kINT32, 0, kMaxInt),
    TRT_RESA_ROW(dense_workspace, kINT64, 0, 1e15),
};

#undef TRT_RESA_ROW

const char* type_name(PluginFieldType type) {
  switch (type) {
    case PluginFieldType::kINT32:
      return "int32";
    case PluginFieldType::kINT64:
      return "int64";
    case PluginFieldType::kFLOAT32:
      return "float32";
    default:
      return "another type";
  }
}

size_t size_of(PluginFieldType type) {
  return type == PluginFieldType::kINT64 ? sizeof(int64_t) : sizeof(int32_t);
}

double number(const Row& row, const void* data) {
  const auto as = [&](auto value) {
    std::memcpy(&value, data, sizeof(value));  // fields of an engine may be unaligned
    return static_cast<double>(value);
  };
  switch (row.type) {
    case PluginFieldType::kINT32:
      return as(int32_t{});
    case PluginFieldType::kINT64:
      return as(int64_t{});
    default:
      return as(float{});
  }
}

int index_of(const char* name, int count) {
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(kTable[i].name, name) == 0) return i;
  }
  return -1;
}

bool read_field(const PluginField& field, const Row& row, Attributes& attributes) {
  if (field.type != row.type || field.length != 1 || field.data == nullptr) {
    host::log(host::Severity::kERROR, "the field '%s' must be one %s; it is %s, length %d%s",
              row.name, type_name(row.type), type_name(field.type), field.length,
              field.data == nullptr ? ", without data" : "");
    return false;
  }
  const double value = number(row, field.data);
  if (!(value >= row.min && value <= row.max)) {  // NaN is refused too
    host::log(host::Severity::kERROR, "the field '%s' is %g; from %g to %g is allowed", row.name,
              value, row.min, row.max);
    return false;
  }
  std::memcpy(reinterpret_cast<char*>(&attributes) + row.offset, field.data, size_of(row.type));
  return true;
}

// The shortest decimal that is read back as `value`; nine digits always are.
double shortest_decimal(float value) {
  char text[32];
  for (int digits = 1;; ++digits) {
    std::snprintf(text, sizeof(text), "%.*g", digits, static_cast<double>(value));
    if (digits == 9 || std::strtof(text, nullptr) == value) return std::strtod(text, nullptr);
  }
}

// The kernel library's own checks, with the smallest extents.
bool kernels_accept(const Attributes& a) {
  trt_resa_sparse_step_params p = {};
  p.batch_size = 1;
  p.max_blocks_per_seq = 1;
  p.num_blocks = 1;
  p.q_heads = a.q_heads;
  p.kv_heads = a.kv_heads;
  p.head_dim = a.head_dim;
  p.block_size = a.block_size;
  p.rotary_dim = a.rotary_dim;
  p.min_blocks = a.min_blocks;
  p.local_blocks = a.local_blocks;
  p.sink_blocks = a.sink_blocks;
  p.dense_below = a.dense_below;
  p.dtype = TRT_RESA_FLOAT16;
  p.softmax_scale = a.softmax_scale;
  p.keep_ratio = a.exact_keep_ratio;
  size_t bytes;
  const int32_t status = trt_resa_sparse_step_workspace(&p, &bytes);
  if (status != TRT_RESA_OK) {
    host::log(host::Severity::kERROR, "the fields do not fit together: %s",
              trt_resa_status_string(status));
  }
  return status == TRT_RESA_OK;
}

}  // namespace

const PluginFieldCollection& attribute_fields() noexcept {
  struct Fields {
    PluginField fields[kNumAttributes];
    PluginFieldCollection collection;
    Fields() : collection{kNumAttributes, fields} {
      for (int i = 0; i < kNumAttributes; ++i) {
        fields[i] = PluginField(kTable[i].name, nullptr, kTable[i].type, 1);
      }
    }
  };
  static const Fields fields;
  return fields.collection;
}

bool parse_attributes(const PluginFieldCollection* fields, TensorRTPhase phase,
                      Attributes& attributes) noexcept {
  if (fields == nullptr || fields->nbFields < 0 ||
      (fields->nbFields > 0 && fields->fields == nullptr)) {
    host::log(host::Severity::kERROR, "it was given no collection of fields");
    return false;
  }
  const int expected = phase == TensorRTPhase::kRUNTIME ? kNumSerialized : kNumAttributes;
  attributes = {};
  bool seen[kNumSerialized] = {};
  for (int i = 0; i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    const char* name = field.name == nullptr ? "" : field.name;
    const int index = index_of(name, expected);
    if (index < 0 || seen[index]) {
      host::log(host::Severity::kERROR, "the field '%s' is %s", name,
                index < 0 ? "unknown" : "given twice");
      return false;
    }
    seen[index] = true;
    if (!read_field(field, kTable[index], attributes)) return false;
  }
  for (int i = 0; i < expected; ++i) {
    if (!seen[i]) {
      host::log(host::Severity::kERROR, "the field '%s' is missing", kTable[i].name);
      return false;
    }
  }
  attributes.exact_keep_ratio = shortest_decimal(attributes.keep_ratio);
  return kernels_accept(attributes);
}

std::array<PluginField, kNumSerialized> serialized_fields(const Attributes& attributes) noexcept {
  std::array<PluginField, kNumSerialized> fields;
  for (int i = 0; i < kNumSerialized; ++i) {
    const char* data = reinterpret_cast<const char*>(&attributes) + kTable[i].offset;
    fields[i] = PluginField(kTable[i].name, data, kTable[i].type, 1);
  }
  return fields;
}

}  // namespace trt_resa
