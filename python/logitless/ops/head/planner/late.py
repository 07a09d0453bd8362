"""Plans of graphs that serve any length: torch.compile sees a question, and each run answers it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from logitless.backends import registry
from logitless.ops.head.planner.plan import Plan, cached_plan
from logitless.ops.head.tiling import Tiling

if TYPE_CHECKING:
    from torch import Tensor

_ASKED = (
    "backend", "budget", "gradients", "backward", "one_pass", "split", "batch_invariant",
    "tail_mass", "tail_entries",
)  # fmt: skip


def question(*asked: Any) -> str:
    """The options of `plan` in this order: what a graph holds where sizes are not known yet."""
    return json.dumps(dict(zip(_ASKED, asked, strict=True)))


def answer(
    tiling: Tiling,
    hidden: Tensor,  # [N, H], or with an adapter [N, H + r]
    weight: Tensor,  # [V, H]
) -> Plan:
    """The plan for these sizes. The backward asks what the forward has asked."""
    options = json.loads(tiling.question)
    machine = registry.get(options.pop("backend")).machine(hidden.device)
    options["gradients"] = tuple(options["gradients"])
    (n, joined), (vocab, width) = hidden.shape, weight.shape
    return cached_plan(
        machine, n, width, vocab, hidden.dtype, logits_dtype=tiling.dtype,
        adapter_rank=joined - width, active_capacity=tiling.capacity or None, **options,
    )  # fmt: skip


def planned(tiling: Tiling, hidden: Tensor, weight: Tensor) -> Tiling:
    """The tiling itself, or what these sizes make of a question."""
    if not tiling.question:
        return tiling
    return Tiling.of(answer(tiling, hidden, weight), len(weight), hidden.dtype, tiling.dtype)
