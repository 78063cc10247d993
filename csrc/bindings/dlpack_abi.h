// The parts of the DLPack ABI (version 1.3 of the published specification) that leeboard reads.
#pragma once

#include <cstdint>

namespace leeboard::dlpack {

inline constexpr uint32_t kMajorVersion = 1;
inline constexpr int32_t kCpu = 1;
inline constexpr uint8_t kFloat = 2;
inline constexpr uint8_t kInt = 0;
inline constexpr uint8_t kUInt = 1;
inline constexpr uint8_t kBFloat = 4;
inline constexpr uint8_t kBool = 6;

struct Version {
  uint32_t major;
  uint32_t minor;
};

struct Device {
  int32_t type;
  int32_t id;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct ExchangeApi {
  struct Header {
    Version version;
    Header* previous;
  } header;
  void* managed_tensor_allocator;
  void* managed_tensor_from_object;
  void* managed_tensor_to_object;
  // Borrowed view of a tensor object: 0 on success, else a Python exception is set.
  int (*tensor_from_object)(void* object, Tensor* out);
  void* current_work_stream;
};

}  // namespace leeboard::dlpack
