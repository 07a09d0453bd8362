"""The head under verl's Megatron engine: what its fused forward calls, by this library."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor

import logitless as ll
from logitless.integrations.verl import hooks
from logitless.integrations.verl.head import BACKEND

# Where the weight of a head has its `MegatronHead`. A weight without one is verl's to serve.
MARK = "logitless_head"


@dataclass
class MegatronHead:
    """Of the weight of one model's head on this rank."""

    # Megatron adds d_hidden up over the ranks itself, where it scatters the sequence.
    partial_hidden: bool
    # the vocabulary over tensor-parallel ranks, known from the first call on
    shard: Any = None

    def shard_of(self, group: Any, weight: Tensor) -> Any:
        if group is None or group.size() == 1:
            return None
        if self.shard is None:
            self.shard = ll.vocab_shard(group, weight, reduce_hidden=not self.partial_hidden)
        return self.shard


def replace_engine(module: ModuleType) -> None:
    """verl's engine marks the heads of models whose configuration names this library."""
    engine = hooks.find(module, hooks.MEGATRON_ENGINE)
    own = getattr(engine, hooks.MEGATRON_METHOD, None)
    if own is None:
        raise hooks.unknown(f"{hooks.MEGATRON_ENGINE}.{hooks.MEGATRON_METHOD}", "none")
    hooks.check(f"{hooks.MEGATRON_ENGINE}.{hooks.MEGATRON_METHOD}", own, ("self",))

    @functools.wraps(own)
    def enable(self: Any) -> None:
        own(self)
        options = self.model_config.fused_kernel_options or {}
        # verl's own method turns fused kernels off where it cannot serve them
        if self.engine_config.use_fused_kernels and options.get("impl_backend") == BACKEND:
            for model in self.module:
                mark(model)

    setattr(engine, hooks.MEGATRON_METHOD, enable)


def mark(model: Any) -> None:
    """Gives the head of a GPTModel, wrapped or not, to this library. A pipeline stage without a
    head is left alone."""
    forwards = importlib.import_module(hooks.FUSED_FORWARDS[0])
    gpt = hooks.find(forwards, hooks.PATCHED_MODEL)(model)
    if gpt is None or not gpt.post_process:
        return
    weight = gpt.output_layer.weight
    if weight is None:
        weight = gpt.embedding.word_embeddings.weight
    setattr(weight, MARK, MegatronHead(bool(gpt.config.sequence_parallel)))


def replace_cross_entropy(module: ModuleType) -> None:
    """A module of verl's that calls its fused cross entropy calls this library's for the weights
    that are marked."""
    own = hooks.find(module, hooks.CROSS_ENTROPY)
    # the apply of an autograd function, whose forward has the parameters
    function = getattr(getattr(own, "__self__", None), "forward", own)
    name = f"{module.__name__}.{hooks.CROSS_ENTROPY}"
    hooks.check(name, function, hooks.CROSS_ENTROPY_PARAMETERS)

    def linear_cross_entropy(
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        temperature: float = 1.0,
        reduction: str = "none",
        dist_process_group: Any = None,
    ) -> tuple[Tensor, Tensor]:
        head = getattr(weight, MARK, None)
        if head is None:
            found: tuple[Tensor, Tensor] = own(
                hidden, weight, labels, temperature, reduction, dist_process_group
            )
            return found
        if reduction != "none":
            raise ValueError(f"impl_backend={BACKEND}: reduction must be 'none', got {reduction!r}")
        return scores(head, hidden, weight, labels, temperature, dist_process_group)

    setattr(module, hooks.CROSS_ENTROPY, linear_cross_entropy)


def scores(
    head: MegatronHead,
    hidden: Tensor,  # [S, 1, H]: the sequence comes first
    weight: Tensor,  # [V of this rank, H]
    labels: Tensor,  # [1, S]
    temperature: float,
    group: Any,
) -> tuple[Tensor, Tensor]:  # [S] each
    """Log-probs of labels and entropies."""
    if labels.ndim == 2 and labels.shape[0] != 1:
        raise ValueError(
            f"impl_backend={BACKEND}: labels must be packed into one row, as "
            f"use_remove_padding=True does, got {tuple(labels.shape)}"
        )
    stats = ll.linear_token_stats(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        labels.reshape(-1),
        temperature=temperature,
        vocab_group=head.shard_of(group, weight),
    )
    return stats.logp, stats.entropy
