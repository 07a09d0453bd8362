// Scalars as Python gives them, checked: numbers of things, threads, fields of a dict.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "../../core/check.h"
#include "../../cpu/runtime/parallel.h"

namespace logitless::bindings {

// Rows whose states, and columns whose numbers, can be counted in int64 and held in a double.
constexpr int64_t kMostRows = int64_t{1} << 53, kMostColumns = int64_t{1} << 53;

inline int64_t count_of(int64_t value, int64_t most, const char* name) {
  check(0 <= value && value <= most, name, " must be from 0 to ", most, ", got ", value);
  return value;
}

// The threads of a call: 0 is the process's default, here and nowhere else.
inline int threads_of(int threads) {
  count_of(threads, cpu::kMostThreads, "threads");
  return threads > 0 ? threads : cpu::default_threads();
}

// The value of the field `name`, or of an item of it.
template <typename T>
T value_of(const pybind11::object& value, const char* name) {
  try {
    return value.cast<T>();
  } catch (const pybind11::cast_error&) {
    throw pybind11::type_error(
        std::string("the field '") + name + "' cannot hold a " +
        std::string(pybind11::str(pybind11::type::handle_of(value).attr("__name__")))
    );
  }
}

// A field of a dict.
template <typename T>
T field_of(const pybind11::dict& fields, const char* name) {
  check(fields.contains(name), "the field '", name, "' must be given");
  return value_of<T>(fields[name], name);
}

}  // namespace logitless::bindings
