"""Sampled answers, and the hidden states that predict their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import logitless as ll
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
    # Of each target the tokens that it was drawn from, which logp and entropy are within; None: all
    # of them always.
    kept: ll.SamplingMask | None = None
    # Of the sampled tokens under the reference policy, where there is one.
    ref_logp: Tensor | None = None  # [B, T] fp32

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
        return Rollout(
            self.ids[index],
            self.attention[index],
            self.mask[index],
            self.logp[index],
            self.entropy[index],
            None if self.kept is None else self.kept.rows(self._rows(index)),
            None if self.ref_logp is None else self.ref_logp[index],
        )

    def _rows(self, index: Tensor) -> Tensor:
        """The places among the targets of those of some sequences."""
        ends, lengths = self.lengths.cumsum(0), self.lengths[index]
        first = (ends - self.lengths)[index] - (lengths.cumsum(0) - lengths)
        return first.repeat_interleave(lengths) + torch.arange(int(lengths.sum()))

    def texts(self, tokenizer: Any, *, special_tokens: bool = False) -> list[str]:
        """The answers as a reward reads them; special tokens are left out unless asked for."""
        completions = self.ids[:, self.prompt_length :]
        rows = [ids[mask].tolist() for ids, mask in zip(completions, self.mask, strict=True)]
        return [text_of(row, tokenizer, special_tokens=special_tokens) for row in rows]


def hidden_states(policy: Policy, rollout: Rollout) -> Tensor:  # [N, H]
    """The body's states that predict the sampled tokens, packed like `rollout.targets`."""
    states = policy.states(rollout.ids, rollout.attention)
    return states[:, rollout.prompt_length - 1 : -1][rollout.mask]
