// The symbols of the CUDA row kernels in a build without them.
#include <stdexcept>

#include "rows/rows.h"

namespace logitless::cuda {
namespace {

[[noreturn]] void fail() {
  throw std::runtime_error(
      std::string("this build of logitless has no CUDA kernels: ") + build_info().reason
  );
}

}  // namespace

BuildInfo build_info() { return {false, false, "", "", LOGITLESS_CUDA_REASON}; }

std::string device_reason(int) { return std::string("built without CUDA: ") + build_info().reason; }

DeviceGuard::DeviceGuard(int) { fail(); }
DeviceGuard::~DeviceGuard() = default;

void rows_forward(
    const Rows&, const TensorView&, int64_t, bool, bool, RowState*, void*, int64_t, Stream
) {
  fail();
}

void rows_finalize(
    const Rows&, const RowState*, int64_t, const int64_t*, const RowOutputs&, int64_t*, Stream
) {
  fail();
}

void rows_gradient(
    const Rows&,
    const TensorView&,
    int64_t,
    const RowState*,
    const Upstream&,
    const Upstream&,
    const Upstream&,
    const TensorView&,
    Stream
) {
  fail();
}

}  // namespace logitless::cuda
