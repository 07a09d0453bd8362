"""The entropy of each row's likeliest tokens: those within top_p, renormalised.

Two passes. The first is that of a draw with top_p, which names the tokens; the second makes their
logits alone, with a gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitless.inputs.checks import is_tensor, is_tracing, require, shown
from logitless.ops.rows.outputs import TokenStats
from logitless.ops.sharding.rendezvous import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from logitless.ops.head.inputs import HeadInputs
    from logitless.ops.head.planner.plan import Plan


def check_entropy_top_p(op: str, top_p: Any, hidden: Any, sampling_mask: Any) -> float | None:
    """None where it leaves out nothing."""
    if top_p is None:
        return None
    require("entropy_top_p", top_p, lambda p: 0 < p <= 1, "in (0, 1] or None")
    if top_p == 1:
        return None
    if not is_tensor(hidden):
        raise ValueError(f"entropy_top_p must be None for NumPy inputs, got {shown(top_p)}")
    if sampling_mask is not None:
        raise NotImplementedError(f"{op}: entropy_top_p with a sampling_mask is not built")
    if is_tracing():
        raise NotImplementedError(
            f"{op}: entropy_top_p in a graph of torch.compile is not built: how many tokens are "
            "within it is looked at"
        )
    return float(top_p)


def top_p_facts(top_p: float | None) -> Facts:
    """What must be the same on every rank."""
    return () if top_p is None else (("entropy_top_p", top_p),)


def statistics_with(
    top_p: float | None,
    inputs: HeadInputs,
    shape: tuple[int, ...],
    extras: tuple[str, ...],
    plan: Plan | str | None = None,
) -> TokenStats:
    """`statistics`, with the entropy of the tokens within top_p; None: of all."""
    from logitless.ops.head.statistics import statistics

    if top_p is None:
        return statistics(inputs, shape, extras, plan=plan)
    mask, backend = inputs.rows.mask, inputs.backend
    if mask is not None and backend.statistics is None:
        # of a device the host waits for them, once for both
        inputs = inputs._replace(places=backend.select(mask))
    stats = statistics(inputs, shape, extras, plan=plan)
    return stats._replace(entropy=_entropy(inputs, top_p).reshape(shape))


def _entropy(inputs: HeadInputs, top_p: float) -> Tensor:  # [N]
    import torch

    from logitless.ops.head.masked import set_statistics
    from logitless.ops.rows.arguments import Transform
    from logitless.ops.sampling.draw import Noise, draw
    from logitless.ops.sampling.truncated import Truncation, sets_on

    rows, eager = inputs.rows, inputs.backend.statistics
    if eager is not None:
        from logitless.backends.row_kernels.eager import likeliest

        logits = inputs.full_logits()
        kept = likeliest(logits.detach(), *rows[2:-1], top_p=top_p)
        # a target that is kept, so that its log-prob is a number
        targets = kept.to(torch.uint8).argmax(-1)
        entropy: Tensor = eager(logits, targets, *rows[1:-1], kept)["entropy"]
        return entropy
    n, hidden, low = inputs.sizes[0], inputs.hidden.detach(), inputs.adapter
    index = inputs.places
    if index is None:
        index = torch.arange(n, device=hidden.device)
    if low is not None:
        low = low._replace(low=low.low.detach()[index], up=low.up.detach())
    row_scale = None if rows.row_scale is None else rows.row_scale[index]
    chain = Transform(rows.bias, row_scale, rows.scale, rows.pre, rows.softcap)
    # which of them is drawn does not matter
    noise = Noise(0, 0, torch.zeros_like(index))
    with torch.no_grad():
        token, *_, sets = draw(
            rows.backend, hidden[index], inputs.weight.detach(), chain, inputs.compute.exact(),
            Truncation(top_p=top_p), noise, inputs.shard, low,
        )  # fmt: skip
    assert sets is not None
    of_rank = sets_on(inputs.shard, inputs.sizes[2], index, *sets.csr)
    targets = rows.targets.index_copy(0, index, token)
    own = inputs._replace(rows=rows._replace(targets=targets))
    found = set_statistics(own, of_rank).entropy
    return found.new_zeros(n).index_copy(0, index, found)
