// _core.tokens: which tokens of a batch a control acts on, and random numbers.
#include "../cpu/tokens/selection.h"

#include <pybind11/pybind11.h>

#include <algorithm>

#include "../core/philox.h"
#include "arrays/overlap.h"
#include "arrays/scalars.h"

namespace py = pybind11;

namespace logitless::bindings {
namespace {

template <typename T>
cpu::SelectionTokens<T> selection_tokens(
    const Array& logp,
    const Array& advantages,
    const Array& mask,
    const std::optional<Array>& old_logp,
    Dtype dtype,
    int threads
) {
  const int64_t n = logp->size();
  cpu::SelectionTokens<T> tokens;
  tokens.count = n;
  tokens.logp = data_of<const T>(logp, dtype, n);
  tokens.advantages = data_of<const T>(advantages, dtype, n);
  tokens.mask = data_of<const uint8_t>(mask, Dtype::boolean, n);
  tokens.old_logp = data_of<const T>(old_logp, dtype, n);
  tokens.threads = threads_of(threads);
  return tokens;
}

// Words of the sums of a rank, which add up over ranks: the digits of the advantages and of logp,
// how many ranks have their largest magnitude at each digit, and the number of valid tokens.
constexpr int64_t kSumWords = 4 * ExactSum::kDigits + 1;

void write_sum(const cpu::ValueSum& value, int64_t* digits, int64_t* levels) {
  std::copy_n(value.sum.digit, ExactSum::kDigits, digits);
  std::fill_n(levels, ExactSum::kDigits, 0);
  if (value.level >= 0) levels[value.level] = 1;
}

// Fills sums[kSumWords]. Returns the first bad token.
int64_t value_sums(
    py::handle logp_object,
    py::handle advantages_object,
    py::handle mask_object,
    py::handle sums_object,
    int threads
) {
  const Array logp(logp_object, "logp", Access::read);
  const Array advantages(advantages_object, "advantages", Access::read);
  const Array mask(mask_object, "mask", Access::read);
  const Array sums(sums_object, "sums", Access::write);
  auto* out = data_of<int64_t>(sums, Dtype::i64, kSumWords);
  return visit_real(logp, [&](auto tag, Dtype dtype) {
    using T = typename decltype(tag)::type;
    const auto tokens = selection_tokens<T>(logp, advantages, mask, std::nullopt, dtype, threads);
    check_apart(logp, advantages, mask, sums);
    const py::gil_scoped_release release;
    const cpu::ValueSums result = cpu::value_sums(tokens);
    constexpr int n = ExactSum::kDigits;
    write_sum(result.advantage, out, out + 2 * n);
    write_sum(result.logp, out + n, out + 3 * n);
    out[kSumWords - 1] = result.count;
    return result.bad_token;
  });
}

// The power of two that divides magnitudes that large, of digit `level` (-1: all are 0), into
// [1, 2^32); 0 where they are ordinary: neither the product nor the square of two deviations from a
// mean vanishes or overflows, for no deviation but 0 is below 2^-53 of them.
int exponent_of(int level) {
  constexpr int kOrdinary = 256;
  const int exponent = 32 * level + ExactSum::kLowest;
  return level < 0 || (exponent >= -kOrdinary && exponent < kOrdinary) ? 0 : exponent;
}

// The means of the advantages and of logp, the number of tokens, and the exponents of both.
py::tuple value_means(py::handle sums_object) {
  constexpr int n = ExactSum::kDigits;
  const Array sums(sums_object, "sums", Access::read);
  const auto* words = data_of<const int64_t>(sums, Dtype::i64, kSumWords);
  double means[2];
  int exponents[2];
  for (int which = 0; which < 2; ++which) {
    ExactSum sum;
    std::copy_n(words + which * n, n, sum.digit);
    means[which] = exact_mean(sum.digit, words[kSumWords - 1]);
    int level = n - 1;
    while (level >= 0 && words[(2 + which) * n + level] == 0) --level;
    exponents[which] = exponent_of(level);
  }
  return py::make_tuple(means[0], means[1], words[kSumWords - 1], exponents[0], exponents[1]);
}

cpu::CovarianceBand covariance_band(const py::dict& fields) {
  const auto number = [&](const char* name) { return field_of<double>(fields, name); };
  cpu::CovarianceBand band;
  band.means = {number("mean_advantage"), number("mean_logp")};
  band.low = number("low");
  band.high = number("high");
  band.log_low = number("log_low");
  band.log_high = number("log_high");
  return band;
}

py::tuple covariance_candidates(
    py::handle logp_object,
    py::handle advantages_object,
    py::handle mask_object,
    py::handle old_logp_object,
    py::handle ids_object,
    const py::dict& band,
    int64_t most,
    py::handle scores_object,
    py::handle out_ids_object,
    int threads
) {
  const Array logp(logp_object, "logp", Access::read);
  const Array advantages(advantages_object, "advantages", Access::read);
  const Array mask(mask_object, "mask", Access::read);
  const auto old_logp = optional_array(old_logp_object, "old_logp", Access::read);
  const Array ids(ids_object, "ids", Access::read);
  const Array scores(scores_object, "scores", Access::write);
  const Array out_ids(out_ids_object, "out_ids", Access::write);
  const int64_t n = logp->size();
  return visit_real(logp, [&](auto tag, Dtype dtype) {
    using T = typename decltype(tag)::type;
    auto tokens = selection_tokens<T>(logp, advantages, mask, old_logp, dtype, threads);
    tokens.ids = data_of<const int64_t>(ids, Dtype::i64, n);
    check(most >= 0, "most must not be negative, got ", most);
    auto* out_scores = data_of<uint64_t>(scores, Dtype::i64, n);
    auto* names = data_of<int64_t>(out_ids, Dtype::i64, n);
    check_apart(logp, advantages, mask, old_logp, ids, scores, out_ids);
    const cpu::CovarianceBand limits = covariance_band(band);
    cpu::CandidateCount all;
    {
      const py::gil_scoped_release release;
      all = cpu::covariance_candidates(tokens, limits, most, out_scores, names);
    }
    return py::make_tuple(all.count, all.bad_token);
  });
}

void ordered_scores(py::handle values_object, py::handle scores_object, int threads) {
  const Array values(values_object, "values", Access::read);
  const Array scores(scores_object, "scores", Access::write);
  const int64_t n = values->size();
  const auto* numbers = data_of<const double>(values, Dtype::f64, n);
  auto* out = data_of<uint64_t>(scores, Dtype::i64, n);
  check_apart(values, scores);
  const int team = threads_of(threads);
  const py::gil_scoped_release release;
  cpu::ordered_scores(numbers, n, out, team);
}

void random_scores(
    py::handle ids_object, uint64_t seed, uint64_t step, py::handle scores_object, int threads
) {
  const Array ids(ids_object, "ids", Access::read);
  const Array scores(scores_object, "scores", Access::write);
  const int64_t n = ids->size();
  const auto* names = data_of<const int64_t>(ids, Dtype::i64, n);
  auto* out = data_of<uint64_t>(scores, Dtype::i64, n);
  check_apart(ids, scores);
  const int team = threads_of(threads);
  const py::gil_scoped_release release;
  cpu::random_scores(names, n, seed, step, out, team);
}

void radix_histogram(
    py::handle scores_object,
    py::handle ids_object,
    uint64_t prefix_score,
    uint64_t prefix_inverted_id,
    int level,
    py::handle bins_object,
    int threads
) {
  const Array scores(scores_object, "scores", Access::read);
  const Array ids(ids_object, "ids", Access::read);
  const Array bins(bins_object, "bins", Access::write);
  const int64_t n = ids->size();
  check(
      0 <= level && level < kRadixLevels, "level must be in [0, ", kRadixLevels, "), got ", level
  );
  auto* out = data_of<int64_t>(bins, Dtype::i64, kRadixBins);
  check_apart(scores, ids, bins);
  const auto* keys = data_of<const uint64_t>(scores, Dtype::i64, n);
  const auto* names = data_of<const int64_t>(ids, Dtype::i64, n);
  const SelectionKey prefix = {prefix_score, prefix_inverted_id};
  const int team = threads_of(threads);
  const py::gil_scoped_release release;
  const auto counts = cpu::radix_histogram(keys, names, n, prefix, level, team);
  std::copy(counts.begin(), counts.end(), out);
}

py::object repeated_id(py::handle ids_object, py::handle mask_object, int threads) {
  const Array ids(ids_object, "ids", Access::read);
  const Array mask(mask_object, "mask", Access::read);
  const int64_t n = ids->size();
  const auto* names = data_of<const int64_t>(ids, Dtype::i64, n);
  const auto* valid = data_of<const uint8_t>(mask, Dtype::boolean, n);
  const int team = threads_of(threads);
  std::optional<int64_t> found;
  {
    const py::gil_scoped_release release;
    found = cpu::repeated_id(names, valid, n, team);
  }
  return found ? py::cast(*found) : py::none();
}

void members(py::handle ids_object, py::handle sorted_object, py::handle out_object, int threads) {
  const Array ids(ids_object, "ids", Access::read);
  const Array sorted(sorted_object, "sorted", Access::read);
  const Array out(out_object, "out", Access::write);
  const int64_t n = ids->size();
  const auto* names = data_of<const int64_t>(ids, Dtype::i64, n);
  const int64_t chosen = sorted->size();
  const auto* among = data_of<const int64_t>(sorted, Dtype::i64, chosen);
  auto* found = data_of<uint8_t>(out, Dtype::boolean, n);
  check_apart(ids, sorted, out);
  const int team = threads_of(threads);
  const py::gil_scoped_release release;
  for (int64_t i = 1; i < chosen; ++i) {
    check(among[i - 1] <= among[i], "sorted must ascend, got ", among[i], " after ", among[i - 1]);
  }
  cpu::members(names, n, among, chosen, found, team);
}

py::tuple philox(uint64_t x, uint64_t y, uint64_t seed) {
  const PhiloxWords words = philox_words(seed, x, y);
  return py::make_tuple(words.word[0], words.word[1], words.word[2], words.word[3]);
}

}  // namespace

void register_selection(py::module_& m) {
  m.def(
      "value_sums",
      &value_sums,
      py::arg("logp"),
      py::arg("advantages"),
      py::arg("mask"),
      py::arg("sums"),
      py::arg("threads") = 0,
      "Exact sums of advantages and logp as SUM_WORDS numbers that add up over ranks: the digits "
      "of "
      "both, at which digit the largest magnitude of each lies, and the number of valid tokens. "
      "Returns the first valid token with a value that is not finite, or -1."
  );
  m.def(
      "value_means",
      &value_means,
      py::arg("sums"),
      "Of these words, added up over ranks: both means, each rounded once, the number of valid "
      "tokens, and for each of both the power of two of which its values are ordinary multiples."
  );
  m.attr("SUM_WORDS") = kSumWords;
  m.def(
      "covariance_candidates",
      &covariance_candidates,
      py::arg("logp"),
      py::arg("advantages"),
      py::arg("mask"),
      py::arg("old_logp"),
      py::arg("ids"),
      py::arg("band"),
      py::arg("most"),
      py::arg("scores"),
      py::arg("out_ids"),
      py::arg("threads") = 0,
      "Scores and ids of tokens in the band, unclipped, the `most` largest among them. "
      "Returns their number and the first token whose old_logp is not finite, or -1."
  );
  m.def(
      "ordered_scores",
      &ordered_scores,
      py::arg("values"),
      py::arg("scores"),
      py::arg("threads") = 0,
      "Ordered bits of float64 values."
  );
  m.def(
      "random_scores",
      &random_scores,
      py::arg("ids"),
      py::arg("seed"),
      py::arg("step"),
      py::arg("scores"),
      py::arg("threads") = 0,
      "The 64-bit Philox key of each token id."
  );
  m.def(
      "radix_histogram",
      &radix_histogram,
      py::arg("scores"),
      py::arg("ids"),
      py::arg("prefix_score"),
      py::arg("prefix_inverted_id"),
      py::arg("level"),
      py::arg("bins"),
      py::arg("threads") = 0,
      "How many keys with this prefix have each value of one digit."
  );
  m.def(
      "repeated_id",
      &repeated_id,
      py::arg("ids"),
      py::arg("mask"),
      py::arg("threads") = 0,
      "A negative id where the mask is true, else one that is there twice, else None."
  );
  m.def(
      "members",
      &members,
      py::arg("ids"),
      py::arg("sorted"),
      py::arg("out"),
      py::arg("threads") = 0,
      "Which ids are among the sorted ones."
  );
  m.def(
      "philox",
      &philox,
      py::arg("x"),
      py::arg("y"),
      py::arg("seed"),
      "Four words of Philox 4x32-10 with the seed as the key and (x, y) as the counter."
  );
}

}  // namespace logitless::bindings
