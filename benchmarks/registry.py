"""What is timed: a row per op, with its inputs, its truth, its floors, its bytes and its FLOPs."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks import calls
from benchmarks.case import Call, Expected, Op, Oracle, Results, Setting
from benchmarks.contenders import (
    CLIP_CONTROL,
    CLIP_COV,
    KL_COV,
    SPEC,
    SPEC_WITH_BONUS,
    our_head,
    our_policy,
    our_policy_apart,
    our_rows,
    our_sample,
)
from benchmarks.inputs import (
    FarInputs,
    HeadInputs,
    RowInputs,
    TokenInputs,
    all_active,
    far_inputs,
    fifth_active,
    head_inputs,
    row_inputs,
    token_inputs,
)
from benchmarks.peaked_head import peaked_fifth, peaked_head
from logitless import reference

# Per logit: compare, subtract, exp (counted as one), one sum, one multiply-add.
FORWARD_FLOPS = 6
# Per logit: subtract, exp, log p + H, two multiply-adds, scale.
BACKWARD_FLOPS = 8
TARGET_BYTES, STAT_BYTES = 8, 4


def f64(tensor: Tensor) -> npt.NDArray[np.float64]:
    return tensor.detach().double().cpu().numpy()


# ---- rows


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


def forward_bytes(s: Setting) -> dict[str, int]:
    return {
        "read logits": s.rows * s.vocab * s.itemsize,
        "read targets": s.rows * TARGET_BYTES,
        "write logp, entropy": s.rows * 2 * STAT_BYTES,
    }


def extras_bytes(s: Setting) -> dict[str, int]:
    return {**forward_bytes(s), "write extras": s.rows * (3 * STAT_BYTES + 8)}


def backward_bytes(s: Setting) -> dict[str, int]:
    return {
        "read logits again": s.rows * s.vocab * s.itemsize,
        "write dlogits": s.rows * s.vocab * s.itemsize,
        "read targets, gradients, max and sum": s.rows * (TARGET_BYTES + 4 * STAT_BYTES),
    }


def rows_op(name: str, inputs: Any = row_inputs, **parts: Any) -> Op:
    return Op(name, "rows", inputs=inputs, oracle=rows_oracle, rowwise=True, **parts)


def per_logit(flops: int) -> Any:
    return lambda s: float(flops * s.rows * s.vocab)


# ---- the head


def head_arrays(x: HeadInputs) -> tuple[Any, Any, Any]:
    return f64(x.hidden), f64(x.weight), x.targets.cpu().numpy()


def head_oracle(x: HeadInputs) -> Oracle:
    h, w, targets = head_arrays(x)
    values = reference.linear_token_stats(h, w, targets)
    up = f64(x.upstream)

    @functools.cache
    def gradient(with_entropy: bool) -> Any:
        g: dict[str, Any] = {"g_logp": up, "g_entropy": up if with_entropy else 0.0}
        return reference.linear_token_stats_backward(h, w, targets, **g)

    def expected(results: Results) -> Expected:
        dhidden, dweight, _ = gradient("entropy" in results)
        return {**values, "dhidden": dhidden, "dweight": dweight}

    return expected


def policy_oracle(x: HeadInputs) -> Oracle:
    h, w, targets = head_arrays(x)
    logp = reference.linear_token_stats(h, w, targets)["logp"]
    loss, g_logp = loss_and_slope(logp, x.tokens)
    dhidden, dweight, _ = reference.linear_token_stats_backward(h, w, targets, g_logp=g_logp)
    return lambda _: {"loss": loss, "dhidden": dhidden, "dweight": dweight}


def loss_and_slope(logp: npt.NDArray[Any], x: TokenInputs) -> tuple[Any, npt.NDArray[Any]]:
    data = (f64(x.old_logp), f64(x.advantages), x.mask.cpu().numpy())
    loss, _, slope, _ = reference.policy_loss(logp, *data, SPEC)
    return np.array(loss), slope


def bonus_oracle(x: HeadInputs) -> Oracle:
    h, w, targets = head_arrays(x)
    values = reference.linear_token_stats(h, w, targets)
    data = (f64(x.tokens.old_logp), f64(x.tokens.advantages), x.tokens.mask.cpu().numpy())
    loss, _, g_logp, g_entropy = reference.policy_loss(
        values["logp"], *data, SPEC_WITH_BONUS, entropy=values["entropy"]
    )
    dhidden, dweight, _ = reference.linear_token_stats_backward(
        h, w, targets, g_logp=g_logp, g_entropy=g_entropy
    )
    return lambda _: {"loss": np.array(loss), "dhidden": dhidden, "dweight": dweight}


def sample_oracle(x: HeadInputs) -> Oracle:
    """Any token may be drawn; its logp and the entropy are then given."""
    h, w, _ = head_arrays(x)

    def expected(results: Results) -> Expected:
        drawn = results["token"].cpu().numpy()
        return reference.linear_token_stats(h, w, drawn)

    return expected


def three_products(x: HeadInputs) -> dict[str, Call]:
    return {"three bare products": calls.products(x, (len(x.hidden), len(x.hidden)))}


SMALL_BUDGET = "64MiB"


def head_floors(x: HeadInputs) -> dict[str, Call]:
    return {**three_products(x), "four bare products": calls.products(x, (len(x.hidden),) * 2, 2)}


def head_variants(x: HeadInputs) -> dict[str, Call]:
    """A budget without room for the logits; bits that do not depend on the batch."""
    ways: dict[str, dict[str, Any]] = {
        f"logitless, {SMALL_BUDGET}": {"memory_budget": SMALL_BUDGET},
        "logitless, batch_invariant": {"batch_invariant": True},
    }
    return {
        name: calls.head_both(functools.partial(our_head, **way), x) for name, way in ways.items()
    }


def bonus_variants(x: HeadInputs) -> dict[str, Call]:
    small = functools.partial(our_policy, spec=SPEC_WITH_BONUS, memory_budget=SMALL_BUDGET)
    apart = functools.partial(our_policy_apart, spec=SPEC_WITH_BONUS)
    return {
        "logitless, apart": calls.policy_both(apart, x),
        f"logitless, {SMALL_BUDGET}": calls.policy_both(small, x),
    }


# Of the mass dropped from a row, at most so much is missing from its gradient.
TAIL_MASSES = {f"logitless, tail_mass={tail:g}": tail for tail in (1e-3, 1e-2)}


def support_variants(function: Any, call: Any, x: HeadInputs) -> dict[str, Call]:
    """Rows that lose no more than so much of their probability served from 64 entries."""
    return {
        name: call(functools.partial(function, tail_mass=tail), x)
        for name, tail in TAIL_MASSES.items()
    }


def peaked_floors(x: HeadInputs) -> dict[str, Call]:
    return {**three_products(x), **one_product(x)}


def policy_floor(x: HeadInputs) -> dict[str, Call]:
    """Rows without an advantage enter no backward product; clipped ones, not counted here, need
    none either."""
    active = int((x.tokens.advantages != 0).sum())
    return {
        "bare products, active rows": calls.products(x, (len(x.hidden), active)),
        **three_products(x),
    }


def one_product(x: HeadInputs) -> dict[str, Call]:
    return {"bare product": calls.products(x, (len(x.hidden), 0))}


def decoding(x: HeadInputs) -> dict[str, Call]:
    """Beside the product what others do for a token, with nothing to score it by."""
    return {
        **one_product(x),
        "Hugging Face greedy": calls.greedy(x),
        "softmax and multinomial": calls.multinomial(x),
    }


def sample_variants(x: HeadInputs) -> dict[str, Call]:
    return {"logitless, batch_invariant": calls.sample(our_invariant_sample, x)}


# Rows of a decoding step: as many as sequences.
DECODING_ROWS = 64
our_invariant_sample = functools.partial(our_sample, batch_invariant=True)


def decoding_step(s: Setting) -> Setting:
    return replace(s, rows=min(s.rows, DECODING_ROWS))


def head_bytes(s: Setting) -> dict[str, int]:
    hidden, weight = (n * s.width * s.itemsize for n in (s.rows, s.vocab))
    return {
        "read hidden, forward and for dweight": 2 * hidden,
        "read weight, forward and for dhidden": 2 * weight,
        "write dhidden": hidden,
        "write dweight": weight,
    }


def sample_bytes(s: Setting) -> dict[str, int]:
    hidden, weight = (n * s.width * s.itemsize for n in (s.rows, s.vocab))
    return {"read hidden": hidden, "read weight": weight}


def product_flops(products: float) -> Any:
    return lambda s: products * 2.0 * s.rows * s.width * s.vocab


# ---- losses


def loss_oracle(x: TokenInputs) -> Oracle:
    loss, slope = loss_and_slope(f64(x.logp), x)
    return lambda _: {"loss": loss, "dlogp": slope}


def kl_cov_oracle(x: TokenInputs) -> Oracle:
    data = (f64(x.old_logp), f64(x.advantages), x.mask.cpu().numpy())
    loss, _, slope, _ = reference.policy_loss(f64(x.logp), *data, KL_COV)
    return lambda _: {"loss": np.array(loss), "dlogp": slope}


def clip_cov_oracle(x: TokenInputs) -> Oracle:
    """Any tokens of the band may be drawn, so that a few slopes differ from one to the next: they
    are those where the result has 0, and must be as many as there should be."""
    data = (f64(x.old_logp), f64(x.advantages), x.mask.cpu().numpy())
    free = replace(CLIP_COV, control=None)
    logp, a = f64(x.logp), data[1]
    loss, _, slope, _ = reference.policy_loss(logp, *data, free)
    cov = (a - a.mean()) * (logp - logp.mean())
    inside = (cov > CLIP_CONTROL.low) & (cov < CLIP_CONTROL.high) & (slope != 0)
    number = min(max(int(CLIP_CONTROL.fraction * len(logp)), 1), int(inside.sum()))

    def expected(results: Results) -> Expected:
        dropped = inside & (f64(results["dlogp"]) == 0)
        if dropped.sum() != number:
            raise ValueError(f"clip cov: {dropped.sum()} tokens dropped, expected {number}")
        # the policy term of an unclipped token is its own slope
        return {
            "loss": np.array(loss - slope[dropped].sum()),
            "dlogp": np.where(dropped, 0.0, slope),
        }

    return expected


def selection_bytes(s: Setting) -> dict[str, int]:
    return {**loss_bytes(s), "read logp, advantages for the means, then for the covariances":
            4 * s.rows * STAT_BYTES}  # fmt: skip


def loss_floor(x: TokenInputs) -> dict[str, Call]:
    out = torch.empty_like(x.logp)

    def run(_: None) -> Results:
        return {"sum": torch.add(x.logp, x.old_logp, out=out).mul_(x.advantages)}

    return {"two passes": Call(run)}


def loss_bytes(s: Setting) -> dict[str, int]:
    return {
        "read logp, old_logp, advantages": 3 * s.rows * STAT_BYTES,
        "read mask": s.rows,
        "write dlogp": s.rows * STAT_BYTES,
    }


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
    Op(
        "head forward+backward", "head", families=("head",), inputs=head_inputs,
        call=calls.head_both, oracle=head_oracle, floors=head_floors, variants=head_variants,
        bytes=head_bytes, flops=product_flops(3),
    ),
    Op(
        "head policy loss", "head", families=("policy",), inputs=head_inputs,
        call=calls.policy_both, oracle=policy_oracle, floors=policy_floor,
        # Half the rows have no advantage, hence no backward.
        bytes=head_bytes, flops=product_flops(2),
    ),
    Op(
        "head policy loss, every row", "head", families=("policy with bonus",), inputs=all_active,
        call=calls.policy_both, oracle=bonus_oracle, floors=head_floors, variants=bonus_variants,
        bytes=head_bytes, flops=product_flops(3),
    ),
    Op(
        "head policy loss, a fifth of the rows", "head", families=("policy",), inputs=fifth_active,
        call=calls.policy_both, oracle=policy_oracle,
        floors=lambda x: {**three_products(x), **policy_floor(x)},
        bytes=head_bytes, flops=product_flops(1.4),
    ),
    Op(
        "head forward+backward, peaked", "head", families=("head",), inputs=peaked_head,
        call=calls.head_both, oracle=head_oracle, floors=peaked_floors,
        variants=lambda x: support_variants(our_head, calls.head_both, x),
        bytes=head_bytes, flops=product_flops(3), announced=TAIL_MASSES,
    ),
    Op(
        "head policy loss, peaked", "head", families=("policy with bonus",), inputs=peaked_head,
        call=calls.policy_both, oracle=bonus_oracle, floors=peaked_floors,
        variants=lambda x: support_variants(
            functools.partial(our_policy, spec=SPEC_WITH_BONUS), calls.policy_both, x
        ),
        bytes=head_bytes, flops=product_flops(3), announced=TAIL_MASSES,
    ),
    Op(
        "head policy loss, peaked, a fifth of the rows", "head", families=("policy",),
        inputs=peaked_fifth, call=calls.policy_both, oracle=policy_oracle, floors=peaked_floors,
        variants=lambda x: support_variants(our_policy, calls.policy_both, x),
        bytes=head_bytes, flops=product_flops(1.4), announced=TAIL_MASSES,
    ),
    Op(
        "head sample", "head", families=("sample",), inputs=head_inputs, call=calls.sample,
        oracle=sample_oracle, floors=one_product, bytes=sample_bytes, flops=product_flops(1),
        random=("token", "logp"),
    ),
    Op(
        f"head sample, {DECODING_ROWS} rows", "head", families=("sample",),
        inputs=lambda s: head_inputs(s).first(DECODING_ROWS), call=calls.sample,
        oracle=sample_oracle, floors=decoding, variants=sample_variants,
        bytes=lambda s: sample_bytes(decoding_step(s)),
        flops=lambda s: product_flops(1)(decoding_step(s)), random=("token", "logp"),
    ),
    Op(
        "policy loss", "losses", families=("loss",), inputs=token_inputs, call=calls.loss_both,
        oracle=loss_oracle, floors=loss_floor, bytes=loss_bytes,
        # A token's ratio, clip, dual clip, weight and slope; the exp counts as one.
        flops=lambda s: 15.0 * s.rows,
    ),
    Op(
        "clip cov loss", "losses", families=("clip cov",), inputs=token_inputs,
        call=calls.loss_both, oracle=clip_cov_oracle, floors=loss_floor, bytes=selection_bytes,
        flops=lambda s: 20.0 * s.rows, random=("loss", "dlogp"),
    ),
    Op(
        "kl cov loss", "losses", families=("kl cov",), inputs=token_inputs, call=calls.loss_both,
        oracle=kl_cov_oracle, floors=loss_floor, bytes=selection_bytes,
        # And its covariance, and a digit of its key.
        flops=lambda s: 20.0 * s.rows,
    ),
]  # fmt: skip
BY_NAME = {op.name: op for op in OPS}
