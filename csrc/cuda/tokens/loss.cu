// Driver of the token loss.
#include "loss.cuh"

namespace logitless::cuda {

template <typename T>
void token_loss(const LossArgs<T>& args, Stream stream) {
  const DeviceGuard guard(stream.device);
  const int64_t blocks = (args.n + kLossTokens - 1) / kLossTokens;
  launch("token_loss", token_loss_kernel<T>, blocks, kTokenThreads, stream, args);
  const LossSumsArgs sums = {blocks, args.blocks, args.sums};
  launch("loss_sums", loss_sums_kernel, kLossSums, kTokenThreads, stream, sums);
}

template void token_loss(const LossArgs<float>&, Stream);
template void token_loss(const LossArgs<double>&, Stream);

}  // namespace logitless::cuda
