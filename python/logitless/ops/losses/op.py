"""torch op of the policy loss: tokens in; loss, metrics and coefficients out, by one core call."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from logitless.backends.forked import without_lost_threads
from logitless.inputs.tokens import Tokens
from logitless.loss.evaluate.aggregation import Totals
from logitless.loss.evaluate.token_loss import TokenLoss, check_coefficients
from logitless.loss.spec import PolicyLossSpec
from logitless.ops.batch_stats import BatchStats
from logitless.ops.losses.spec_code import decode
from logitless.ops.losses.tracing import spec_code
from logitless.ops.policy_loss import policy_coefficients
from logitless.ops.torch_op import Symbols, begin_backward, graph_is_kept, register_schema

# What a loss knows beside logp and entropy, in the order of `LossArguments`.
LOSS = (
    "Tensor? old_logp, Tensor advantages, Tensor valid, Tensor? ref_logp, Tensor? rollout_logp, "
    "Tensor? cu_seqlens, Tensor? token_ids, Tensor? selected, Tensor? sequences, "
    "SymInt[]? totals, float[]? means, Tensor? traced_means, float grad_scale, str spec"
)


class LossArguments(NamedTuple):
    """Everything as an op takes it. Tensors as the caller gave them."""

    old_logp: Tensor | None
    advantages: Tensor
    mask: Tensor
    ref_logp: Tensor | None
    rollout_logp: Tensor | None
    cu_seqlens: Tensor | None
    token_ids: Tensor | None
    selected: Tensor | None  # of the batch, sorted
    sequences: Tensor | None  # of the batch
    totals: Symbols | None  # tokens, sequences, world_size
    # of the batch: advantage, logp, count, both credits, importance; None without one
    means: list[float] | None
    # the same in a graph, which would else be for one batch alone
    traced_means: Tensor | None
    grad_scale: float
    spec: str

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `policy_coefficients`, entropy aside."""
        totals = None if self.totals is None else Totals(*(int(x) for x in self.totals))
        batch = None
        means = self.means if self.traced_means is None else self.traced_means.tolist()
        if means is not None:
            assert totals is not None
            advantage, logp, count, positive, negative, importance = means
            spec = decode(self.spec)
            batch = BatchStats(
                totals, advantage, logp, int(count), self.selected, 0, 0, spec.control,
                spec.correction, (positive, negative), importance, self.sequences,
            )  # fmt: skip
        return {
            "ref_logp": self.ref_logp,
            "rollout_logp": self.rollout_logp,
            "cu_seqlens": self.cu_seqlens,
            "token_ids": self.token_ids,
            "batch": batch,
            "totals": totals if batch is None else None,
            "grad_scale": self.grad_scale,
        }

    def metric_names(self, *, entropy: bool) -> tuple[str, ...]:
        """The metrics of a call with these arguments, in the order of the op's second output."""
        given = tuple(x is not None for x in (self.old_logp, self.ref_logp, self.rollout_logp))
        known = "call" if self.totals is None else "totals"
        if self.means is not None or self.traced_means is not None:
            known = "batch"
        names: tuple[str, ...] = _constant_metric_names(self.spec, entropy, given, known)
        return names


