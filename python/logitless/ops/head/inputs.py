"""A head call as its ops take it: flat arrays, which gradients are asked for, and the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitless.backends import registry
from logitless.backends.base import Backend
from logitless.backends.forked import refuse_lost_threads
from logitless.backends.row_kernels.errors import capturing
from logitless.inputs.adapter import Adapter
from logitless.inputs.checks import shown
from logitless.inputs.options import ComputeOptions, LogitTransform, Tail
from logitless.ops.head.adapter.low_rank import LowRank, low_rank
from logitless.ops.head.planner.late import question
from logitless.ops.head.planner.plan import Plan, cached_plan
from logitless.ops.head.tiling import Tiling
from logitless.ops.rows.arguments import RowArguments, row_arguments
from logitless.ops.sharding.rendezvous import Facts, ShardRendezvous, head_facts, rows_facts
from logitless.ops.sharding.shard import Shard
from logitless.ops.symbols import any_symbol, fixed
from logitless.ops.torch_op import backend_of


class HeadInputs(NamedTuple):
    """Flat inputs of one call."""

    hidden: Tensor  # [N, H]
    weight: Tensor  # [V, H]
    rows: RowArguments
    compute: ComputeOptions
    logits_dtype: torch.dtype
    # what autograd will ask for of hidden (or of adapters), weight, bias
    needs: tuple[bool, bool, bool]
    shard: Shard = Shard()
    adapter: LowRank | None = None
    # where the mask of rows is true, once the host knows
    places: Tensor | None = None

    @property
    def backend(self) -> Backend:
        return registry.get(self.rows.backend)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Tokens, width of hidden, and vocabulary of this rank."""
        return self.hidden.shape[0], self.hidden.shape[1], self.weight.shape[0]

    @property
    def operand(self) -> Tensor:
        """hidden as the ops take it: [N, H], or with an adapter [N, H + r]."""
        return self.hidden if self.adapter is None else self.adapter.joins(self.hidden)

    @property
    def up(self) -> Tensor | None:
        return None if self.adapter is None else self.adapter.up

    def full_logits(self) -> Tensor:  # [N, V]
        """For backends that have them in full."""
        dtype = self.logits_dtype
        logits = self.hidden.to(dtype) @ self.weight.to(dtype).t()
        if self.adapter is None:
            return logits
        return logits + self.adapter.low.to(dtype) @ self.adapter.up.to(dtype).t()

    @property
    def facts(self) -> Facts:
        """What must be the same on every rank of vocab_group, where plans must be."""
        return (
            *self.compute.facts,
            ("the dtype of logits", str(self.logits_dtype)),
            *(() if self.adapter is None else self.adapter.facts),
        )

    def exact(self) -> HeadInputs:
        return self._replace(compute=self.compute.exact())

    def plan(self, *, one_pass: bool, split: bool = True) -> Plan | str:
        """That of the widest shard, so that all ranks have the same; in a graph of any length what
        it is asked for when it runs."""
        n, width, vocab = self.sizes
        budget, tail = self.compute.memory_budget, self.compute.tail
        capacity = self.compute.active_capacity
        rank = 0 if self.adapter is None else self.adapter.rank
        # a bias needs the same products as no gradient
        gradients = tuple(
            name for name, need in zip(("hidden", "weight"), self.needs, strict=False) if need
        )
        asked = (gradients, any(self.needs), one_pass, split, self.compute.batch_invariant)
        if torch.compiler.is_compiling():
            budget, tail = fixed(budget), Tail(fixed(tail.mass), fixed(tail.entries))
            capacity = fixed(capacity)
            if not self.shard.group and any_symbol(n, width, vocab):
                text: str = _question(self.rows.backend, budget, *asked, *tail)
                return text
            n, width, vocab = fixed(n), fixed(width), fixed(vocab)
            rank = fixed(rank)
        place = (self.rows.backend, self.hidden.device)
        vocab, dtypes = self.shard.widest(vocab), (self.hidden.dtype, self.logits_dtype)
        found: Plan = _plan(*place, n, width, vocab, *dtypes, budget, *asked, *tail, capacity, rank)
        return found

    def tiling(self, plan: Plan | str) -> Tiling:
        if isinstance(plan, str):
            capacity = fixed(self.compute.active_capacity or 0)
            return Tiling.asked(plan, self.hidden.dtype, self.logits_dtype, capacity)
        return Tiling.of(plan, self.sizes[2], self.hidden.dtype, self.logits_dtype)

    def sharded(
        self,
        ranks: ShardRendezvous,
        head: LogitTransform,
        shape: tuple[int, ...],
        more: Callable[[], Facts],
    ) -> HeadInputs:
        """The same with the shard that the ranks of vocab_group agree on."""

        def same() -> Facts:
            return (
                ("the width of hidden", int(self.hidden.shape[-1])),
                *head_facts(head),
                *rows_facts(self.hidden, self.rows.targets, self.rows.mask, shape),
                ("which of hidden, weight and bias require grad", list(self.needs)),
                *self.facts,
                *more(),
            )

        return self._replace(shard=ranks.shard(int(self.weight.shape[0]), same))


