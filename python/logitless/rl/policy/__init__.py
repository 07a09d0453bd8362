"""The policy that is trained: a causal LM's body and head, and its tokenizer."""

from __future__ import annotations

from logitless.rl.policy.caches import keep_rows
from logitless.rl.policy.loading import as_policy, load_policy, make_policy
from logitless.rl.policy.models import SMOLLM2_PATH, silence_bars
from logitless.rl.policy.policy import Policy
from logitless.rl.policy.tokenizers import make_tokenizer, text_of

__all__ = [
    "SMOLLM2_PATH", "Policy", "as_policy", "keep_rows", "load_policy", "make_policy",
    "make_tokenizer", "silence_bars", "text_of",
]  # fmt: skip
