"""The oracle: every op, loss and gradient in NumPy float64, written the slowest and plainest way.

Nothing here is fast, fused, tiled or clever, so that each line can be checked against the formula
it states; everything else in the package is tested against it, and it is tested against finite
differences. Every function takes arrays whose last axis is the vocabulary (`logits`) or the hidden
size (`hidden`), with any shape in front, and flattens the rows.
"""

from __future__ import annotations

from logitless.reference import advantages, preference
from logitless.reference.adapter import adapter_backward, merged_weight
from logitless.reference.divergence import (
    divergence,
    divergence_backward,
    linear_divergence,
    linear_divergence_backward,
    teacher_noise,
)
from logitless.reference.law import fit_entropy_law, student_t_975
from logitless.reference.policy_loss import policy_loss, token_weights
from logitless.reference.rows import (
    kept_mass,
    linear_token_stats,
    linear_token_stats_backward,
    logits_chain,
    moments,
    probabilities,
    token_stats,
    token_stats_backward,
)
from logitless.reference.selection import (
    covariance,
    exact_mean,
    philox,
    random_key,
    ratio_clipped,
    select,
    sequence_of_token,
)
from logitless.reference.support import largest, support_backward
from logitless.reference.terms import kl_loss, surrogate_loss
from logitless.reference.truncated import likeliest, truncated_probabilities

__all__ = [
    "adapter_backward", "advantages", "covariance", "divergence", "divergence_backward",
    "exact_mean", "fit_entropy_law", "kept_mass", "kl_loss", "largest", "likeliest",
    "linear_divergence", "linear_divergence_backward", "linear_token_stats",
    "linear_token_stats_backward", "logits_chain", "merged_weight", "moments", "philox",
    "policy_loss", "preference", "probabilities", "random_key", "ratio_clipped", "select",
    "sequence_of_token", "student_t_975", "support_backward", "surrogate_loss", "teacher_noise",
    "token_stats", "token_stats_backward", "token_weights", "truncated_probabilities",
]  # fmt: skip
