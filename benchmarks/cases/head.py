"""Ops of hidden x weight: inputs, truth, floors, bytes and FLOPs."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.cases import calls
from benchmarks.cases.adapted_head import (
    RANK,
    adapted_bytes,
    adapted_flops,
    adapted_head,
    adapted_oracle,
    adapted_variants,
    merged,
)
from benchmarks.cases.contenders.ours import our_head, our_policy, our_policy_apart, our_sample
from benchmarks.cases.inputs import HeadInputs, all_active, fifth_active, head_inputs
from benchmarks.cases.losses import loss_and_slope
from benchmarks.cases.masked_head import (
    FEW,
    MANY,
    masked_both,
    masked_bytes,
    masked_floors,
    masked_flops,
    masked_head,
    masked_oracle,
    masked_variants,
)
from benchmarks.cases.peaked_head import peaked_fifth, peaked_head
from benchmarks.cases.specs import SPEC_WITH_BONUS
from benchmarks.cases.two_heads import (
    KINDS,
    divergence_both,
    divergence_bytes,
    divergence_floors,
    divergence_oracle,
    divergence_variants,
    two_heads,
)
from benchmarks.harness.case import Call, Case, Expected, Op, Oracle, Results
from benchmarks.harness.correctness import f64
from logitless import reference


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


def decoding_step(s: Case) -> Case:
    return replace(s, rows=min(s.rows, DECODING_ROWS))


def head_bytes(s: Case) -> dict[str, int]:
    hidden, weight = (n * s.width * s.itemsize for n in (s.rows, s.vocab))
    return {
        "read hidden, forward and for dweight": 2 * hidden,
        "read weight, forward and for dhidden": 2 * weight,
        "write dhidden": hidden,
        "write dweight": weight,
    }


def sample_bytes(s: Case) -> dict[str, int]:
    hidden, weight = (n * s.width * s.itemsize for n in (s.rows, s.vocab))
    return {"read hidden": hidden, "read weight": weight}


def product_flops(products: float) -> Any:
    return lambda s: products * 2.0 * s.rows * s.width * s.vocab


def head_op(name: str, **parts: Any) -> Op:
    return Op(name, "head", bound_by="flops", shape=head_shape, **parts)


def head_shape(s: Case) -> str:
    return f"N={s.rows} H={s.width} V={s.vocab} {s.dtype}, logits {s.logits}"


def masked_op(size: int) -> Op:
    return head_op(
        f"head forward+backward, sets of {size}", families=("masked head",),
        inputs=functools.partial(masked_head, size=size), call=masked_both, oracle=masked_oracle,
        floors=masked_floors, variants=masked_variants,
        bytes=functools.partial(masked_bytes, size), flops=functools.partial(masked_flops, size),
    )  # fmt: skip


def divergence_op(kind: str) -> Op:
    return head_op(
        f"two heads forward+backward, {kind}", families=("divergence",), inputs=two_heads,
        call=functools.partial(divergence_both, kind),
        oracle=functools.partial(divergence_oracle, kind), floors=divergence_floors,
        variants=functools.partial(divergence_variants, kind), bytes=divergence_bytes,
        flops=product_flops(4),
    )  # fmt: skip


OPS = [
    head_op(
        "head forward+backward", families=("head",), inputs=head_inputs,
        call=calls.head_both, oracle=head_oracle, floors=head_floors, variants=head_variants,
        bytes=head_bytes, flops=product_flops(3),
    ),
    head_op(
        "head policy loss", families=("policy",), inputs=head_inputs,
        call=calls.policy_both, oracle=policy_oracle, floors=policy_floor,
        # Half the rows have no advantage, hence no backward.
        bytes=head_bytes, flops=product_flops(2),
    ),
    head_op(
        "head policy loss, every row", families=("policy with bonus",), inputs=all_active,
        call=calls.policy_both, oracle=bonus_oracle, floors=head_floors, variants=bonus_variants,
        bytes=head_bytes, flops=product_flops(3),
    ),
    head_op(
        "head policy loss, a fifth of the rows", families=("policy",), inputs=fifth_active,
        call=calls.policy_both, oracle=policy_oracle,
        floors=lambda x: {**three_products(x), **policy_floor(x)},
        bytes=head_bytes, flops=product_flops(1.4),
    ),
    head_op(
        "head forward+backward, peaked", families=("head",), inputs=peaked_head,
        call=calls.head_both, oracle=head_oracle, floors=peaked_floors,
        variants=lambda x: support_variants(our_head, calls.head_both, x),
        bytes=head_bytes, flops=product_flops(3), announced=TAIL_MASSES,
    ),
    head_op(
        "head policy loss, peaked", families=("policy with bonus",), inputs=peaked_head,
        call=calls.policy_both, oracle=bonus_oracle, floors=peaked_floors,
        variants=lambda x: support_variants(
            functools.partial(our_policy, spec=SPEC_WITH_BONUS), calls.policy_both, x
        ),
        bytes=head_bytes, flops=product_flops(3), announced=TAIL_MASSES,
    ),
    head_op(
        "head policy loss, peaked, a fifth of the rows", families=("policy",),
        inputs=peaked_fifth, call=calls.policy_both, oracle=policy_oracle, floors=peaked_floors,
        variants=lambda x: support_variants(our_policy, calls.policy_both, x),
        bytes=head_bytes, flops=product_flops(1.4), announced=TAIL_MASSES,
    ),
    head_op(
        f"head forward+backward, frozen, adapter of rank {RANK}", families=("head",),
        inputs=adapted_head, call=merged, oracle=adapted_oracle,
        floors=lambda x: {"two bare products": calls.products(x, (len(x.hidden), 0), 2),
                          **three_products(x)},
        variants=adapted_variants, bytes=adapted_bytes, flops=adapted_flops,
    ),
    masked_op(FEW),
    masked_op(MANY),
    *map(divergence_op, KINDS),
    head_op(
        "head sample", families=("sample",), inputs=head_inputs, call=calls.sample,
        oracle=sample_oracle, floors=one_product, bytes=sample_bytes, flops=product_flops(1),
        random=("token", "logp"),
    ),
    head_op(
        f"head sample, {DECODING_ROWS} rows", families=("sample",),
        inputs=lambda s: head_inputs(s).first(DECODING_ROWS), call=calls.sample,
        oracle=sample_oracle, floors=decoding, variants=sample_variants,
        bytes=lambda s: sample_bytes(decoding_step(s)),
        flops=lambda s: product_flops(1)(decoding_step(s)), random=("token", "logp"),
    ),
]  # fmt: skip
