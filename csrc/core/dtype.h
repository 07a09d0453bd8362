// Element types of the core and the one switch over them.
#pragma once

#include "config.h"

namespace logitless {

enum class Dtype : uint8_t { f32, bf16, f16, f64, i32, i64, u8, boolean };

// Storage of the 16-bit floats: bits only. Arithmetic happens in float.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <typename T>
struct type_tag {
  using type = T;
};

inline const char* dtype_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32: return "float32";
    case Dtype::bf16: return "bfloat16";
    case Dtype::f16: return "float16";
    case Dtype::f64: return "float64";
    case Dtype::i32: return "int32";
    case Dtype::i64: return "int64";
    case Dtype::u8: return "uint8";
    case Dtype::boolean: return "bool";
  }
  return "unknown";
}

inline int64_t dtype_bytes(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64:
    case Dtype::i64: return 8;
    case Dtype::f32:
    case Dtype::i32: return 4;
    case Dtype::bf16:
    case Dtype::f16: return 2;
    default: return 1;
  }
}

// Throws; defined in csrc/cpu/runtime/errors.cpp, since files compiled for one instruction set may
// hold no inline code of the standard library: the linker could keep their copy for everyone.
[[noreturn]] void fail_dtype(const char* what, Dtype got);

// The one dtype switch: calls fn(type_tag<T>{}) with the storage type of a floating dtype.
template <typename Fn>
inline auto visit_float(Dtype dtype, const char* what, Fn&& fn) {
  switch (dtype) {
    case Dtype::f32: return fn(type_tag<float>{});
    case Dtype::bf16: return fn(type_tag<bf16>{});
    case Dtype::f16: return fn(type_tag<f16>{});
    case Dtype::f64: return fn(type_tag<double>{});
    default: break;
  }
  fail_dtype(what, dtype);
}

}  // namespace logitless
