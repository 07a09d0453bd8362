"""torch op of the policy loss: tokens in; loss, metrics and coefficients out, by one kernel."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from logitless.backends import registry
from logitless.backends.forked import without_lost_threads
from logitless.backends.token_kernels.protocol import TokenKernels
from logitless.loss.evaluate.coefficients import call_inputs, completed, rows_inputs
from logitless.loss.evaluate.inputs import BatchFacts, BatchStats, LossData, Means, Totals
from logitless.loss.evaluate.metrics import (
    Given,
    metric_table,
)
from logitless.loss.evaluate.token_loss import (
    TokenInputs,
    TokenLoss,
    check_coefficients,
    evaluate,
)
from logitless.loss.spec import PolicyLossSpec
from logitless.loss.spec.policy_spec import Coefficients, coefficients_of
from logitless.ops.losses.spec_serialization import decode
from logitless.ops.losses.tracing import identity_text
from logitless.ops.torch_op import Autograd, Needs, Symbols, graph_is_kept, register

# How many numbers a call has before those of its batch: grad_scale and `Coefficients`.
_OWN = 1 + len(Coefficients._fields)


class LossInputs(NamedTuple):
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
    # grad_scale and coefficients; with a batch those of its `Means`
    numbers: list[float] | None
    # the same in a graph, which would else be for these numbers alone
    traced_numbers: Tensor | None
    # but for its coefficients
    spec: str
    weights: Tensor | None
    mean_metrics: bool
    old_entropy: Tensor | None
    # where batch_stats has left them on a device: int64 tokens and sequences, numbers of `Means`
    device_totals: Tensor | None
    device_means: Tensor | None

    @property
    def has_batch(self) -> bool:
        numbers = self.numbers if self.traced_numbers is None else self.traced_numbers
        assert numbers is not None
        return len(numbers) > _OWN or self.device_means is not None

    @property
    def total_tokens(self) -> Any:
        """What metrics per token are divided by; None: the tokens of the call."""
        if self.mean_metrics:
            return None
        totals = self.totals if self.device_totals is None else self.device_totals
        return None if totals is None else totals[0]

    def data(self, kernels: TokenKernels) -> LossData:
        """For a loss by these kernels."""
        numbers = self.numbers if self.traced_numbers is None else self.traced_numbers.tolist()
        assert numbers is not None

        def given(name: str, x: Tensor) -> Any:
            return kernels.xp.numbers(kernels.xp.array(name, x))

        totals = None if self.totals is None else Totals(*(int(x) for x in self.totals))
        if self.device_totals is not None:
            # not the constructor, which reads them
            totals = Totals._make([*given("batch.totals", self.device_totals), 1])
        means, batch = numbers[_OWN:], None
        if self.device_means is not None:
            means = given("batch", self.device_means)
        if means:
            batch = BatchFacts(Means.from_numbers(means), self.selected, self.sequences)
        return LossData(
            *self[:7], decode(self.spec), Coefficients(*numbers[1:_OWN]), batch, totals, numbers[0],
            self.weights, self.mean_metrics, self.old_entropy,
        )  # fmt: skip

    def resolved(self, dtype: torch.dtype = torch.float32) -> LossRows:
        """Of logp in this dtype, still to come. For the losses whose coefficients follow from a
        token's own values and from what is known before: made once, any rows of it evaluate alone.
        """
        kernels = _kernels(self.mask, self.spec)
        data = self.data(kernels)
        return LossRows(rows_inputs(data, kernels, wide=dtype == torch.float64), data)

    def rows(self, index: Tensor) -> LossRows:
        """Of the tokens at these flat places alone. From `resolved()` where many are asked for."""
        return self.resolved().rows(index)


class LossRows(NamedTuple):
    """Tokens of a call, whose logp and entropy are still to come."""

    inputs: TokenInputs
    data: LossData

    def rows(self, index: Tensor) -> LossRows:
        return self._replace(inputs=self.inputs.rows(self.inputs.tokens.xp.array("index", index)))

    def whole(self, logp: Tensor, entropy: Tensor) -> LossTensors:
        """`token_loss` of all tokens, whose arrays are checked and flat already."""
        return _tensors(evaluate(completed(self.inputs, self.data, logp, entropy)), logp.device)


class LossTensors(NamedTuple):
    """`TokenLoss` of tensors."""

    # float64 [K], for `loss_and_metrics`, where the kernels are
    sums: Tensor
    # [N] flat, in the float dtype that logp is computed in
    g_logp: Tensor
    # the same; None without an entropy term
    g_entropy: Tensor | None


def loss_inputs(
    old_logp: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    ref_logp: Tensor | None,
    rollout_logp: Tensor | None,
    cu_seqlens: Tensor | None,
    token_ids: Tensor | None,
    spec: PolicyLossSpec,
    batch: BatchStats | None,
    totals: Totals | None,
    grad_scale: float,
    weights: Tensor | None = None,
    metrics: str = "shares",
    old_entropy: Tensor | None = None,
) -> LossInputs:
    """From the arguments of a public function."""
    selected = sequences = traced = counts = device_totals = device_means = None
    numbers = [float(grad_scale), *coefficients_of(spec)]
    if batch is not None:
        totals, selected = batch.totals, torch.as_tensor(batch.selected)
        sequences = None if batch.sequences is None else torch.as_tensor(batch.sequences)
        means: Any = Means.of(batch).numbers
        if isinstance(batch.count, Tensor):
            device_means = torch.stack([x.double() for x in means])
        else:
            numbers += means
    if torch.compiler.is_compiling():
        zero = torch.zeros((), dtype=torch.float64)
        traced = torch.stack([zero + number for number in numbers])
    if totals is not None and isinstance(totals.tokens, Tensor):
        device_totals = torch.stack([totals.tokens, totals.sequences])
    elif totals is not None:
        counts = list(totals)
    return LossInputs(
        old_logp, advantages, mask, ref_logp, rollout_logp, cu_seqlens, token_ids, selected,
        sequences, counts, numbers if traced is None else None, traced, identity_text(spec),
        weights, metrics == "means", old_entropy, device_totals, device_means,
    )  # fmt: skip


def torch_loss(
    logp: Tensor, entropy: Tensor | None, inputs: LossInputs
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its metrics, differentiable in logp and entropy."""
    out = policy_loss_op(logp, entropy, inputs)
    names = metric_names(inputs, entropy=entropy is not None)
    return out.loss, dict(zip(names, out.metrics.unbind(), strict=True))


