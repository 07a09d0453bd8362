// Outputs of rows, and what is wrong with one: the first bad row of a call is named, whichever
// thread finds it.
#pragma once

#include <algorithm>
#include <exception>
#include <mutex>

#include "../runtime/parallel.h"
#include "rows.h"

namespace logitless::cpu {

inline void write(const TensorView& out, int64_t row, double value) {
  if (out.data == nullptr) return;
  if (out.dtype == Dtype::f64) {
    static_cast<double*>(out.data)[row] = value;
  } else {
    static_cast<float*>(out.data)[row] = static_cast<float>(value);
  }
}

inline void check_row(
    RowError error,
    int64_t name,
    int64_t target,
    int64_t vocab,
    bool biased,
    bool of_teacher = false
) {
  const auto ok = [&](RowError kind) { return error != kind; };
  const char* logits = of_teacher ? ": its teacher's logits" : ": its logits";
  const char* hold = biased ? " plus bias hold a " : " hold a ";
  const char* it = of_teacher ? ": its teacher has no finite logit" : ": it has no finite logit";
  check(ok(RowError::infinite), "row ", name, logits, hold, "+inf");
  check(ok(RowError::nan), "row ", name, logits, hold, "NaN");
  check(ok(RowError::empty), "row ", name, it);
  check(ok(RowError::target), "row ", name, ": target ", target, " is outside [0, ", vocab, ")");
}

// What was thrown at the lowest of the rows that several threads work on.
class FirstError {
 public:
  // In a catch block.
  void keep(int64_t row) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (row >= row_) return;
    row_ = row;
    error_ = std::current_exception();
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::mutex mutex_;
  int64_t row_ = INT64_MAX;
  std::exception_ptr error_;
};

// Rows of one task where a row takes 15 to 40 ns: so few start no thread.
constexpr int64_t kRowsPerTask = 1024;

// Calls fn(row) for all rows, and throws what the lowest row throws.
template <typename Fn>
void for_rows(const Rows& rows, Fn&& fn) {
  FirstError error;
  const int64_t tasks = (rows.n + kRowsPerTask - 1) / kRowsPerTask;
  parallel_for(tasks, rows.threads, [&](int64_t task) {
    int64_t row = task * kRowsPerTask;
    const int64_t stop = std::min(rows.n, row + kRowsPerTask);
    try {
      for (; row < stop; ++row) fn(row);
    } catch (...) {
      error.keep(row);
    }
  });
  error.rethrow();
}

}  // namespace logitless::cpu
