#include "overlap.h"

namespace logitless::bindings {

void Spans::check_apart() const {
  for (int i = 0; i < count_; ++i) {
    const Array& a = *spans_[static_cast<size_t>(i)];
    for (int j = 0; j < i; ++j) {
      const Array& b = *spans_[static_cast<size_t>(j)];
      const bool meet = a.begin() < b.end() && b.begin() < a.end();
      if (!meet || !(a.written() || b.written())) continue;
      const Array& out = a.written() ? a : b;
      const Array& other = a.written() ? b : a;
      check(false, out.name(), " is written and must not share memory with ", other.name());
    }
  }
}

}  // namespace logitless::bindings
