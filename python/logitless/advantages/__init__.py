"""From rewards to advantages: pure functions for NumPy arrays and torch tensors."""

from __future__ import annotations

from logitless.advantages.baselines import dr_grpo, gpg, grpo, max_rl, opo, qae, remax, rloo
from logitless.advantages.docs_table import markdown, text
from logitless.advantages.pass_at_k import grpo_passk, pass_at_k
from logitless.advantages.returns import GAE, gae, length_adaptive_lambda, returns
from logitless.advantages.table import TABLE, Row
from logitless.advantages.token_baselines import min_form, optimal_token_baseline, pure
from logitless.advantages.whitened import (
    gdpo,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    whiten,
)

__all__ = [
    "GAE", "TABLE", "Row", "dr_grpo", "gae", "gdpo", "gpg", "grpo", "grpo_passk",
    "length_adaptive_lambda", "markdown", "max_rl", "min_form", "opo", "optimal_token_baseline",
    "pass_at_k", "pure", "qae", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax",
    "returns", "rloo", "text", "whiten",
]  # fmt: skip
