// The tokens that a loss selects, on a CUDA device: scores, and the largest of them.
#include "../arrays/scalars.h"
#include "tokens.h"

namespace logitless::bindings {
namespace {

// The arrays of a search for the k-th largest key.
class Search {
 public:
  Search(
      const Place& place,
      py::handle scores,
      py::handle ids,
      py::handle k,
      py::handle bins,
      py::handle states
  )
      : scores_(scores, "scores", Access::read, place),
        ids_(ids, "ids", Access::read, place),
        bins_(bins, "bins", Access::write, place),
        states_(states, "states", Access::write, place),
        k_(k, "k", Dtype::i64, place) {}
  cuda::RadixArgs args(bool exact) const {
    const int64_t n = ids_->size();
    constexpr int64_t words = sizeof(cuda::RadixState) / sizeof(int64_t);
    auto* states = data_of<int64_t>(states_, Dtype::i64, words * (kRadixLevels + 1));
    return {
        n,
        data_of<const uint64_t>(scores_, Dtype::i64, n),
        data_of<const int64_t>(ids_, Dtype::i64, n),
        k_.get(),
        data_of<int64_t>(bins_, Dtype::i64, int64_t{kRadixLevels} * kRadixBins),
        reinterpret_cast<cuda::RadixState*>(states),
        exact,
        0
    };
  }
  void collect(Spans& spans) const {
    for (const auto* array : {&scores_, &ids_, &bins_, &states_}) spans.take(*array);
    k_.collect(spans);
  }

