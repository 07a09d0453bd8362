"""Sequences of a rollout packed into rows, and the options that micro-batches share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.rollout import Rollout


class Packed(NamedTuple):
    """Sequences, and their sampled tokens as the rows that every loss function takes."""

    sequences: Rollout  # of B sequences
    targets: Tensor  # [N] int64
    old_logp: Tensor  # [N]
    old_entropy: Tensor  # [N]
    rollout_logp: Tensor | None  # [N]: of a server that drew the tokens
    ref_logp: Tensor | None  # [N]
    advantages: Tensor  # [N]
    mask: Tensor  # [N] bool: all true, since only sampled tokens are packed
    cu_seqlens: Tensor  # [B + 1] int32
    token_ids: Tensor  # [N] int64


def pack(
    rollout: Rollout,
    advantages: Tensor,  # of each sequence of the rollout a number, or a row of its tokens
    index: Tensor,  # [B]: the sequences to pack
) -> Packed:
    part = rollout.sequences(index)
    mask, lengths = part.mask, part.lengths
    ends = lengths.cumsum(0).int()
    sequence, position = mask.nonzero(as_tuple=True)
    return Packed(
        sequences=part,
        targets=part.targets,
        old_logp=part.logp[mask],
        old_entropy=part.entropy[mask],
        rollout_logp=None if part.rollout_logp is None else part.rollout_logp[mask],
        ref_logp=None if part.ref_logp is None else part.ref_logp[mask],
        advantages=of_each_token(advantages[index], mask),
        mask=torch.ones_like(sequence, dtype=torch.bool),
        cu_seqlens=torch.cat([ends.new_zeros(1), ends]),
        token_ids=ll.token_ids(index[sequence], position, mask.shape[1]),
    )


def of_each_token(
    advantages: Tensor,  # [B], or [B, T]
    mask: Tensor,  # [B, T] bool
) -> Tensor:  # [N]
    if advantages.ndim == 1:
        return advantages.repeat_interleave(mask.sum(dim=1))
    return advantages[mask]


def batch_options(
    minibatch: Packed, spec: Any, seed: int, step: int, scored: dict[str, Tensor] | None = None
) -> dict[str, Any]:
    """Arguments that the calls of all micro-batches share: the minibatch's counts, and what the
    loss wants to know of all its tokens. scored: arguments of batch_stats, [N], in place of those
    that the rollout has.
    """
    if spec.control is None and not spec.needs_means:
        sequences = len(minibatch.cu_seqlens) - 1
        return {"totals": ll.Totals(tokens=len(minibatch.targets), sequences=sequences)}
    tokens = {"logp": minibatch.old_logp, "entropy": minibatch.old_entropy, **(scored or {})}
    batch = ll.batch_stats(
        advantages=minibatch.advantages,
        mask=minibatch.mask,
        spec=spec,
        cu_seqlens=minibatch.cu_seqlens,
        token_ids=minibatch.token_ids,
        seed=seed,
        step=step,
        rollout_logp=old_policy(minibatch, spec).get("rollout_logp"),
        **tokens,
    )
    return {"batch": batch}


def old_policy(packed: Packed, spec: Any) -> dict[str, Any]:
    """What a loss needs beside old_logp: of the rollout's policy, which is the old one where the
    trainer itself has drawn the tokens, and of the reference."""
    given = {
        "rollout_logp": packed.old_logp if packed.rollout_logp is None else packed.rollout_logp,
        "old_entropy": packed.old_entropy,
        "ref_logp": packed.ref_logp,
    }
    return {name: x for name, x in given.items() if name in spec.needs}
