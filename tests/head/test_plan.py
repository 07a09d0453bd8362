"""The planner: what fits, what is cheapest, the same for the same shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import logitless as ll
from logitless import _core, cli
from logitless.backends import registry
from logitless.backends.cpu import CpuSets
from logitless.backends.machine import CPU
from logitless.ops.head.planner import cost
from logitless.ops.head.planner.cost import Problem, Strategy
from tests.support import plans

QWEN: dict[str, Any] = {"hidden": 1024, "vocab": 151936, "dtype": "bfloat16"}


@pytest.fixture(autouse=True, scope="module")
def a_cpu_with_16_bit_products() -> Iterator[None]:
    """The numbers below are of a CPU that has them."""
    with plans.products_of_16_bits():
        yield


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.integers(0, 70000),
    hidden=st.integers(1, 8192),
    vocab=st.integers(1, 262144),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    budget=st.none() | st.integers(1, 1 << 34),
    gradients=st.sampled_from([("hidden", "weight"), ("hidden",), ("weight",)]),
    one_pass=st.booleans(),
    batch_invariant=st.booleans(),
)
def test_plans(
    tokens: int, hidden: int, vocab: int, dtype: str, budget: int | None, **options: Any
) -> None:
    try:
        plan = ll.plan(tokens, hidden, vocab, dtype, budget, **options)
    except ValueError as error:
        needed = int(str(error).split("at least ")[1].split()[0])
        assert budget is not None
        assert budget < needed
        assert ll.plan(tokens, hidden, vocab, dtype, needed, **options).total_bytes <= needed
        return
    assert plan.total_bytes <= plan.budget
    assert plan.columns == vocab or plan.columns % 2048 == 0
    assert plan.kept_columns == vocab or plan.kept_columns % plan.columns == 0
    assert 0 <= plan.products - len(options["gradients"]) - 1 <= 1
    assert options["one_pass"] or not plan.chunk_rows
    if options["batch_invariant"]:
        other = ll.plan(7, hidden, vocab, dtype, batch_invariant=True)
        assert (plan.fixed_rows, plan.columns) == (other.fixed_rows, other.columns)
        assert plan.rows % plan.fixed_rows == 0 < plan.fixed_rows
        assert plan.chunk_rows in (0, tokens) or plan.chunk_rows % plan.fixed_rows == 0
    assert plan == ll.plan(tokens, hidden, vocab, dtype, budget, **options)
    assert f"{plan.columns} columns" in str(plan)


def test_room_to_keep_is_used() -> None:
    apart = ll.plan(1024, **QWEN, one_pass=False)
    assert (apart.mode, apart.products) == ("keep", 3.0)
    # 311 MB of logits, and what a tile and the sums of d_hidden take
    assert apart.full_logits_bytes < apart.total_bytes < 1.1 * apart.full_logits_bytes
    # at the same price the one-pass, which lets go of them before the backward
    at_once = ll.plan(1024, **QWEN)
    assert (at_once.mode, at_once.products, at_once.chunk_rows) == ("one-pass", 3.0, 1024)


def test_a_small_budget_mixes() -> None:
    plan = ll.plan(1024, **QWEN, budget="64MiB")
    assert plan.mode == "mix"
    assert 3.5 < plan.products < 4.0
    assert plan.total_bytes <= 64 << 20


def test_narrow_heads_make_logits_again() -> None:
    """At width 64 a product is not worth the memory of its result."""
    assert ll.plan(1024, 64, 151936, "bfloat16", one_pass=False).mode == "recompute"
    assert ll.plan(1024, 256, 151936, "bfloat16", one_pass=False).mode == "keep"
    assert ll.plan(1024, 1024, 151936, "bfloat16", one_pass=False).mode == "keep"


def test_one_pass_needs_room_for_the_sum_of_d_weight() -> None:
    """16384 rows do not fit: chunks of them, once there is room for 4 * V * H bytes as well."""
    options = {"tokens": 16384, **QWEN}
    assert ll.plan(**options).mode == "mix"
    roomy = ll.plan(**options, budget="1.5GiB")
    assert roomy.mode == "one-pass"
    assert roomy.accumulator_bytes > 4 * QWEN["vocab"] * QWEN["hidden"]
    assert 1024 <= roomy.chunk_rows < 16384
    # a frozen head needs no such sum
    frozen = ll.plan(**options, gradients=("hidden",))
    assert frozen.mode == "one-pass"
    assert (frozen.products, frozen.chunk_rows >= 512) == (2.0, True)


def test_the_default_budget() -> None:
    assert ll.plan(16384, **QWEN).budget == 512 << 20
    assert ll.plan(64, 64, 5000).total_bytes <= ll.plan(64, 64, 5000).budget < 4 << 20


def test_costs_follow_the_formula() -> None:
    """A machine on which a product takes a second and memory nothing."""
    work = Problem(1000, 10, 50, "float32", "float32", ("hidden", "weight"))
    machine = replace(
        CPU, flops={"float32": 2.0 * 1000 * 10 * 50}, packing_rows=0, page=0.0, stream=1e30
    )
    for kept, seconds in ((0, 4.0), (25, 3.5), (50, 3.0)):
        assert cost.seconds(work, Strategy(1000, 50, kept), machine) == pytest.approx(seconds)
    assert cost.seconds(work, Strategy(1000, 50, 0, 100), machine) == pytest.approx(3.0)
    # memory held: kept logits or those of a chunk, not of all chunks
    pages = replace(CPU, flops={"float32": 1e30}, packing_rows=0, page=1.0, stream=1e30)
    assert cost.seconds(work, Strategy(1000, 50, 25), pages) == pytest.approx(1000 * 25 * 4)
    assert cost.seconds(work, Strategy(100, 50, 0, 100), pages) == pytest.approx(100 * 50 * 4)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"tokens": 1024, **QWEN}
    arguments = ["plan", *(word for k, v in sizes.items() for word in (f"--{k}", str(v)))]
    assert cli.main([*arguments, "--budget", "64MiB"]) == 0
    printed = capsys.readouterr().out
    assert "mix: logits of" in printed
    assert "of 64.0 MiB" in printed
    assert "full logits would take 296.8 MiB" in printed
    assert cli.main([*arguments, "--device", "H200"]) == 0
    assert "one-pass: 1024 rows at a time" in capsys.readouterr().out
    assert cli.main([*arguments, "--budget", "1MiB"]) == 2
    assert "memory_budget must be at least" in capsys.readouterr().err


@pytest.mark.parametrize("budget", [None, "64MiB"])
def test_rows_that_are_expected_to_be_served_cost_no_backward(budget: str | None) -> None:
    sizes, none = (1024, 1024, 151_936, "bfloat16", budget), {"tail_mass": 1e-2}
    forward, dense, half, all_of_them = (
        ll.plan(*sizes, **none, backward=False),
        *(ll.plan(*sizes, **none, expected_served=share) for share in (0.0, 0.5, 1.0)),
    )
    assert forward.products == all_of_them.products == 1.0 and dense.products >= 3.0
    assert half.products == pytest.approx((dense.products + 1) / 2)
    assert forward.expected_seconds == pytest.approx(all_of_them.expected_seconds)
    assert dense.expected_seconds > half.expected_seconds > forward.expected_seconds
    # what is computed, and in what memory, they change in nothing
    assert replace(half, products=0.0, expected_seconds=0.0) == replace(
        dense, products=0.0, expected_seconds=0.0
    )
    with pytest.raises(ValueError, match=r"expected_served must be 0 without tail_mass, got 0\.5"):
        ll.plan(*sizes, expected_served=0.5)


@pytest.mark.parametrize(
    ("tail_mass", "message"), [(1.0, r"in \[0, 1\), got 1.0"), (1e-9, "0 or >= 1e-5")]
)
def test_a_tail_mass_that_no_op_takes_is_refused(tail_mass: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ll.plan(8, 8, 512, tail_mass=tail_mass)


def test_sets_of_tokens() -> None:
    """Few ids are gathered, in no product; many make dense ones worth their cost. Sizes decide."""
    few = ll.plan(1024, 1024, 151_936, "bfloat16", sampled_ids=8 * 1024)
    assert (few.mode, few.gathered, few.products) == ("sets", True, 0.0)
    assert "8192 ids in all, their rows of weight gathered" in str(few)
    assert "extras of the whole vocabulary take a product more" in str(few)
    whole = ll.plan(1024, 1024, 151_936, "bfloat16")
    assert few.total_bytes < whole.total_bytes / 10
    assert few.expected_seconds < whole.expected_seconds / 50
    many = ll.plan(1024, 1024, 151_936, "bfloat16", sampled_ids=50_000 * 1024)
    assert (many.mode, many.gathered, many.products) == ("sets", False, 3.0)
    assert "out of dense products" in str(many)
    alike = {"sampled_ids": 50_000 * 1024, "batch_invariant": True}
    assert ll.plan(1024, 1024, 151_936, "bfloat16", **alike).gathered
    frozen = ll.plan(8, 64, 300, sampled_ids=2400, gradients=("hidden",))
    assert frozen.products in (0.0, 2.0)
    with pytest.raises(ValueError, match=r"memory_budget must be at least \d+ bytes for 8192 ids"):
        ll.plan(1024, 1024, 151_936, "bfloat16", "1MiB", sampled_ids=8192)
    with pytest.raises(NotImplementedError, match="tail_mass with sampled_ids is not built"):
        ll.plan(1024, 1024, 151_936, sampled_ids=8192, tail_mass=0.1)


@pytest.mark.parametrize("ids", [12, 4000])
def test_the_op_does_as_the_plan_of_its_sizes_says(
    ids: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Watched(CpuSets):
        def logits(self, *csr: Any, **arrays: Any) -> None:  # type: ignore[override]
            seen.append(True)
            _core.sets.logits(*csr, **arrays)

    cpu = replace(registry.get("cpu"), sets=Watched())
    monkeypatch.setitem(registry.BACKENDS, "cpu", cpu)
    h, w, t = torch.randn(4, 8), torch.randn(4000, 8), torch.arange(4)
    mask = ll.SamplingMask.from_lists([range(ids)] * 4)
    ll.linear_token_stats(h, w, t, sampling_mask=mask)
    plan = ll.plan(4, 8, 4000, sampled_ids=4 * ids, backward=False)
    assert bool(seen) == plan.gathered == (ids == 12)
