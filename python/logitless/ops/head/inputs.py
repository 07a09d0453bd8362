"""The arrays of a head call as its ops take them, and the tiling that serves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitless.backends.forked import refuse_lost_threads
from logitless.backends.registry import ON_DEVICE
from logitless.inputs.checks import shown
from logitless.inputs.options import ComputeOptions, HeadOptions
from logitless.ops.head.late_plan import question
from logitless.ops.head.plan import Plan, plan
from logitless.ops.losses.tracing import any_symbol, fixed
from logitless.ops.rows.outputs import flat_head
from logitless.ops.sharding.shard import Shard
from logitless.ops.sharding.vocab_parallel import Facts, Meeting, head_facts, rows_facts
from logitless.ops.torch_op import backend_of


class HeadCall(NamedTuple):
    """Flat inputs of one call. `arrays` starts every schema over hidden, weight and rows."""

    # hidden [N, H], weight [V, H], targets, mask, bias, row_scale, scale, pre, softcap, backend
    arrays: tuple[Any, ...]
    logits_dtype: torch.dtype
    # of "hidden", "weight": what autograd will ask for; a bias needs the same products as none
    gradients: tuple[str, ...]
    needs: tuple[bool, bool, bool]  # hidden, weight, bias

    shard: Shard = Shard()

    @property
    def backend(self) -> str:
        return str(self.arrays[-1])

    def plan(self, compute: ComputeOptions, *, one_pass: bool, split: bool = True) -> Plan | str:
        """That of the widest shard, so that all ranks have the same; in a graph of any length what
        it is asked for when it runs."""
        n, width, vocab = self.sizes
        budget, tail_mass = compute.memory_budget, compute.tail_mass
        asked = (self.gradients, any(self.needs), one_pass, split, compute.batch_invariant)
        if torch.compiler.is_compiling():
            budget, tail_mass = fixed(budget), fixed(tail_mass)
            if not self.shard.group and any_symbol(n, width, vocab):
                text: str = _question(budget, *asked, tail_mass)
                return text
            n, width, vocab = fixed(n), fixed(width), fixed(vocab)
        vocab, dtype = self.shard.widest(vocab), self.arrays[0].dtype
        tiling: Plan = _plan(n, width, vocab, dtype, budget, self.logits_dtype, *asked, tail_mass)
        return tiling

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Tokens, width of hidden, and vocabulary of this rank."""
        hidden, weight = self.arrays[:2]
        return hidden.shape[0], hidden.shape[1], weight.shape[0]

    def tiles(self, tiling: Plan | str) -> tuple[Any, ...]:
        """The end of every schema over tiles, see `tiles.TILES` and `shard.SHARD`, `LATE`."""
        if isinstance(tiling, str):
            return (0, 0, 0, self.logits_dtype, 0, *self.shard, tiling)
        kept = min(tiling.kept_columns, self.sizes[2])
        return (
            tiling.rows, tiling.columns, kept, self.logits_dtype, tiling.fixed_rows, *self.shard
        )  # fmt: skip

    def sharded(
        self,
        meeting: Meeting,
        head: HeadOptions,
        compute: ComputeOptions,
        shape: tuple[int, ...],
        more: Callable[[], Facts],
    ) -> HeadCall:
        """The same with the shard that the ranks of vocab_group agree on."""
        hidden, weight, targets, mask = self.arrays[:4]

        def same() -> Facts:
            return (
                ("the width of hidden", int(hidden.shape[-1])),
                *head_facts(head),
                *rows_facts(hidden, targets, mask, shape),
                ("which of hidden, weight and bias require grad", list(self.needs)),
                *compute.facts,
                *more(),
            )

        return self._replace(shard=meeting.shard(int(weight.shape[0]), same))


def head_call(
    op: str,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    head: HeadOptions,
    compute: ComputeOptions,
    shape: tuple[int, ...],
) -> HeadCall:
    backend = backend_of(compute.backend, hidden)
    if compute.tail_mass and backend != "cpu":
        raise NotImplementedError(
            f"{op}: tail_mass={compute.tail_mass!r} is served by backend 'cpu' only, got "
            f"{backend!r}; tail_mass=0 is exact and served by all"
        )
    wide, look = hidden.dtype == torch.float64, backend not in ON_DEVICE
    differentiated = torch.is_grad_enabled()
    needs = tuple(
        differentiated and t is not None and t.requires_grad for t in (hidden, weight, head.bias)
    )
    arrays = (
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        targets.reshape(-1).to(torch.int64).contiguous(),
        None if mask is None else mask.reshape(-1).contiguous(),
        *flat_head(op, head, shape, mask, wide, look=look),
        backend,
    )
    asked = tuple(name for name, need in zip(("hidden", "weight"), needs, strict=False) if need)
    dtype = logits_dtype(compute.logits_dtype, hidden.dtype)
    return HeadCall(arrays, dtype, asked, (needs[0], needs[1], needs[2]))


def logits_dtype(asked: Any, dtype: torch.dtype) -> torch.dtype:
    if asked is None or asked is dtype:
        return dtype
    if asked is not torch.float32 or dtype not in (torch.bfloat16, torch.float16):
        kind = ValueError if isinstance(asked, torch.dtype) else TypeError
        raise kind(
            f"logits_dtype must be None, {dtype} or (for 16-bit inputs) torch.float32, got "
            f"{shown(asked)}"
        )
    wide: torch.dtype = torch.float32
    return wide


_question = torch.compiler.assume_constant_result(question)


# A compiled graph holds the plan as a constant: it follows from what the graph is guarded on.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _plan(
    n: int,
    hidden: int,
    vocab: int,
    dtype: torch.dtype,
    budget: int | str | None,
    logits: torch.dtype,
    gradients: tuple[str, ...],
    backward: bool,
    one_pass: bool,
    split: bool,
    fixed: bool,
    tail_mass: float,
) -> Plan:
    refuse_lost_threads()
    return plan(
        n, hidden, vocab, dtype, budget, logits_dtype=logits, gradients=gradients,
        backward=backward, one_pass=one_pass, split=split, batch_invariant=fixed,
        tail_mass=tail_mass,
    )  # fmt: skip