def token_loss(logp: Tensor, entropy: Tensor | None, inputs: LossInputs | LossRows) -> LossTensors:
    """The coefficients of all tokens, or of some rows.

    A chunk gives the coefficients of its own rows and needs no other row. The sums of chunks do not
    add up to the bits of one call, and the batch's covariance needs the mean of all: call it once
    more with all of logp and entropy at the end and take those sums; the pass costs a few us per
    thousand tokens.
    """
    _, found = _evaluated(logp, entropy, inputs)
    return _tensors(found, logp.device)


def metric_names(inputs: LossInputs, *, entropy: bool = True) -> tuple[str, ...]:
    """The metrics of a call, in the order of the op's second output."""
    names: tuple[str, ...] = _constant_names(inputs.spec, _given(inputs, entropy))
    return names


def loss_and_metrics(
    sums: Tensor, inputs: LossInputs, like: Tensor, *, entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """The loss and the metrics of all tokens, from the sums of all."""
    table = metric_table(decode(inputs.spec), Given(*_given(inputs, entropy)))
    total, wide = inputs.total_tokens, like.dtype == torch.float64
    kernels = registry.token_kernels_of(sums)
    if not kernels.on_host:
        return kernels.outputs(table.sums, sums, total, wide=wide)
    loss, metrics = map(_tensor, kernels.outputs(table.sums, sums.numpy(), total, wide=wide))
    return (loss, metrics) if like.is_cpu else (loss.to(like.device), metrics.to(like.device))


def loss_and_metrics_fake(names: tuple[str, ...], like: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    return like.new_empty((), dtype=wide), like.new_empty(len(names), dtype=torch.float32)


def _given(inputs: LossInputs, entropy: bool) -> tuple[bool, bool, bool, str]:
    counted = inputs.totals is not None or inputs.device_totals is not None
    known = "batch" if inputs.has_batch else "totals" if counted else "call"
    return inputs.old_logp is not None, inputs.rollout_logp is not None, entropy, known


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant_names(spec: str, given: tuple[bool, bool, bool, str]) -> tuple[str, ...]:
    return metric_table(decode(spec), Given(*given)).names


def _evaluated(
    logp: Tensor, entropy: Tensor | None, inputs: LossInputs | LossRows
) -> tuple[TokenInputs, TokenLoss]:
    if isinstance(inputs, LossInputs):
        kernels = _kernels(logp, inputs.spec)
        own = call_inputs(logp, entropy, inputs.data(kernels), kernels)
    else:
        xp = inputs.inputs.tokens.xp
        values = (xp.array("logp", logp), None if entropy is None else xp.array("entropy", entropy))
        own = inputs.inputs.with_values(*values)
    return own, evaluate(own)


def _kernels(like: Tensor, spec: str) -> TokenKernels:
    return registry.token_kernels_of(like, custom=decode(spec).custom)


def _tensors(found: TokenLoss, device: torch.device) -> LossTensors:
    g_entropy = None if found.g_entropy is None else _tensor(found.g_entropy, device)
    return LossTensors(_tensor(found.sums), _tensor(found.g_logp, device), g_entropy)


def _tensor(x: Any, device: torch.device | None = None) -> Tensor:
    """What the kernels gave, on this device; None: where they are."""
    found: Tensor = x if isinstance(x, Tensor) else torch.from_numpy(x)
    return found if device is None or found.device == device else found.to(device)


class TokenPolicyLoss(NamedTuple):
    loss: Tensor  # 0-d
    metrics: Tensor  # [names]
    # coefficients, shaped like logp and entropy; empty where there are none
    g_logp: Tensor
    g_entropy: Tensor


def _forward(logp: Tensor, entropy: Tensor | None, loss: LossInputs) -> TokenPolicyLoss:
    detached = None if entropy is None else entropy.detach()
    inputs, found = _evaluated(logp.detach(), detached, loss)

    def given(values: Any, like: Tensor | None) -> Tensor:
        if values is None or like is None:
            return logp.new_empty(0)
        out = _tensor(values, like.device).view(like.shape)
        if out.dtype == like.dtype:
            return out
        with without_lost_threads():
            out = out.to(like.dtype)
            if like.element_size() < 4 and inputs.tokens.kernels.on_host:
                check_coefficients(inputs, out.float().cpu().numpy())
        return out

    sums = _tensor(found.sums)
    outputs = loss_and_metrics(sums, loss, logp, entropy=entropy is not None)
    return TokenPolicyLoss(*outputs, given(found.g_logp, logp), given(found.g_entropy, entropy))


def _forward_fake(logp: Tensor, entropy: Tensor | None, loss: LossInputs) -> TokenPolicyLoss:
    outputs = loss_and_metrics_fake(metric_names(loss, entropy=entropy is not None), logp)
    bonus = entropy is not None and decode(loss.spec).entropy is not None
    g_entropy = logp.new_empty(0) if entropy is None or not bonus else _contiguous(entropy)
    return TokenPolicyLoss(*outputs, _contiguous(logp), g_entropy)


def _contiguous(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


class _Saved(NamedTuple):
    g_logp: Tensor
    g_entropy: Tensor | None


def _save(given: Any, out: TokenPolicyLoss) -> _Saved:
    bonus = given.entropy is not None and decode(given.loss.spec).entropy is not None
    return _Saved(out.g_logp, out.g_entropy if bonus else None)


def _backward(saved: _Saved, upstream: Any, needs: Needs) -> dict[str, Tensor | None]:
    return {
        name: None if g is None or not needs(name) else _scaled(g, upstream.loss)
        for name, g in zip(("logp", "entropy"), saved, strict=True)
    }


def _scaled(coefficients: Tensor, grad: Tensor) -> Tensor:
    """Their product; the coefficients themselves where grad is 1, as it is after loss.backward(),
    and nobody needs them again: the pass is a fifth of forward and backward."""
    # a fake or functional tensor is traced; on a GPU asking for the number would wait for it
    known = type(grad) is Tensor and grad.device.type == "cpu" and not graph_is_kept()
    if known and grad.item() == 1.0:
        return coefficients
    with without_lost_threads() if known else nullcontext():
        return coefficients * grad


policy_loss_op = register(
    "policy_loss",
    _forward,
    _forward_fake,
    autograd=Autograd("policy_loss", ("loss",), _save, _backward, lambda saved: False),
)
