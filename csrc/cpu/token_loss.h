// One pass over the tokens of a call: loss, metrics and the coefficients of backward.
#pragma once

#include "../core/covariance.h"
#include "../core/token_loss.h"

namespace logitless::cpu {

// Numerators: the first three carry the token's weight, the others count each valid token as 1.
struct TokenLossSums {
  double loss = 0;
  double policy = 0;
  double kl = 0;
  double clipped = 0;
  double clipped_lower = 0;
  double selected = 0;
  double old_minus_new = 0;
  double entropy = 0;
  double covariance = 0;
  // The first valid token with a value that is not finite; -1 when there is none.
  int64_t bad_token = -1;
};

template <typename T>
struct TokenLossArgs {
  int64_t tokens = 0;
  const T* logp = nullptr;
  const T* old_logp = nullptr;
  const T* advantages = nullptr;
  // Share of a token in the loss; 0 marks a token outside the mask, whose other values are not
  // read.
  const double* weights = nullptr;
  const T* entropy = nullptr;      // or null
  const T* ref_logp = nullptr;     // or null
  const bool* selected = nullptr;  // or null
  T* g_logp = nullptr;
  T* g_entropy = nullptr;  // or null
  TokenMeans means = {0, 0};
  double grad_scale = 1;
  TokenLossParams params;
  int threads = 0;
};

// The same bits for every number of threads.
template <typename T>
TokenLossSums token_loss(const TokenLossArgs<T>& args);

}  // namespace logitless::cpu
