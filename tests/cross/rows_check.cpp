// The row kernels against plain double arithmetic, as one program without Python: what is compiled
// for a machine that is not this one (tests/cross/neon.sh) can run under an emulator.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "../../csrc/cpu/rows/rows.h"
#include "../../csrc/cpu/runtime/isa.h"

using namespace logitless;
using namespace logitless::cpu;

namespace {

int failures = 0;

void expect(const char* what, double got, double want, double allowed) {
  if (std::fabs(got - want) <= allowed) return;
  if (++failures > 10) return;
  std::printf("FAIL %s: %.9g, expected %.9g, allowed %.2g\n", what, got, want, allowed);
}

void check_rows(int64_t n, int64_t vocab, Dtype dtype, int threads) {
  std::mt19937 generator(static_cast<unsigned>(n * 1000 + vocab));
  std::normal_distribution<float> normal(0, 4);
  std::vector<float> z(n * vocab);
  std::vector<uint16_t> narrow(n * vocab);
  for (size_t i = 0; i < z.size(); ++i) {
    z[i] = normal(generator);
    if (dtype == Dtype::bf16) {
      uint32_t bits;
      std::memcpy(&bits, &z[i], 4);
      narrow[i] = static_cast<uint16_t>(bits >> 16);
      bits &= 0xffff0000u;
      std::memcpy(&z[i], &bits, 4);
    }
  }
  std::vector<float> wide = z;  // overwritten by its gradient
  std::vector<int64_t> targets(n);
  for (auto& t : targets) t = generator() % vocab;
  Rows rows;
  rows.n = n;
  rows.targets = targets.data();
  rows.scale = 1 / 0.7;
  rows.threads = threads;
  TensorView view;
  view.data = dtype == Dtype::bf16 ? static_cast<void*>(narrow.data()) : wide.data();
  view.dtype = dtype;
  view.ndim = 2;
  view.shape[0] = n, view.shape[1] = vocab, view.strides[0] = vocab, view.strides[1] = 1;
  std::vector<RowState> state(n);
  rows_forward(rows, view, 0, true, true, state.data());
  const std::vector<double> g(n, 1.0);
  rows_gradient(rows, view, 0, state.data(), g.data(), g.data(), nullptr, view);
  for (int64_t row = 0; row < n; ++row) {
    double m = -INFINITY, s0 = 0, s1 = 0;
    for (int64_t v = 0; v < vocab; ++v) m = std::fmax(m, z[row * vocab + v] * rows.scale);
    for (int64_t v = 0; v < vocab; ++v) {
      const double x = z[row * vocab + v] * rows.scale - m;
      s0 += std::exp(x);
      s1 += x * std::exp(x);
    }
    const double entropy = std::log(s0) - s1 / s0;
    const TokenValues values = token_values(state[row].moments, state[row].target, rows.scale);
    const double logp = z[row * vocab + targets[row]] * rows.scale - m - std::log(s0);
    expect("logp", values.logp, logp, 4e-6 + std::fabs(logp) * 1.2e-7);
    expect("entropy", values.entropy, entropy, 5e-6);
    for (int64_t v = 0; v < vocab; ++v) {
      const double lp = z[row * vocab + v] * rows.scale - m - std::log(s0), p = std::exp(lp);
      const double dz = ((v == targets[row]) - p - p * (lp + entropy)) * rows.scale;
      double got = 0;
      if (dtype == Dtype::bf16) {
        const uint32_t bits = uint32_t{narrow[row * vocab + v]} << 16;
        float value;
        std::memcpy(&value, &bits, 4);
        got = value;
      } else {
        got = wide[row * vocab + v];
      }
      expect("gradient", got, dz, 2e-6 + std::fabs(dz) * (dtype == Dtype::bf16 ? 0.004 : 1e-6));
    }
  }
}

}  // namespace

int main() {
  std::printf("kernels: %s\n", isa_name(chosen_isa()));
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    for (const int64_t vocab : {1, 2, 127, 2048, 2049, 5000}) {
      check_rows(3, vocab, dtype, 2);
      check_rows(11, vocab, dtype, 2);
    }
  }
  std::printf("%d failed\n", failures);
  return failures != 0;
}
