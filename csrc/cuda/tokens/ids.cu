// Drivers of what is found of token ids, and of a call's few numbers.
#include <utility>

#include "ids.cuh"
#include "numbers.cuh"

namespace logitless::cuda {

void unique_ids(const UniqueArgs& args, Stream stream) {
  start("unique_ids", unique_ids_kernel, args.n, stream, args);
}

void flag_tokens(const FlagArgs& args, Stream stream) {
  start("flag_tokens", flag_tokens_kernel, args.n, stream, args);
}

void sort_ids(const SortArgs& args, Stream stream) {
  start("gather_ids", gather_ids_kernel, args.n, stream, args, kGatherTokens);
  start("sort_run", sort_run_kernel, args.n, stream, args, kSortRun);
  int64_t *from = args.room, *to = args.room + args.n;
  bool last = false;
  for (int64_t width = kSortRun; !last; width *= kSortWays) {
    last = width * kSortWays >= args.n;
    const MergeArgs merge = {args.n, width, args.found, from, last ? args.out : to, last};
    start("merge_runs", merge_runs_kernel, args.n, stream, merge);
    std::swap(from, to);
  }
}

void members(const MembersArgs& args, Stream stream) {
  start("members", members_kernel, args.n, stream, args);
}

void collect_numbers(const NumbersArgs& args, Stream stream) {
  const DeviceGuard guard(stream.device);
  launch("collect_numbers", collect_numbers_kernel, 1, kWarp, stream, args);
}

void count_shares(const CountArgs& args, Stream stream) {
  const DeviceGuard guard(stream.device);
  launch("count_shares", count_shares_kernel, 1, kWarp, stream, args);
}

void loss_outputs(const OutputsArgs& args, Stream stream) {
  const DeviceGuard guard(stream.device);
  launch("loss_outputs", loss_outputs_kernel, 1, kWarp, stream, args);
}

}  // namespace logitless::cuda