def head_inputs(
    op: str,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    head: LogitTransform,
    compute: ComputeOptions,
    ranks: ShardRendezvous,
    sets: bool = False,  # whether rows have sets of tokens
    adapters: tuple[Adapter, ...] = (),
    likeliest: bool = False,  # whether entropies are of the likeliest tokens
    weight_rows: bool = False,  # whether d_weight is to be its rows that are not 0
) -> HeadInputs:
    """Of arguments whose shapes and dtypes are checked."""
    name = backend_of(compute.backend, hidden)
    registry.get(name).require(
        op, tail_mass=compute.tail_mass, batch_invariant=compute.batch_invariant,
        vocab_group=ranks.sharded, sampling_mask=sets, entropy_top_p=likeliest,
        weight_grad=weight_rows, active_capacity=compute.active_capacity,
    )  # fmt: skip
    if sets or likeliest:
        refuse_capacity(op, compute, "a sampling_mask" if sets else "entropy_top_p")
    compute = of_a_graph(compute, hidden.device, targets.numel())
    differentiated = torch.is_grad_enabled()
    hidden_needs, weight_needs, bias_needs = (
        differentiated and t is not None and t.requires_grad for t in (hidden, weight, head.bias)
    )
    rows = row_arguments(op, head, targets, mask, hidden.dtype == torch.float64, name)
    hidden, low = hidden.reshape(-1, hidden.shape[-1]), None
    if adapters:
        low = low_rank(op, adapters, hidden, rows.mask, compute, ranks.reduces_hidden)
        hidden_needs = hidden_needs or low.needs
    return HeadInputs(
        hidden,
        weight,
        rows,
        compute,
        realised_dtype(compute.logits_dtype, hidden, name),
        (hidden_needs, weight_needs, bias_needs),
        adapter=low,
    )


def refuse_capacity(op: str, compute: ComputeOptions, what: str) -> None:
    """Of a call that has sets."""
    if compute.active_capacity is not None:
        raise NotImplementedError(
            f"{op}: active_capacity with {what} is not built: how many ids the sets have the host "
            "has to know"
        )


def of_a_graph(compute: ComputeOptions, device: torch.device, tokens: int) -> ComputeOptions:
    """While a CUDA graph is captured nothing can be waited for: all rows are taken for active."""
    asks = compute.active_capacity is not None or compute.tail_mass > 0
    if asks or torch.compiler.is_compiling() or not capturing(device):
        return compute
    return replace(compute, active_capacity=max(tokens, 1))


def realised_dtype(asked: Any, hidden: Tensor, backend: str) -> torch.dtype:
    dtype: torch.dtype = hidden.dtype
    if asked is None:
        found: torch.dtype = _unasked(backend, hidden.device, dtype)
        return found
    if asked is hidden.dtype:
        return dtype
    if asked is not torch.float32 or dtype not in (torch.bfloat16, torch.float16):
        kind = ValueError if isinstance(asked, torch.dtype) else TypeError
        narrow = dtype in (torch.bfloat16, torch.float16)
        known = f"None, {dtype} or torch.float32" if narrow else f"None or {dtype}"
        raise kind(f"logits_dtype must be {known} with hidden in {dtype}, got {shown(asked)}")
    wide: torch.dtype = torch.float32
    return wide


# What a graph is guarded on decides this too.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _unasked(backend: str, device: torch.device, dtype: torch.dtype) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    found: torch.dtype = getattr(torch, registry.get(backend).machine(device).logits_dtype(name))
    return found


_question = torch.compiler.assume_constant_result(question)


# A compiled graph holds the plan as a constant: it follows from what the graph is guarded on.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _plan(
    backend: str,
    device: torch.device,
    n: int,
    hidden: int,
    vocab: int,
    dtype: torch.dtype,
    logits: torch.dtype,
    budget: int | str | None,
    gradients: tuple[str, ...],
    backward: bool,
    one_pass: bool,
    split: bool,
    fixed: bool,
    tail_mass: float,
    tail_entries: int,
    active_capacity: int | None,
    rank: int,
) -> Plan:
    refuse_lost_threads()
    return cached_plan(
        registry.get(backend).machine(device), n, hidden, vocab, dtype, budget, logits_dtype=logits,
        gradients=gradients, backward=backward, one_pass=one_pass, split=split,
        batch_invariant=fixed, tail_mass=tail_mass, tail_entries=tail_entries,
        active_capacity=active_capacity, adapter_rank=rank,
    )  # fmt: skip
