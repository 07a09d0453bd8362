"""Sampling answers: a KV-cache loop over the body, and a head that draws tokens without logits.

Each prompt is read once and its cache repeated for the group; the head sees only rows that still
write. A draw depends on (seed, step, sequence, position) alone, not on who else is writing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from inspect import signature
from typing import Any

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.metrics import Stopwatch
from logitless.rl.model import Policy


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

    def texts(self, tokenizer: Any) -> list[str]:
        completions = self.ids[:, self.prompt_length :]
        rows = [ids[mask].tolist() for ids, mask in zip(completions, self.mask, strict=True)]
        return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: list[list[int]],  # token ids of P prompts
    *,
    group: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    step: int,
    clock: Stopwatch,
) -> Rollout:
    """`group` answers to each prompt (sequence i answers prompt i // group), each ended by the end
    token or the limit.
    """
    from transformers import DynamicCache

    B, T = len(prompts) * group, max_new_tokens
    ids, attention = _left_pad(prompts, policy.pad)
    tokens = torch.full((B, T), policy.pad)
    mask = torch.zeros(B, T, dtype=torch.bool)
    logp, entropy = torch.zeros(B, T), torch.zeros(B, T)

    cache = DynamicCache(config=policy.model.config)
    with clock("rollout body"):
        hidden = _forward(policy, ids, attention, cache)[:, -1]
    cache.batch_repeat_interleave(group)
    hidden, ids, attention = (x.repeat_interleave(group, dim=0) for x in (hidden, ids, attention))

    live = torch.ones(B, dtype=torch.bool)
    for t in range(T):
        rows = live.nonzero()[:, 0]
        with clock("rollout head"):
            drawn = ll.linear_sample(
                hidden[rows],
                policy.weight,
                temperature=temperature,
                seed=seed,
                step=step,
                row_ids=rows * T + t,
                **policy.head_options,
            )
        tokens[rows, t], logp[rows, t], entropy[rows, t] = drawn.token, drawn.logp, drawn.entropy
        mask[rows, t] = True
        live[rows] = drawn.token != policy.eos
        attention = torch.cat([attention, mask[:, t : t + 1]], dim=1)
        if t + 1 == T or not live.any():
            break
        with clock("rollout body"):
            hidden = _forward(policy, tokens[:, t : t + 1], attention, cache)[:, -1]

    # The longest answer sets the width: what nobody wrote is dropped.
    T = t + 1
    return Rollout(
        ids=torch.cat([ids, tokens[:, :T]], dim=1),
        attention=attention,
        mask=mask[:, :T],
        logp=logp[:, :T],
        entropy=entropy[:, :T],
    )


def hidden_states(policy: Policy, rollout: Rollout) -> Tensor:  # [N, H]
    """The body's states that predict the sampled tokens, packed like `rollout.targets`."""
    states = _forward(policy, rollout.ids, rollout.attention, None)
    return states[:, rollout.prompt_length - 1 : -1][rollout.mask]


def _forward(
    policy: Policy,
    ids: Tensor,  # [B, t]: the last t tokens
    attention: Tensor,  # [B, T] bool: all of them
    cache: Any,
) -> Tensor:  # [B, t, H]
    positions = (attention.long().cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    states: Tensor = policy.body(
        input_ids=ids,
        attention_mask=attention.long(),
        position_ids=positions,
        use_cache=cache is not None,
        **{_cache_argument(policy.body): cache},
    ).last_hidden_state
    return states


def _cache_argument(body: Any) -> str:
    """transformers 5.24 renamed it, model by model."""
    return "cache" if "cache" in signature(body.forward).parameters else "past_key_values"


def _left_pad(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    attention = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, attention
