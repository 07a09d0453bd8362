"""Public: the head ops against full logits, on a few rows of the user's own model and batch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from logitless.inputs.checks import whole
from logitless.inputs.masks import as_mask
from logitless.inputs.naming import public
from logitless.inputs.options import LogitTransform
from logitless.inputs.sampling_mask import check_sampling_mask
from logitless.ops.head.parse import check_head_arrays, under_autocast
from logitless.ops.linear_token_stats import linear_token_stats

QUANTITIES = ("logp", "entropy", "lse", "d_hidden", "d_weight")
ROWS = 16
# Ours may be off by twice what plain torch is in the same dtype, and by a few roundings of the
# values themselves (float32 results, gradients in the dtype of hidden).
FLOOR = 1e-5


class Error(NamedTuple):
    """The largest error of a quantity against float64: values in nats, gradients relative to the
    largest entry."""

    ours: float
    plain: float
    allowed: float


@dataclass(frozen=True)
class Check:
    """What `check` found; printable."""

    rows: int
    vocab: int
    dtype: str
    errors: dict[str, Error]
    # The module's logits against weight and options: None where a weight was given.
    module: Error | None = None
    # Why they differ by more than rounding; "" where they do not.
    cause: str = ""

    @property
    def ok(self) -> bool:
        return not self.cause and all(error.ours <= error.allowed for error in self.errors.values())

    def raise_if_off(self) -> Check:
        """self, or AssertionError with the table."""
        if not self.ok:
            raise AssertionError(str(self))
        return self

    def __str__(self) -> str:
        lines = [
            f"{self.rows} rows x {self.vocab} vocabulary in {self.dtype}: largest error against"
            " float64",
            f"{'':<10}{'logitless':>12}{'full logits':>14}{'allowed':>12}",
        ]
        for name, (ours, plain, allowed) in self.errors.items():
            verdict = "" if ours <= allowed else "  <- off"
            lines.append(f"{name:<10}{ours:>12.2e}{plain:>14.2e}{allowed:>12.2e}{verdict}")
        if self.module is not None:
            ours, plain, allowed = self.module
            verdict = f"  <- off\n{self.cause}" if self.cause else ""
            lines.append(f"{'module':<10}{ours:>12.2e}{plain:>14.2e}{allowed:>12.2e}{verdict}")
        return "\n".join(lines)


@public
def check(head: Any, batch: Any, *, rows: int = ROWS, **options: Any) -> Check:
    """Compare the head ops with full logits on the first `rows` tokens of your batch, and print it.

    Equivalent plain code::

        logits = hidden.double() @ weight.double().T     # the truth, on `rows` rows
        ours = linear_token_stats(hidden, weight, targets, **options)
        plain = log_softmax(hidden @ weight.T)           # in the dtype of hidden, by autograd
        print(largest error of ours, and of plain, per quantity)
        print(largest difference of head(hidden) from logits, before or after the options' chain)

    head: a module with `.weight` [V, H] and, maybe, `.bias` [V] (a Linear lm_head), or the weight
    itself. A module is also called, in evaluation mode, for it may do more than its weight tells
    (an adapter, a softcap, a scale); what it gives is to be that of weight, bias and options,
    with or without their chain, or `.ok` is False and `.cause` says what the module seems to do.
    batch: a mapping or object with `hidden` [N, H] or [B, T, H], `targets` and, maybe,
    `mask`; the rows are the first that the mask has. options: those of `linear_token_stats`
    (temperature as a number, softcap, logit_scale, logits_dtype, memory_budget, backend ...);
    sampling_mask is that of the whole batch.

    The upstream gradient is 1 for logp and 0.1 for entropy in every row. Returns a `Check`: `.ok`,
    `.errors`, `.module`, `.cause`, `.raise_if_off()`; nothing is raised for a large error unless
    that is called. Errors of the inputs as in `linear_token_stats`; TypeError or ValueError for a
    module that is sharded or gives no logits.
    """
    import torch

    from logitless.diagnostics.head_module import compare_module, head_arrays

    rows = whole("rows", rows, least=1)
    weight, bias = head_arrays(head)
    bias = options.pop("bias", bias)
    hidden, targets, mask = (_field(batch, name) for name in ("hidden", "targets", "mask"))
    mask = as_mask(mask)
    chain = {k: options[k] for k in ("temperature", "softcap", "logit_scale") if k in options}
    one, other = under_autocast(hidden, weight)
    check_head_arrays("check", one, other, targets, mask, LogitTransform(bias=bias, **chain))
    flat_targets = targets.reshape(-1)
    chosen = torch.arange(flat_targets.numel(), device=flat_targets.device)
    chosen = (chosen if mask is None else mask.reshape(-1).nonzero().squeeze(1))[:rows]
    if not len(chosen):
        raise ValueError("check: batch must have at least one token, got none that the mask has")
    h = hidden.detach().reshape(-1, hidden.shape[-1])[chosen]
    t = flat_targets[chosen]
    if options.get("sampling_mask") is not None:
        check_sampling_mask(options["sampling_mask"], tuple(targets.shape))
        options["sampling_mask"] = options["sampling_mask"].rows(chosen.cpu())
    bias = None if bias is None else bias.detach()

    def run(dtype: Any, **ways: Any) -> dict[str, Any]:
        leaves = [x.detach().to(dtype).requires_grad_() for x in (h, weight)]
        stats = linear_token_stats(leaves[0], leaves[1], t, bias=bias, **{**options, **ways})
        loss = (stats.logp + 0.1 * stats.entropy).sum()
        gradients = torch.autograd.grad(loss, leaves)
        values = (stats.logp, stats.entropy, stats.lse, *gradients)
        return dict(zip(QUANTITIES, (x.detach().double() for x in values), strict=True))

    with torch.enable_grad():
        truth = run(torch.float64, backend="torch", logits_dtype=None, batch_invariant=False)
        plain = run(h.dtype, backend="torch", logits_dtype=None, batch_invariant=False)
        ours = run(h.dtype)
    eps = torch.finfo(h.dtype).eps
    found = {name: _error(name, ours, plain, truth, eps) for name in QUANTITIES}
    module, cause = None, ""
    if head is not weight:
        # Last, for the call may take the weight away: engines do after a forward.
        *numbers, cause = compare_module(
            head, h, weight.detach(), LogitTransform(bias=bias, **chain)
        )
        module = Error(*numbers)
    dtype = str(h.dtype).removeprefix("torch.")
    result = Check(len(chosen), len(weight), dtype, found, module, cause)
    sys.stdout.write(f"{result}\n")
    return result


def _field(batch: Any, name: str) -> Any:
    value = batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)
    if value is None and name != "mask":
        raise TypeError(f"check: batch must have {name}, got a {type(batch).__name__} without it")
    return value


def _error(name: str, ours: Any, plain: Any, truth: Any, eps: float) -> Error:
    size = float(truth[name].abs().max())
    gradient = name.startswith("d_")
    share = 1.0 / max(size, 1e-30) if gradient else 1.0
    mine, theirs = (float((x[name] - truth[name]).abs().max()) * share for x in (ours, plain))
    floor = 2 * eps if gradient else FLOOR * max(1.0, size)
    return Error(mine, theirs, 2 * theirs + floor)
