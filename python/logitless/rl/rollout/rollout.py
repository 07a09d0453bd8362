"""Sampled answers as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad as padded

import logitless as ll
from logitless.rl.policy import text_of


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
    # Of each target the tokens that it was drawn from, which logp and entropy are within, always on
    # the host; None: all of them always.
    kept: ll.SamplingMask | None = None
    # Of the sampled tokens as the server has them that drew them; None: logp is of where they were
    # drawn.
    rollout_logp: Tensor | None = None  # [B, T] fp32
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

    def truncated(self, ends: Sequence[int]) -> Tensor:  # [B] bool
        """Which have no end token: their answers were cut off."""
        last = self.ids[:, self.prompt_length :].gather(1, self.lengths[:, None] - 1)[:, 0]
        return ~torch.isin(last, last.new_tensor(ends))

    def sequences(self, index: Tensor) -> Rollout:
        """The rollout of some sequences."""
        return Rollout(
            self.ids[index],
            self.attention[index],
            self.mask[index],
            self.logp[index],
            self.entropy[index],
            None if self.kept is None else self.kept.rows(self.places(index).cpu()),
            None if self.rollout_logp is None else self.rollout_logp[index],
            None if self.ref_logp is None else self.ref_logp[index],
        )

    def places(self, index: Tensor) -> Tensor:
        """The places among the targets of those of some sequences."""
        ends, lengths = self.lengths.cumsum(0), self.lengths[index]
        first = (ends - self.lengths)[index] - (lengths.cumsum(0) - lengths)
        within = torch.arange(int(lengths.sum()), device=lengths.device)
        return first.repeat_interleave(lengths) + within

    def to(self, device: torch.device | str) -> Rollout:
        moved: dict[str, Any] = {
            name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)
        }
        return replace(self, **moved)

    def texts(self, tokenizer: Any, *, special_tokens: bool = False) -> list[str]:
        """The answers as a reward reads them; special tokens are left out unless asked for."""
        return [text_of(row, tokenizer, special_tokens=special_tokens) for row in self.answers()]

    def answers(self) -> list[list[int]]:
        """The sampled tokens of each sequence."""
        completions = self.ids[:, self.prompt_length :].tolist()
        return [ids[:n] for ids, n in zip(completions, self.lengths.tolist(), strict=True)]


def given_answers(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad: int
) -> Rollout:
    """Tokens that were given, as if they had been sampled, on the host; `logp` and `entropy` are
    0."""
    left, right = max(map(len, prompts)), max(1, *map(len, answers))
    ids = torch.full((len(prompts), left + right), pad, device="cpu")
    attention = torch.zeros(ids.shape, dtype=torch.bool, device="cpu")
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        place = slice(left - len(prompt), left + len(answer))
        ids[i, place] = torch.tensor([*prompt, *answer], device="cpu")
        attention[i, place] = True
    zeros = torch.zeros(len(prompts), right, device="cpu")
    return Rollout(ids, attention, attention[:, left:], logp=zeros, entropy=zeros)


def join_rollouts(parts: Sequence[Rollout], pad: int) -> Rollout:
    """The sequences of some rollouts without `ref_logp`, one after another: as if they had been
    sampled together."""
    if len(parts) == 1:
        return parts[0]
    left = max(part.prompt_length for part in parts)
    right = max(part.mask.shape[1] for part in parts)

    def wide(part: Rollout) -> Rollout:
        before, after = left - part.prompt_length, right - part.mask.shape[1]
        return Rollout(
            ids=padded(part.ids, (before, after), value=pad),
            attention=padded(part.attention, (before, after)),
            mask=padded(part.mask, (0, after)),
            logp=padded(part.logp, (0, after)),
            entropy=padded(part.entropy, (0, after)),
            rollout_logp=(
                None if part.rollout_logp is None else padded(part.rollout_logp, (0, after))
            ),
        )

    sets = [part.kept.lists() for part in parts if part.kept is not None]
    kept = ll.SamplingMask.from_lists(ids for part in sets for ids in part) if sets else None
    alike = [wide(part) for part in parts]
    names = ["ids", "attention", "mask", "logp", "entropy"]
    names += ["rollout_logp"] if parts[0].rollout_logp is not None else []
    whole: dict[str, Any] = {name: torch.cat([getattr(x, name) for x in alike]) for name in names}
    return Rollout(**whole, kept=kept)
