"""Plans on GPUs, by the table alone: nothing here needs one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import logitless as ll
from logitless.backends.gpus import GPUS, UNKNOWN
from logitless.backends.machine import Machine
from logitless.ops.head.planner import cost
from logitless.ops.head.planner.cost import Problem, Strategy
from logitless.ops.head.planner.plan import plan_on

QWEN: dict[str, Any] = {"hidden": 4096, "vocab": 151936, "dtype": "bfloat16"}
H200 = GPUS["H200"]
MACHINES = [*GPUS.values(), UNKNOWN, replace(H200, mixed_products=False)]


@settings(max_examples=300, deadline=None)
@given(
    machine=st.sampled_from(MACHINES),
    tokens=st.integers(0, 200_000),
    hidden=st.integers(1, 8192),
    vocab=st.integers(1, 262144),
    dtypes=st.sampled_from([
        ("float32", None), ("bfloat16", None), ("float16", None), ("bfloat16", "float32"),
        ("float16", "float32"),
    ]),
    budget=st.none() | st.integers(1, 1 << 38),
    options=st.fixed_dictionaries({
        "gradients": st.sampled_from([("hidden", "weight"), ("hidden",), ("weight",)]),
        "backward": st.booleans(), "one_pass": st.booleans(), "batch_invariant": st.booleans(),
        "tail_mass": st.sampled_from([0.0, 1e-3]), "tail_entries": st.sampled_from([64, 1024]),
    }),
)  # fmt: skip
def test_plans(
    machine: Machine, tokens: int, hidden: int, vocab: int, dtypes: tuple[str, str | None],
    budget: int | None, options: dict[str, Any],
) -> None:  # fmt: skip
    asked = (tokens, hidden, vocab, dtypes[0])
    options["logits_dtype"] = dtypes[1]
    try:
        plan = plan_on(machine, *asked, budget, **options)
    except ValueError as error:
        needed = int(str(error).split("at least ")[1].split()[0])
        assert budget is not None
        assert budget < needed
        assert plan_on(machine, *asked, needed, **options).total_bytes <= needed
        return
    assert plan.total_bytes <= plan.budget
    assert plan == plan_on(machine, *asked, budget, **options)
    assert plan.columns == vocab or plan.columns % machine.column_quantum == 0
    assert plan.kept_columns == vocab or plan.kept_columns % plan.columns == 0
    if plan.kept_columns < vocab and not plan.chunk_rows:
        # a tile and no more, but that it has at least the quantum
        wide = plan.columns > machine.column_quantum
        item = cost.ITEMSIZE[plan.logits_dtype]
        assert not wide or plan.rows * plan.columns * item <= machine.tile_bytes
    elif not plan.fixed_rows:
        assert plan.columns == vocab
    if plan.fixed_rows:
        other = plan_on(machine, 7, *asked[1:], None, **options)
        assert (plan.fixed_rows, plan.columns) == (other.fixed_rows, other.columns)


@pytest.mark.parametrize("name", GPUS)
def test_one_tile_where_there_is_room(name: str) -> None:
    """And far fewer than a CPU's 600 where there is none."""
    plan = ll.plan(8192, **QWEN, device=name, budget="8GiB", one_pass=False)
    assert (plan.mode, plan.rows, plan.columns) == ("keep", 8192, 151936)
    # the logits, a tile in case that rows have to be gathered, and what d_hidden is added up in
    assert plan.total_bytes < plan.full_logits_bytes + GPUS[name].tile_bytes + (300 << 20)
    at_once = ll.plan(8192, **QWEN, device=name, budget="8GiB")
    assert (at_once.mode, at_once.chunk_rows, at_once.columns) == ("one-pass", 8192, 151936)
    least = ll.plan(8192, **QWEN, device=name, budget="1GiB", one_pass=False)
    assert -(-least.vocab // least.columns) <= 20


def test_tiles_fill_whole_waves() -> None:
    plan = ll.plan(8192, **QWEN, device="H200", backward=False)
    assert plan.columns == 16896
    assert (8192 // 128) * (plan.columns // 256) % 132 == 0


def test_the_default_budget() -> None:
    assert ll.plan(32768, **QWEN, device="H200").budget == 4 << 30
    assert ll.plan(32768, **QWEN, device="H100").budget == 2 << 30
    small = ll.plan(64, 64, 5000, device="H200")
    assert small.total_bytes <= small.budget < 4 << 20


def test_float32_logits_multiply_16_bit_operands() -> None:
    """In 16 bits, d(logits) included; where torch has no such products, all is in float32."""
    options = {**QWEN, "logits_dtype": "float32", "one_pass": False, "budget": "16GiB"}
    mixed = ll.plan(8192, **options, device="H200")
    assert mixed.operand_dtype == "bfloat16"
    assert mixed.kept_bytes == 4 * 8192 * 151936
    plain = plan_on(replace(H200, mixed_products=False), 8192, **options)
    assert plain.operand_dtype == "float32"
    assert plain.expected_seconds > 5 * mixed.expected_seconds


def test_rows_of_an_odd_vocabulary_are_aligned() -> None:
    plan = ll.plan(1000, 64, 50257, "bfloat16", "1GiB", device="H200", one_pass=False)
    assert plan.mode == "keep"
    assert plan.kept_bytes == 1000 * 50304 * 2


def test_costs_follow_the_formula() -> None:
    """A machine on which a launch, or a byte of traffic, takes a second, and all else nothing."""
    work = Problem(1000, 10, 1024, "bfloat16", "bfloat16", ("hidden", "weight"))
    free = replace(H200, flops={"bfloat16": 1e30}, stream=1e30, launch=0.0)
    launches = replace(free, launch=1.0)
    one, apart = Strategy(1000, 1024, 1024), Strategy(1000, 256, 0)
    assert cost.seconds(work, one, launches) == pytest.approx(3)
    assert cost.seconds(work, apart, launches) == pytest.approx(4 * 4)
    assert cost.seconds(work, Strategy(100, 1024, 0, 100), launches) == pytest.approx(3 * 10)
    traffic, logits = replace(free, stream=1.0), 2 * 1000 * 1024
    assert cost.seconds(work, one, traffic) == pytest.approx(3 * logits)
    # each of four tiles reads and writes the float32 sum of d_hidden
    sums = 8 * 10 * 1000 * 4
    assert cost.seconds(work, apart, traffic) == pytest.approx(4 * logits + sums)
    # two tiles of rows read and write that of d_weight too
    both = sums + 8 * 10 * 1024 * 2
    assert cost.seconds(work, Strategy(500, 256, 0), traffic) == pytest.approx(4 * logits + both)
    forward = replace(work, gradients=(), backward=False)
    assert cost.seconds(forward, apart, traffic) == pytest.approx(logits)


def test_a_device_that_nobody_serves_is_refused() -> None:
    for device in ("xpu", "cuda:x", "RTX", None):
        with pytest.raises(
            ValueError, match=r"plan: device must be cpu, cuda, .* or one of B200, "
        ):
            ll.plan(8, 8, 512, device=device)
    assert ll.plan(8, 8, 512, device="cpu") == ll.plan(8, 8, 512)
