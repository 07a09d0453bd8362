// The memory of a call's arrays: what one of them writes, no other may read or write.
#pragma once

#include <array>
#include <optional>

#include "dlpack.h"

namespace logitless::bindings {

class Spans {
 public:
  void take(const Array& array) { spans_.at(static_cast<size_t>(count_++)) = &array; }
  template <typename Part>
  void take(const std::optional<Part>& part) {
    if (part) take(*part);
  }
  // A class that holds arrays, or none.
  template <typename Group>
  void take(const Group* group) {
    if (group != nullptr) take(*group);
  }
  template <typename Group>
  auto take(const Group& group) -> decltype(group.collect(*this)) {
    group.collect(*this);
  }

  void check_apart() const;

 private:
  // no call has so many
  std::array<const Array*, 32> spans_;
  int count_ = 0;
};

// Of arrays, optional arrays and what collects its own.
template <typename... Parts>
void check_apart(const Parts&... parts) {
  Spans spans;
  (spans.take(parts), ...);
  spans.check_apart();
}

}  // namespace logitless::bindings
