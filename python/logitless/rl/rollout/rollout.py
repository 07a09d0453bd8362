"""Sampled answers, and the hidden states that predict their tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from logitless.rl.policy import Policy, text_of


@dataclass(frozen=True)
class Rollout:
    """B sequences: a left-padded prompt of P tokens, then up to T sampled ones, the end token
    included.
    """

    ids: Tensor  # [B, P + T] int64
    attention: Tensor  # [B, P + T] bool: real tokens
    mask: Tensor  # [B, T] bool: sampled tokens
    logp: Tensor  # [B, T] fp32, at the rollout's temperature; 0 where nothing was sampled
    entropy: Tensor  # [B, T] fp32, nats; 0 where nothing was sampled

    @property
    def prompt_length(self) -> int:
        return self.ids.shape[1] - self.mask.shape[1]

    @property
    def targets(self) -> Tensor:  # [N]
        return self.ids[:, self.prompt_length :][self.mask]

    @property
    def lengths(self) -> Tensor:  # [B]
        return self.mask.sum(dim=1)

    def sequences(self, index: Tensor) -> Rollout:
        """The rollout of some sequences."""
        return Rollout(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def texts(self, tokenizer: Any, *, special_tokens: bool = False) -> list[str]:
        """The answers as a reward reads them; special tokens are left out unless asked for."""
        completions = self.ids[:, self.prompt_length :]
        rows = [ids[mask].tolist() for ids, mask in zip(completions, self.mask, strict=True)]
        return [text_of(row, tokenizer, special_tokens=special_tokens) for row in rows]


def hidden_states(policy: Policy, rollout: Rollout) -> Tensor:  # [N, H]
    """The body's states that predict the sampled tokens, packed like `rollout.targets`."""
    states = policy.states(rollout.ids, rollout.attention)
    return states[:, rollout.prompt_length - 1 : -1][rollout.mask]
