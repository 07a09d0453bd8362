// The kernels of the largest logits and of sparse rows, written once and compiled once per
// instruction set (topk_<isa>.cpp).
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace logitless::cpu {
namespace LOGITLESS_ISA {
namespace {

#include "../rows/reader.inl"
#include "set_rows.inl"
#include "sparse_rows.inl"
#include "topk_rows.inl"

int64_t above(Dtype dtype, const BlockInput& in, double threshold, double* y, int32_t* columns) {
  int64_t found = 0;
  visit(dtype, in, [&](auto storage, auto transform) {
    using S = typename decltype(storage)::type;
    found = block_above<S, decltype(transform)::value>(in, threshold, y, columns);
  });
  return found;
}

void sparse_sum(Dtype dtype, const SparseSum& in, void* sums) {
  visit_float(dtype, "dense", [&](auto tag) {
    using S = typename decltype(tag)::type;
    sparse_sum_of<S>(in, static_cast<typename Storage<S>::T*>(sums));
  });
}

void deposit(Dtype dtype, const void* sums, int64_t n, bool add, void* out) {
  visit_float(dtype, "out", [&](auto tag) {
    using S = typename decltype(tag)::type;
    deposit_in<S>(static_cast<const typename Storage<S>::T*>(sums), n, add, static_cast<S*>(out));
  });
}

void dots(Dtype dtype, const RowDots& in, void* values) {
  visit_float(dtype, "dense", [&](auto tag) {
    using S = typename decltype(tag)::type;
    dots_of<S>(in, static_cast<typename Storage<S>::T*>(values));
  });
}

void pick(Dtype dtype, const RowEntries& in) {
  visit_float(dtype, "tile", [&](auto tag) { pick_of<typename decltype(tag)::type>(in); });
}

void put(Dtype dtype, const RowEntries& in) {
  visit_float(dtype, "tile", [&](auto tag) { put_of<typename decltype(tag)::type>(in); });
}

}  // namespace

extern const TopKKernels topk_kernels;
const TopKKernels topk_kernels = {above, count_above, sparse_sum, deposit, dots, pick, put};

}  // namespace LOGITLESS_ISA
}  // namespace logitless::cpu