def loss_arguments(
    old_logp: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    spec: PolicyLossSpec,
    *,
    ref_logp: Tensor | None,
    rollout_logp: Tensor | None,
    cu_seqlens: Tensor | None,
    token_ids: Tensor | None,
    batch: BatchStats | None,
    totals: Totals | None,
    grad_scale: float,
) -> LossArguments:
    selected = sequences = traced = None
    means: list[float] | None = None
    if batch is not None:
        totals, selected = batch.totals, torch.as_tensor(batch.selected)
        sequences = None if batch.sequences is None else torch.as_tensor(batch.sequences)
        means = [batch.mean_advantage, batch.mean_logp, float(batch.count)]
        means += [*batch.mean_credit, batch.mean_importance]
        if torch.compiler.is_compiling():
            zero = torch.zeros((), dtype=torch.float64)
            traced = torch.stack([zero + mean for mean in means])
            means = None
    counts = None if totals is None else list(totals)
    return LossArguments(
        old_logp, advantages, mask, ref_logp, rollout_logp, cu_seqlens, token_ids, selected,
        sequences, counts, means, traced, float(grad_scale), spec_code(spec),
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _asked_metric_names(
    spec: str, entropy: bool, given: tuple[bool, ...], known: str
) -> tuple[str, ...]:
    """By asking: a call of one token that is masked, and so costs nothing and draws nothing."""
    x: Any = np.zeros((1, 1))
    nothing, ids, none_selected = (x.astype(kind) for kind in (np.bool_, np.int64, np.int64))
    old, ref, rollout = (x if there else None for there in given)
    one = Totals(1, 1)
    options = LossArguments(
        old, x, nothing, ref, rollout, None, ids, none_selected[0, :0], None,
        None if known == "call" else list(one),
        [0.0, 0.0, 1.0, 1.0, 1.0, 1.0] if known == "batch" else None, None, 1.0, spec,
    ).options()  # fmt: skip
    _, result = policy_coefficients(
        x, old, x, nothing, decode(spec), entropy=x if entropy else None, **options
    )
    return tuple(result.metrics)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant_metric_names(*question: Any) -> tuple[str, ...]:
    return _asked_metric_names(*question)


def coefficients(
    logp: Tensor, entropy: Tensor | None, arguments: LossArguments
) -> tuple[Tokens, TokenLoss]:
    a = arguments
    return policy_coefficients(
        logp, a.old_logp, a.advantages, a.mask, decode(a.spec), entropy=entropy, **a.options()
    )


def loss_and_metrics(result: TokenLoss, names: tuple[str, ...], like: Tensor) -> list[Tensor]:
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    values = [result.metrics[name] for name in names]
    return [
        torch.tensor(result.loss, dtype=wide, device=like.device),
        torch.tensor(values, dtype=torch.float32, device=like.device),
    ]


def loss_and_metrics_fake(names: tuple[str, ...], like: Tensor) -> list[Tensor]:
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    return [like.new_empty((), dtype=wide), like.new_empty(len(names), dtype=torch.float32)]


def _forward(logp: Tensor, entropy: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    arguments = LossArguments(*args)
    detached = None if entropy is None else entropy.detach()
    tokens, result = coefficients(logp.detach(), detached, arguments)

    def given(values: Any, like: Tensor | None) -> Tensor:
        if values is None or like is None:
            return logp.new_empty(0)
        found = torch.from_numpy(values).view(like.shape)
        if found.dtype == like.dtype:
            return found.to(like.device)
        with without_lost_threads():
            out = found.to(like.device, like.dtype)
            if like.element_size() < 4:
                rounded = out.float().cpu().numpy()
                check_coefficients(tokens, decode(arguments.spec), rounded, arguments.grad_scale)
        return out

    outputs = loss_and_metrics(result, arguments.metric_names(entropy=entropy is not None), logp)
    return (*outputs, given(result.g_logp, logp), given(result.g_entropy, entropy))


def _forward_fake(logp: Tensor, entropy: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    arguments = LossArguments(*args)
    outputs = loss_and_metrics_fake(arguments.metric_names(entropy=entropy is not None), logp)
    bonus = entropy is not None and decode(arguments.spec).entropy is not None
    g_entropy = logp.new_empty(0) if entropy is None or not bonus else _contiguous(entropy)
    return (*outputs, _contiguous(logp), g_entropy)


def _contiguous(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    # or autograd would make zeros for the coefficients, which are outputs too
    ctx.set_materialize_grads(False)
    ctx.bonus = inputs[1] is not None and decode(inputs[-1]).entropy is not None
    ctx.save_for_backward(*output[2:])


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    # the coefficients are constants to autograd: a derivative of them would be silently 0
    begin_backward(ctx, "policy_loss", reuses_memory=False)
    if grad is None:
        return (None, None, *[None] * len(LossArguments._fields))
    g_logp, g_entropy = ctx.saved_tensors
    return (
        _scaled(g_logp, grad),
        _scaled(g_entropy, grad) if ctx.bonus else None,
        *[None] * len(LossArguments._fields),
    )


def _scaled(coefficients: Tensor, grad: Tensor) -> Tensor:
    """Their product; the coefficients themselves where grad is 1, as it is after loss.backward(),
    and nobody needs them again: the pass is a fifth of forward and backward."""
    # a fake or functional tensor is traced; on a GPU asking for the number would wait for it
    known = type(grad) is Tensor and grad.device.type == "cpu" and not graph_is_kept()
    if known and grad.item() == 1.0:
        return coefficients
    with without_lost_threads() if known else nullcontext():
        return coefficients * grad


policy_loss_op = register_schema(
    f"policy_loss(Tensor logp, Tensor? entropy, {LOSS}) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    setup=_setup,
    backward=_backward,
)
