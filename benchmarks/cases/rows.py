"""Ops on given logits: inputs, truth, floors, bytes and FLOPs."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.cases import calls
from benchmarks.cases.contenders.ours import our_rows
from benchmarks.cases.inputs import FarInputs, RowInputs, far_inputs, row_inputs
from benchmarks.harness.case import Call, Case, Expected, Op, Oracle, Results
from benchmarks.harness.correctness import f64
from logitless import reference

# Per logit: compare, subtract, exp (counted as one), one sum, one multiply-add.
FORWARD_FLOPS = 6
# Per logit: subtract, exp, log p + H, two multiply-adds, scale.
BACKWARD_FLOPS = 8
TARGET_BYTES, STAT_BYTES = 8, 4


def rows_oracle(x: RowInputs) -> Oracle:
    z, targets, up = f64(x.logits), x.targets.cpu().numpy(), f64(x.upstream)
    values = reference.token_stats(z, targets)

    @functools.cache
    def gradient(with_entropy: bool) -> npt.NDArray[np.float64]:
        g_entropy = up if with_entropy else 0.0
        return reference.token_stats_backward(z, targets, g_logp=up, g_entropy=g_entropy)[0]

    def expected(results: Results) -> Expected:
        grads = {"dlogits": gradient("entropy" in results)} if "dlogits" in results else {}
        return {**values, **grads}

    return expected


def read_floor(x: RowInputs) -> dict[str, Call]:
    return {"max read": Call(lambda _: {"max": calls.amax(x.logits)})}


def copy_floor(x: RowInputs) -> dict[str, Call]:
    return {
        "copy": Call(lambda _: {"copy": x.scratch.copy_(x.logits)}),
        "copy in place": Call(lambda _: {"copy": x.scratch.mul_(1.0)}),
    }


def new_gradient_floor(x: RowInputs) -> dict[str, Call]:
    """The pages of a new tensor cost more than the bytes; memory of an earlier call has them."""
    return {
        "copy": copy_floor(x)["copy"],
        "copy into a new tensor": Call(lambda _: {"copy": x.logits.clone()}),
    }


def read_and_copy_floor(x: RowInputs) -> dict[str, Call]:
    def run(_: None) -> Results:
        return {"max": calls.amax(x.logits), "copy": x.scratch.copy_(x.logits)}

    return {"max read + copy": Call(run)}


def ordinary_floor(x: FarInputs) -> dict[str, Call]:
    """The same of other logits, which should change nothing."""
    function = functools.partial(our_rows, inplace_backward=True)
    call = calls.rows_backward_in_place(function, x.ordinary)
    return {"logitless on ordinary rows": call, **copy_floor(x)}


def forward_variants(x: RowInputs) -> dict[str, Call]:
    """16-bit logits against the same numbers in float32."""
    if x.logits.dtype == torch.float32:
        return {}
    wide = x.logits.float()
    return {"logitless on float32": Call(lambda _: our_rows(wide, x.targets))}


def forward_bytes(s: Case) -> dict[str, int]:
    return {
        "read logits": s.rows * s.vocab * s.itemsize,
        "read targets": s.rows * TARGET_BYTES,
        "write logp, entropy": s.rows * 2 * STAT_BYTES,
    }


def extras_bytes(s: Case) -> dict[str, int]:
    return {**forward_bytes(s), "write extras": s.rows * (3 * STAT_BYTES + 8)}


def backward_bytes(s: Case) -> dict[str, int]:
    return {
        "read logits again": s.rows * s.vocab * s.itemsize,
        "write dlogits": s.rows * s.vocab * s.itemsize,
        "read targets, gradients, max and sum": s.rows * (TARGET_BYTES + 4 * STAT_BYTES),
    }


def rows_op(name: str, inputs: Any = row_inputs, **parts: Any) -> Op:
    parts |= {"inputs": inputs, "oracle": rows_oracle, "shape": rows_shape}
    return Op(name, "rows", rowwise=True, **parts)


def rows_shape(s: Case) -> str:
    return f"[{s.rows}, {s.vocab}] {s.dtype}, logits {s.logits}"


def per_logit(flops: int) -> Any:
    return lambda s: float(flops * s.rows * s.vocab)


OPS = [
    rows_op(
        "forward", families=("rows",), call=calls.rows_forward, floors=read_floor,
        variants=forward_variants, bytes=forward_bytes, flops=per_logit(FORWARD_FLOPS), sizes=True,
    ),
    rows_op(
        "forward with extras", families=("rows with extras",), call=calls.rows_forward,
        floors=read_floor, bytes=extras_bytes, flops=per_logit(FORWARD_FLOPS + 5),
        variants=lambda x: {"logitless, no extras": calls.rows_forward(our_rows, x)},
    ),
    rows_op(
        "backward", families=("rows",), call=calls.rows_backward, floors=new_gradient_floor,
        bytes=backward_bytes, flops=per_logit(BACKWARD_FLOPS), sizes=True,
    ),
    rows_op(
        "backward in place", families=("rows in place", "rows"),
        call=calls.rows_backward_in_place, floors=copy_floor,
        bytes=backward_bytes, flops=per_logit(BACKWARD_FLOPS), sizes=True,
    ),
    rows_op(
        "backward in place, far below", far_inputs, families=("rows in place", "rows"),
        call=calls.rows_backward_in_place, floors=ordinary_floor,
        bytes=backward_bytes, flops=per_logit(BACKWARD_FLOPS),
    ),
    rows_op(
        "forward+backward", families=("rows",), call=calls.rows_both, floors=read_and_copy_floor,
        bytes=lambda s: {**forward_bytes(s), **backward_bytes(s)},
        flops=per_logit(FORWARD_FLOPS + BACKWARD_FLOPS),
        variants=lambda x: {
            "logitless, in place": calls.rows_both_in_place(
                functools.partial(our_rows, inplace_backward=True), x
            )
        },
    ),
]  # fmt: skip