 private:
  Array scores_, ids_, bins_, states_;
  ScalarArray<int64_t> k_;
};

}  // namespace

void CudaTokens::covariance_scores(
    py::handle logp_object,
    py::handle advantages_object,
    py::handle mask_object,
    py::handle old_logp_object,
    py::handle ids_object,
    const py::dict& band,
    py::handle scores_object,
    py::handle out_ids_object,
    py::handle flag_object,
    int64_t stream
) const {
  const Array logp = reads(logp_object, "logp");
  const Array advantages = reads(advantages_object, "advantages");
  const Array mask = reads(mask_object, "mask"), ids = reads(ids_object, "ids");
  const auto old_logp = optional_array(old_logp_object, "old_logp", Access::read, place_);
  const Array scores = writes(scores_object, "scores");
  const Array out_ids = writes(out_ids_object, "out_ids");
  const Array flag = writes(flag_object, "flag");
  const auto number = [&](const char* name) { return field_of<double>(band, name); };
  const auto mean = [&](const char* name) {
    return ScalarArray<double>(field_of<py::object>(band, name), name, Dtype::f64, place_);
  };
  const auto mean_advantage = mean("mean_advantage"), mean_logp = mean("mean_logp");
  const int64_t n = logp->size();
  visit_real(logp, [&](auto tag, Dtype dtype) {
    using T = typename decltype(tag)::type;
    const cuda::ScoresArgs<T> args = {
        n,
        data_of<const T>(logp, dtype, n),
        data_of<const T>(advantages, dtype, n),
        data_of<const T>(old_logp, dtype, n),
        data_of<const uint8_t>(mask, Dtype::boolean, n),
        data_of<const int64_t>(ids, Dtype::i64, n),
        {mean_advantage.get(), mean_logp.get()},
        number("low"),
        number("high"),
        number("log_low"),
        number("log_high"),
        data_of<uint64_t>(scores, Dtype::i64, n),
        data_of<int64_t>(out_ids, Dtype::i64, n),
        data_of<int64_t>(flag, Dtype::i64, 1)
    };
    check_apart(
        logp, advantages, mask, old_logp, ids, mean_advantage, mean_logp, scores, out_ids, flag
    );
    const py::gil_scoped_release release;
    cuda::covariance_scores(args, queue(stream));
  });
}

void CudaTokens::ordered_scores(
    py::handle values_object,
    py::handle which_object,
    py::handle ids_object,
    py::handle scores_object,
    py::handle out_ids_object,
    int64_t stream
) const {
  const Array values = reads(values_object, "values"), which = reads(which_object, "which");
  const Array ids = reads(ids_object, "ids"), scores = writes(scores_object, "scores");
  const Array out_ids = writes(out_ids_object, "out_ids");
  const int64_t n = values->size();
  const cuda::OrderedArgs args = {
      n,
      data_of<const double>(values, Dtype::f64, n),
      data_of<const uint8_t>(which, Dtype::boolean, n),
      data_of<const int64_t>(ids, Dtype::i64, n),
      data_of<uint64_t>(scores, Dtype::i64, n),
      data_of<int64_t>(out_ids, Dtype::i64, n)
  };
  check_apart(values, which, ids, scores, out_ids);
  const py::gil_scoped_release release;
  cuda::ordered_scores(args, queue(stream));
}

void CudaTokens::random_scores(
    py::handle ids_object, uint64_t seed, uint64_t step, py::handle scores_object, int64_t stream
) const {
  const Array ids = reads(ids_object, "ids"), scores = writes(scores_object, "scores");
  const int64_t n = ids->size();
  const cuda::RandomArgs args = {
      n,
      data_of<const int64_t>(ids, Dtype::i64, n),
      seed,
      step,
      data_of<uint64_t>(scores, Dtype::i64, n)
  };
  check_apart(ids, scores);
  const py::gil_scoped_release release;
  cuda::random_scores(args, queue(stream));
}

void CudaTokens::radix_levels(
    py::handle scores_object,
    py::handle ids_object,
    py::handle k_object,
    py::handle bins_object,
    py::handle states_object,
    int first,
    int last,
    bool exact,
    int64_t stream
) const {
  const Search search(place_, scores_object, ids_object, k_object, bins_object, states_object);
  check(
      0 <= first && first <= last && last <= kRadixLevels,
      "first and last must rise from 0 to ",
      kRadixLevels,
      ", got ",
      first,
      " and ",
      last
  );
  check_apart(search);
  const py::gil_scoped_release release;
  cuda::radix_levels(search.args(exact), first, last, queue(stream));
}

void CudaTokens::radix_take(
    py::handle scores_object,
    py::handle ids_object,
    py::handle k_object,
    py::handle bins_object,
    py::handle states_object,
    py::handle taken_object,
    py::handle flag_object,
    int64_t stream
) const {
  const Search search(place_, scores_object, ids_object, k_object, bins_object, states_object);
  const Array taken = writes(taken_object, "taken"), flag = writes(flag_object, "flag");
  const cuda::RadixArgs radix = search.args(false);
  cuda::TakeArgs args = {radix, nullptr, nullptr, data_of<int64_t>(flag, Dtype::i64, 1)};
  if (taken->dtype == Dtype::i64)
    args.taken_ids = data_of<int64_t>(taken, Dtype::i64, radix.n);
  else
    args.taken = data_of<uint8_t>(taken, Dtype::boolean, radix.n);
  check_apart(search, taken, flag);
  const py::gil_scoped_release release;
  cuda::radix_take(args, queue(stream));
}

void CudaTokens::members(
    py::handle ids_object, py::handle sorted_object, py::handle out_object, int64_t stream
) const {
  const Array ids = reads(ids_object, "ids"), sorted = reads(sorted_object, "sorted");
  const Array out = writes(out_object, "out");
  const int64_t n = ids->size(), chosen = sorted->size();
  const cuda::MembersArgs args = {
      n,
      chosen,
      data_of<const int64_t>(ids, Dtype::i64, n),
      data_of<const int64_t>(sorted, Dtype::i64, chosen),
      data_of<uint8_t>(out, Dtype::boolean, n)
  };
  check_apart(ids, sorted, out);
  const py::gil_scoped_release release;
  cuda::members(args, queue(stream));
}

void CudaTokens::unique_ids(
    py::handle ids_object,
    py::handle mask_object,
    py::handle table_object,
    py::handle flag_object,
    int64_t stream
) const {
  const Array ids = reads(ids_object, "ids"), mask = reads(mask_object, "mask");
  const Array table = writes(table_object, "table"), flag = writes(flag_object, "flag");
  const int64_t n = ids->size(), slots = table->size();
  check(n < INT32_MAX, "ids must be fewer than ", INT32_MAX, ", got ", n);
  // or a search for a free slot would not end
  check(slots > n, "table must have more slots than ids, got ", slots, " and ", n);
  const cuda::UniqueArgs args = {
      n,
      data_of<const int64_t>(ids, Dtype::i64, n),
      data_of<const uint8_t>(mask, Dtype::boolean, n),
      data_of<int32_t>(table, Dtype::i32, slots),
      slots,
      data_of<int64_t>(flag, Dtype::i64, 1)
  };
  check_apart(ids, mask, table, flag);
  const py::gil_scoped_release release;
  cuda::unique_ids(args, queue(stream));
}

void CudaTokens::flag_tokens(
    py::handle good_object, py::handle places_object, py::handle flag_object, int64_t stream
) const {
  const Array good = reads(good_object, "good"), flag = writes(flag_object, "flag");
  const auto places = optional_array(places_object, "places", Access::read, place_);
  const int64_t n = good->size();
  const cuda::FlagArgs args = {
      n,
      data_of<const uint8_t>(good, Dtype::boolean, n),
      data_of<const int64_t>(places, Dtype::i64, n),
      data_of<int64_t>(flag, Dtype::i64, 1)
  };
  check_apart(good, places, flag);
  const py::gil_scoped_release release;
  cuda::flag_tokens(args, queue(stream));
}

void CudaTokens::sort_ids(
    py::handle ids_object,
    py::handle found_object,
    py::handle room_object,
    py::handle out_object,
    int64_t stream
) const {
  const Array ids = reads(ids_object, "ids"), found = writes(found_object, "found");
  const Array room = writes(room_object, "room"), out = writes(out_object, "out");
  const int64_t n = ids->size();
  const cuda::SortArgs args = {
      n,
      data_of<const int64_t>(ids, Dtype::i64, n),
      data_of<int64_t>(found, Dtype::i64, 1),
      data_of<int64_t>(room, Dtype::i64, 2 * n),
      data_of<int64_t>(out, Dtype::i64, n)
  };
  check_apart(ids, found, room, out);
  const py::gil_scoped_release release;
  cuda::sort_ids(args, queue(stream));
}

}  // namespace logitless::bindings
