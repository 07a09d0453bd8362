// Drivers of the products with sparse rows.
#include "multiply.cuh"

namespace logitless::cuda {
namespace {

template <typename S>
void add_chains(const MultiplyArgs& args, Stream stream) {
  if (args.chains.ends == nullptr) return;
  const int64_t blocks = args.chains.slots * args.tiles;
  launch("sparse_chains", chains_kernel<S>, blocks, kMultiplyThreads, stream, args);
}

}  // namespace

void sparse_multiply(
    const SparseRows& sparse,
    const int32_t* names,
    const TensorView& dense,
    bool add,
    const Chains& chains,
    const TensorView& out,
    Stream stream
) {
  const DeviceGuard guard(stream.device);
  visit_storage(dense.dtype, "dense", [&](auto dense_tag) {
    using S = typename decltype(dense_tag)::type;
    const int64_t tiles = ceil_div(dense.shape[1], kMultiplyThreads * kPerVector<S>);
    const MultiplyArgs args = {sparse, names, dense, out, add, chains, tiles};
    const int64_t items = sparse.n * tiles;
    visit_storage(out.dtype, "out", [&](auto out_tag) {
      using O = typename decltype(out_tag)::type;
      add_chains<S>(args, stream);
      const int64_t blocks = items < kMultiplyBlocks ? items : kMultiplyBlocks;
      launch("sparse_multiply", multiply_kernel<S, O>, blocks, kMultiplyThreads, stream, args);
    });
  });
}

void sparse_add_row_sums(
    const SparseRows& sparse, const int32_t* names, float* out, int64_t size, Stream stream
) {
  const DeviceGuard guard(stream.device);
  const int64_t blocks = ceil_div(sparse.n, kMultiplyThreads / kWarp);
  const RowSumsArgs args = {sparse, names, out, size};
  launch("sparse_row_sums", row_sums_kernel, blocks, kMultiplyThreads, stream, args);
}

}  // namespace logitless::cuda
