// One pass over the tokens of a call: loss, metrics and the coefficients of backward.
#pragma once

#include "../../core/token_loss.h"
#include "../../core/tokens/covariance.h"

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
  // Valid ones.
  double tokens = 0;
  // The first valid token with a value that is not finite; -1 when there is none.
  int64_t bad_token = -1;
  // Where all values are finite and some result is not: the first valid token whose loss or
  // coefficients are not, or of the largest loss where only the sum is not; -1 where all are. And
  // what is its part of the loss.
  int64_t overflow_token = -1;
  double overflow_loss = 0;
};

template <typename T>
struct TokenLossArgs {
  int64_t tokens = 0;
  const T* logp = nullptr;
  const T* old_logp = nullptr;  // or null: that of logp
  const T* advantages = nullptr;
  // Share of a token in the loss: weights[i], where 0 marks a token outside the mask, or null and
  // `weight` where mask[i]. Other values outside the mask are not read.
  const double* weights = nullptr;
  const uint8_t* mask = nullptr;
  double weight = 0;
  const T* entropy = nullptr;         // or null
  const T* kl_logp = nullptr;         // or null: the reference of the KL term
  const T* penalty_logp = nullptr;    // or null: the reference of the selected tokens' penalty
  const uint8_t* selected = nullptr;  // or null
  const double* log_ratio = nullptr;  // or null: logp - old_logp of the token
  const double* factor = nullptr;     // or null: what multiplies the policy term, >= 0
  const double* precomputed_loss = nullptr;  // of Surrogate::precomputed
  const double* precomputed_slope = nullptr;
  T* g_logp = nullptr;
  T* g_entropy = nullptr;  // or null
  // Or null; else the policy term's part of g_logp goes here instead.
  double* g_policy = nullptr;
  TokenMeans means = {0, 0};
  double grad_scale = 1;
  TokenLossParams params;
  int threads = 1;
};

// The same bits for every number of threads.
template <typename T>
TokenLossSums token_loss(const TokenLossArgs<T>& args);

}  // namespace logitless::cpu
