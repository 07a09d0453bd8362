"""How a function of an implementation becomes a call: forward, backward, or both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases.inputs import HeadInputs, RowInputs, TokenInputs
from benchmarks.harness.case import Call, Results
from logitless.backends.gpus import machine_of

Function = Callable[..., Results]


def gradients(results: Results, upstream: Tensor, leaves: dict[str, Tensor]) -> Results:
    """The gradients of sum(upstream * (logp + entropy)), or of the loss, in the leaves.

    Who gives no entropy has only the gradient of logp to compute.
    """
    outputs = [results[name] for name in ("logp", "entropy", "loss") if name in results]
    given = [upstream.to(out.dtype) if out.dim() else None for out in outputs]
    found = torch.autograd.grad(outputs, list(leaves.values()), given)
    return {f"d{name}": grad for name, grad in zip(leaves, found, strict=True)}


def detached(results: Results) -> Results:
    return {name: value.detach() for name, value in results.items()}


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def rows_forward(function: Function, x: RowInputs) -> Call:
    return Call(lambda _: function(x.logits, x.targets))


def rows_backward(function: Function, x: RowInputs) -> Call:
    def prepare() -> tuple[Tensor, Results]:
        logits = leaf(x.logits)
        return logits, function(logits, x.targets)

    return Call(lambda state: finish(state, x), prepare)


def rows_backward_in_place(function: Function, x: RowInputs) -> Call:
    """The logits are the implementation's to overwrite, so each run gets them anew."""

    def prepare() -> tuple[Tensor, Results]:
        logits = leaf(x.scratch.copy_(x.logits))
        return logits, function(logits, x.targets)

    return Call(lambda state: finish(state, x), prepare)


def rows_both(function: Function, x: RowInputs) -> Call:
    def run(_: None) -> Results:
        logits = leaf(x.logits)
        return finish((logits, function(logits, x.targets)), x)

    return Call(run)


def rows_both_in_place(function: Function, x: RowInputs) -> Call:
    def run(logits: Tensor) -> Results:
        return finish((logits, function(logits, x.targets)), x)

    return Call(run, lambda: leaf(x.scratch.copy_(x.logits)))


def finish(state: tuple[Tensor, Results], x: RowInputs) -> Results:
    logits, results = state
    return {**detached(results), **gradients(results, x.upstream, {"logits": logits})}


def head_both(function: Function, x: HeadInputs, *extra: Any) -> Call:
    def run(_: None) -> Results:
        leaves = {"hidden": leaf(x.hidden), "weight": leaf(x.weight)}
        results = function(*leaves.values(), x.targets, *extra)
        return {**detached(results), **gradients(results, x.upstream, leaves)}

    return Call(run)


def policy_both(function: Function, x: HeadInputs) -> Call:
    return head_both(function, x, x.tokens)


def sample(function: Function, x: HeadInputs) -> Call:
    return Call(lambda _: function(x.hidden, x.weight))


def greedy(x: HeadInputs) -> Call:
    """A step of transformers' greedy decoding after the body: logits in the model's dtype, a
    float32 copy of them (`_sample` in generation/utils.py, 5.24), argmax."""

    def run(_: None) -> Results:
        scores = (x.hidden @ x.weight.t()).to(copy=True, dtype=torch.float32)
        return {"token": scores.argmax(-1)}

    return Call(run)


def multinomial(x: HeadInputs) -> Call:
    """The least that draws a token from full logits: no log-prob, no entropy."""

    def run(_: None) -> Results:
        p = (x.hidden @ x.weight.t()).float().softmax(-1)
        return {"token": torch.multinomial(p, 1)[:, 0]}

    return Call(run)


def loss_both(function: Function, x: TokenInputs) -> Call:
    def run(_: None) -> Results:
        logp = leaf(x.logp)
        results = function(logp, x)
        return {**detached(results), **gradients(results, x.logp, {"logp": logp})}

    return Call(run)


def amax(logits: Tensor) -> Tensor:
    """A plain read. Pairs of bfloat16 are read as int32: the maximum of bfloat16 itself is slower
    than the memory."""
    pairs = logits.element_size() == 2 and logits.shape[-1] % 2 == 0
    words = logits.view(torch.int32) if pairs else logits
    return words.amax(-1)


def _multiplied(like: Tensor) -> str:
    """The dtype in which this device multiplies such operands best."""
    machine = machine_of(like.device)
    return machine.logits_dtype(str(like.dtype).removeprefix("torch."))


def products(x: HeadInputs, rows: Sequence[int], forwards: int = 1) -> Call:
    """The bare matrix products: hidden x weight for rows[0] rows, `forwards` times; dlogits x
    weight and dlogits x hidden for rows[1]. Only the logits' buffer is there before; and float32
    copies, where the machine's products of these dtypes are slower than of those."""
    dtype = getattr(torch, _multiplied(x.hidden))
    h, w = x.hidden.to(dtype), x.weight.to(dtype)
    logits = torch.empty(len(h), len(w), dtype=h.dtype, device=h.device)

    def run(_: None) -> Results:
        for _again in range(forwards):
            torch.mm(h[: rows[0]], w.t(), out=logits[: rows[0]])
        if not rows[1]:
            return {}
        grad = logits[: rows[1]]
        return {"dhidden": grad @ w, "dweight": grad.t() @ h[: rows[1]]}

    return Call(run)
