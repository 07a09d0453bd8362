"""Calls so small that their time is the host's: 8 tokens, H = 32, V = 256; losses of 256 tokens.

The floor is the fewest calls of torch that could do the work: one that reads the logits, the bare
product, two passes over the tokens. Nothing that checks its input and can be differentiated is
near it; it says what a call of torch costs on this machine now.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import calls, head, losses, rows
from benchmarks.cases.contenders.ours import (
    our_batch_stats,
    our_head,
    our_loss,
    our_rows,
    our_weights,
)
from benchmarks.cases.inputs import (
    HeadInputs,
    RowInputs,
    TokenInputs,
    head_inputs,
    row_inputs,
    token_inputs,
)
from benchmarks.cases.specs import STATS_SPEC, WEIGHTS
from benchmarks.harness.case import Call, Case, Expected, Op, Oracle, Results
from benchmarks.harness.correctness import f64
from logitless import reference

Function = Callable[..., Any]
TOKENS = 256


def few_tokens(s: Case) -> TokenInputs:
    return token_inputs(replace(s, rows=TOKENS))


def as_tensors(found: dict[str, Any]) -> Results:
    return {name: torch.as_tensor(value).detach() for name, value in found.items()}


def numpy(tensor: Tensor) -> Any:
    return tensor.detach().numpy()


def as_numpy(x: TokenInputs) -> TokenInputs:
    return TokenInputs(*map(numpy, (x.logp, x.old_logp, x.advantages, x.mask)))


# ---- calls


def rows_call(function: Function, x: RowInputs) -> Call:
    return Call(lambda _: function(x.logits, x.targets), results=as_tensors)


def rows_variants(x: RowInputs) -> dict[str, Call]:
    wanted = Call(
        lambda logits: our_rows(logits, x.targets), lambda: calls.leaf(x.logits), as_tensors
    )
    found = {"logitless, with gradients": wanted}
    if not x.logits.is_cuda:
        given = (numpy(x.logits), numpy(x.targets))
        found["logitless, NumPy"] = Call(lambda _: our_rows(*given), results=as_tensors)
    return found


def head_call(function: Function, x: HeadInputs) -> Call:
    return Call(lambda _: function(x.hidden, x.weight, x.targets), results=as_tensors)


def leaves(x: HeadInputs) -> tuple[Tensor, Tensor]:
    return calls.leaf(x.hidden), calls.leaf(x.weight)


def head_variants(x: HeadInputs) -> dict[str, Call]:
    def run(given: tuple[Tensor, Tensor]) -> Results:
        return our_head(*given, x.targets)

    found = {"logitless, with gradients": Call(run, lambda: leaves(x), as_tensors)}
    if not x.hidden.is_cuda:
        given = (numpy(x.hidden), numpy(x.weight), numpy(x.targets))
        found["logitless, NumPy"] = Call(lambda _: our_head(*given), results=as_tensors)
    return found


def policy_forward(function: Function, x: HeadInputs) -> Call:
    """Gradients are wanted, and not asked for."""
    return Call(lambda given: function(*given, x.targets, x.tokens), lambda: leaves(x), as_tensors)


def policy_backward(function: Function, x: HeadInputs) -> Call:
    def prepare() -> tuple[tuple[Tensor, Tensor], Tensor]:
        given = leaves(x)
        return given, function(*given, x.targets, x.tokens)["loss"]

    def results(found: tuple[Tensor, Tensor]) -> Results:
        return dict(zip(("dhidden", "dweight"), found, strict=True))

    return Call(lambda state: torch.autograd.grad(state[1], state[0]), prepare, results)


def loss_call(function: Function, x: TokenInputs) -> Call:
    return Call(lambda logp: function(logp, x), lambda: calls.leaf(x.logp), as_tensors)


def loss_variants(x: TokenInputs) -> dict[str, Call]:
    found = {"logitless, no gradients": Call(lambda _: our_loss(x.logp, x), results=as_tensors)}
    if not x.logp.is_cuda:
        given = as_numpy(x)
        found["logitless, NumPy"] = Call(lambda _: our_loss(given.logp, given), results=as_tensors)
    return found


def tokens_call(function: Function, x: TokenInputs) -> Call:
    return Call(lambda _: function(x), results=as_tensors)


def numpy_tokens(function: Function, x: TokenInputs) -> dict[str, Call]:
    if x.logp.is_cuda:
        return {}
    given = as_numpy(x)
    return {"logitless, NumPy": Call(lambda _: function(given), results=as_tensors)}


def sample_call(function: Function, x: HeadInputs) -> Call:
    return Call(lambda _: function(x.hidden, x.weight), results=as_tensors)


# ---- truth


def stats_oracle(x: TokenInputs) -> Oracle:
    logp, advantages, mask = f64(x.logp), f64(x.advantages), x.mask.cpu().numpy()
    expected: Expected = {
        "mean_advantage": advantages.mean(),
        "mean_logp": logp.mean(),
        "selected": np.array(reference.select(logp, advantages, mask, STATS_SPEC)),
    }
    return lambda _: expected


def weights_oracle(x: TokenInputs) -> Oracle:
    weights = np.exp(f64(x.old_logp) - f64(x.logp)).clip(max=WEIGHTS.high)
    return lambda _: {"weights": weights}


# ---- ops


def tiny(name: str, **parts: Any) -> Op:
    return Op(f"tiny {name}", "overhead", tiny=True, **parts)


def of_head(name: str, family: str, **parts: Any) -> Op:
    parts = {"floors": head.one_product, "flops": head.product_flops(1), **parts}
    parts |= {"inputs": head_inputs, "shape": head.head_shape, "bytes": head.sample_bytes}
    return tiny(name, families=(family,), **parts)


def of_tokens(name: str, family: str, **parts: Any) -> Op:
    parts |= {"inputs": few_tokens, "floors": losses.loss_floor, "shape": lambda _: f"N={TOKENS}"}
    parts["bytes"] = lambda s: losses.loss_bytes(replace(s, rows=TOKENS))
    return tiny(name, families=(family,), flops=lambda _: 15.0 * TOKENS, **parts)


OPS = [
    tiny(
        "token_stats", families=("rows",), inputs=row_inputs, call=rows_call,
        oracle=rows.rows_oracle, rowwise=True, floors=rows.read_floor, variants=rows_variants,
        bytes=rows.forward_bytes, flops=rows.per_logit(rows.FORWARD_FLOPS), shape=rows.rows_shape,
    ),
    of_head(
        "linear_token_stats", "head", call=head_call, oracle=head.head_oracle,
        variants=head_variants,
    ),
    of_head(
        "linear_policy_loss", "policy", call=policy_forward, oracle=head.policy_oracle,
    ),
    of_head(
        "linear_policy_loss backward", "policy", call=policy_backward,
        oracle=head.policy_oracle, floors=head.three_products, flops=head.product_flops(2),
    ),
    of_tokens(
        "policy_loss", "loss", call=loss_call, oracle=losses.loss_oracle,
        variants=loss_variants,
    ),
    of_tokens(
        "batch_stats", "batch stats", call=tokens_call, oracle=stats_oracle,
        variants=lambda x: numpy_tokens(our_batch_stats, x),
    ),
    of_tokens(
        "rollout_weights", "rollout weights", call=tokens_call, oracle=weights_oracle,
        variants=lambda x: numpy_tokens(our_weights, x),
    ),
    of_head(
        "linear_sample", "sample", call=sample_call, oracle=head.sample_oracle,
        random=("token", "logp"),
    ),
]  # fmt: skip
