"""Which way a head call is computed, from shapes alone: same shapes, same plan, always."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from logitless.backends import registry
from logitless.backends.gpus import GPUS
from logitless.backends.machine import Machine, in_blocks
from logitless.inputs.checks import INT64, choice, flag, require, shown, whole
from logitless.inputs.naming import public
from logitless.inputs.options import (
    TAIL_ENTRIES,
    check_capacity,
    check_names,
    check_tail_entries,
    check_tail_mass,
)
from logitless.ops.head.planner import cost, strategies
from logitless.ops.head.planner.cost import ITEMSIZE, Problem
from logitless.ops.head.planner.sets import SetProblem

GRADIENTS = ("hidden", "weight")

_UNITS = {
    "B": 1,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}


@dataclass(frozen=True)
class Plan:
    """How one head call is tiled and what that costs. Sizes in bytes; a product is N x H x V."""

    tokens: int
    hidden: int
    vocab: int
    dtype: str  # of hidden and weight
    logits_dtype: str  # in which tiles are realised
    budget: int
    rows: int  # per tile
    fixed_rows: int  # of every product with batch_invariant; 0: those of a tile
    columns: int  # of the vocabulary per tile
    kept_columns: int  # whose logits are kept from forward to backward
    chunk_rows: int  # of the one-pass: rows whose logits are held at once; 0: it is not one-pass
    scratch_bytes: int
    kept_bytes: int  # logits held: kept ones, or those of a chunk
    accumulator_bytes: int
    kept_entries: int  # the largest of each row, with tail_mass > 0 or to draw from
    support_bytes: int  # those, and with tail_mass > 0 their gradient
    # with every row active: 3 at best, 4 where no logits are kept; with tail_mass > 0, if no row
    # could be served from its largest entries
    products: float
    expected_seconds: float  # on the machine of the plan
    operand_dtype: str  # of the operands of products, and of d(logits)
    row_quantum: int  # numbers from one row of a tile to the next are a multiple of it
    sampled_ids: int = 0  # of the sets of a sampling mask; 0: there is none
    gathered: bool = False  # whether their rows of weight are gathered, and no product is dense
    adapter_rank: int = 0
    active_capacity: int = 0  # the most rows that may be active; 0: any number

    @property
    def mode(self) -> str:
        """ "one-pass", "keep", "recompute", "mix", "support" or "sets"."""
        if self.sampled_ids:
            return "sets"
        if self.kept_entries:
            return "support"
        if self.chunk_rows:
            return "one-pass"
        return {0: "recompute", self.vocab: "keep"}.get(self.kept_columns, "mix")

    @property
    def total_bytes(self) -> int:
        return self.scratch_bytes + self.kept_bytes + self.accumulator_bytes + self.support_bytes

    @property
    def full_logits_bytes(self) -> int:
        return self.tokens * self.vocab * ITEMSIZE[self.logits_dtype]

    def __str__(self) -> str:
        again = {0: "made again", self.vocab: "kept, too"}.get(
            self.kept_columns, f"kept in {self.kept_columns} columns, made again in others"
        )
        held = {
            "one-pass": f"{self.chunk_rows} rows at a time, forward and backward at once",
            "keep": "all logits kept for the backward",
            "recompute": "logits made again in the backward",
            "support": f"the {self.kept_entries} largest entries of each row kept, logits of the"
            f" rows that need more {again}",
            "mix": f"logits of {self.kept_columns} columns kept, others made again",
            "sets": f"softmax over sets of {self.sampled_ids} ids in all, "
            + ("their rows of weight gathered" if self.gathered else "out of dense products")
            + "; extras of the whole vocabulary take a product more",
        }[self.mode]
        support = f" + entries {_mib(self.support_bytes)}" if self.support_bytes else ""
        most = f", at most {self.active_capacity} active," if self.active_capacity else ""
        lines = [
            f"{self.tokens} tokens{most} x {self.hidden} hidden x {self.vocab} vocabulary,"
            f" {self.dtype}, logits in {self.logits_dtype}",
            f"{self.mode}: {held}; {self.products:.2f} products on tiles of {self.rows} rows x"
            f" {self.columns} columns",
            f"scratch {_mib(self.scratch_bytes)} + logits {_mib(self.kept_bytes)} + accumulators"
            f" {_mib(self.accumulator_bytes)}{support} = {_mib(self.total_bytes)} of"
            f" {_mib(self.budget)}",
            f"full logits would take {_mib(self.full_logits_bytes)}, and as much again for"
            " their gradient",
        ]
        return "\n".join(lines)


def _mib(n: int) -> str:
    return f"{n / 2**20:.1f} MiB"


def parse_bytes(size: int | str) -> int:
    """1024, "1024" or "256MiB" -> bytes."""
    if not isinstance(size, str):
        return whole("memory_budget", size)
    match = re.fullmatch(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([A-Za-z]*)\s*", size)
    unit = (match[2] or "B").upper() if match else ""
    if match is None or unit not in _UNITS:
        raise ValueError(f'memory_budget must be bytes or like "256MiB", got {shown(size)}')
    bytes_ = int(float(match[1]) * _UNITS[unit])
    if bytes_ >= INT64:
        raise ValueError(f"memory_budget must be below 2^63 bytes, got {shown(size)}")
    return bytes_


@public
def plan(
    tokens: int,
    hidden: int,
    vocab: int,
    dtype: Any = "float32",
    budget: int | str | None = None,
    *,
    logits_dtype: Any = None,
    gradients: tuple[str, ...] = GRADIENTS,
    backward: bool = True,
    one_pass: bool = True,
    split: bool = True,
    batch_invariant: bool = False,
    tail_mass: float = 0.0,
    tail_entries: int = TAIL_ENTRIES,
    expected_served: float = 0.0,
    active_capacity: int | None = None,
    kept_entries: int = 0,
    sampled_ids: int = 0,
    adapter_rank: int = 0,
    device: Any = "cpu",
) -> Plan:
    """How `linear_policy_loss` computes these shapes under this memory budget, and what it costs.

    `dtype` and `logits_dtype` are torch dtypes or their names; `budget` as `memory_budget` there:
    None is what holding all logits takes, and at most 512 MiB, or by GPU 1 to 4 GiB. Counted:
    scratch, kept tiles, float32 accumulators; not inputs, outputs or .grad. `gradients`: those of
    "hidden" and "weight" that are asked for; `backward=False`: none, not even of the bias.
    `one_pass=False`: as `linear_token_stats` does it, whose upstream gradients are not known in the
    forward; `split=False`: a loss whose coefficients need all rows at once. `tail_mass`: as there;
    only whether it is 0 matters. `tail_entries`: as there; memory for so many is counted.
    `expected_served`: with `tail_mass`, the share of rows that one expects their entries to serve,
    which the logits alone decide; products and seconds count no backward of these rows.
    `active_capacity`: as there; a device computes so many rows, a CPU those that are active.
    `kept_entries`: how many of a row's largest logits `linear_sample`
    keeps for its top_k and top_p. `sampled_ids`: how many ids a sampling mask has in all, where
    every token has a set. `adapter_rank`: the r of an adapter that is trained, of several the sum;
    without "weight" in `gradients` the weight beside it is frozen. `device`: that of the tensors,
    or "H200" and the like for a GPU that need not be here; what a GPU's plan rests on is predicted,
    not measured. The cheapest strategy that fits is taken, by the model in
    `ops/head/planner/cost.py`; time and free memory of the machine never enter it.

    Raises ValueError below the smallest budget that can work, naming it.
    """
    machine = _machine(device, dtype)
    asked: dict[str, Any] = {
        "logits_dtype": logits_dtype, "gradients": gradients, "backward": backward,
        "one_pass": one_pass, "split": split, "batch_invariant": batch_invariant,
        "tail_mass": tail_mass, "tail_entries": tail_entries, "active_capacity": active_capacity,
        "kept_entries": kept_entries, "adapter_rank": adapter_rank,
    }  # fmt: skip
    sampled_ids = whole("sampled_ids", sampled_ids)
    found = plan_on(machine, tokens, hidden, vocab, dtype, None if sampled_ids else budget, **asked)
    served = require("expected_served", expected_served, lambda x: 0 <= x <= 1, "in [0, 1]")
    if served and not tail_mass:
        raise ValueError(f"expected_served must be 0 without tail_mass, got {served}")
    if served and backward:
        bare = plan_on(
            machine, tokens, hidden, vocab, dtype, budget, **{**asked, "backward": False}
        )
        found = replace(
            found,
            products=found.products - served * (found.products - bare.products),
            expected_seconds=found.expected_seconds
            - served * (found.expected_seconds - bare.expected_seconds),
        )
    if not sampled_ids:
        return found
    if tail_mass:
        raise NotImplementedError(f"plan: tail_mass with sampled_ids is not built, got {tail_mass}")
    problem = SetProblem(found.tokens, sampled_ids, found.hidden, found.vocab, found.dtype)
    products = 1 + (len(gradients) if backward else 0)
    if problem.pays_dense(machine) and not batch_invariant:
        found = plan_on(
            machine, tokens, hidden, vocab, dtype, budget, **{**asked, "one_pass": False}
        )
        return replace(
            found, kept_columns=0, kept_bytes=0, products=float(products), sampled_ids=sampled_ids
        )
    limit = None if budget is None else parse_bytes(budget)
    least = problem.check(limit, backward)
    return replace(
        found, budget=limit or least, rows=found.tokens, columns=0, kept_columns=0, chunk_rows=0,
        scratch_bytes=least, kept_bytes=0, accumulator_bytes=0, products=0.0,
        expected_seconds=problem.seconds(products, machine), sampled_ids=sampled_ids, gathered=True,
    )  # fmt: skip


def plan_on(
    machine: Machine,
    tokens: int,
    hidden: int,
    vocab: int,
    dtype: Any,
    budget: int | str | None,
    *,
    logits_dtype: Any = None,
    gradients: tuple[str, ...] = GRADIENTS,
    backward: bool = True,
    one_pass: bool = True,
    split: bool = True,
    batch_invariant: bool = False,
    tail_mass: float = 0.0,
    tail_entries: int = TAIL_ENTRIES,
    active_capacity: int | None = None,
    kept_entries: int = 0,
    adapter_rank: int = 0,
    heads: int = 1,
    whole_blocks: bool = False,
) -> Plan:
    """`plan` for a machine of these numbers. `heads`: how many of these sizes, at most, share the
    budget; the plan is that of one of them. `whole_blocks`: tiles are of whole blocks, for which
    `linear_sample` draws random numbers; with `batch_invariant` always, so that a draw and what
    scores it are tiled alike."""
    name = _dtype_name("dtype", dtype)
    asked = logits_dtype is not None
    realised = _dtype_name("logits_dtype", logits_dtype) if asked else machine.logits_dtype(name)
    tokens, kept_entries = whole("tokens", tokens), whole("kept_entries", kept_entries)
    hidden, vocab = whole("hidden", hidden, least=1), whole("vocab", vocab, least=1)
    gradients = check_names("gradients", gradients, GRADIENTS)
    flags = {"backward": backward, "one_pass": one_pass, "split": split}
    for label, value in {**flags, "batch_invariant": batch_invariant}.items():
        flag(label, value)
    if whole_blocks or batch_invariant:
        machine = in_blocks(machine)
    check_tail_mass(tail_mass)
    tail_entries = check_tail_entries(tail_entries)
    needed, rank = tuple(gradients) if backward else (), whole("adapter_rank", adapter_rank)
    capacity, rows = check_capacity(active_capacity, tail_mass), tokens
    if capacity and not machine.cached:
        # a CPU knows how many are active, and takes no more
        rows = min(tokens, capacity)
        if backward and name == "float16":
            raise NotImplementedError(
                "gradients of float16 with active_capacity, or in a CUDA graph, are not built on "
                "a device: the host has to know the largest coefficient, by which they are scaled"
            )
    problem = Problem(rows, hidden, vocab, name, realised, needed, backward, rank)
    fixed = machine.fixed_rows if batch_invariant else 0
    bare = strategies.bare(problem, fixed, machine)
    limit = (
        strategies.default_budget(problem, bare[0], machine)
        if budget is None
        else parse_bytes(budget) // heads
    )
    support = cost.topk_bytes(tokens, kept_entries) if kept_entries else 0
    if tail_mass:
        kept_entries = tail_entries
        support = cost.support_bytes(problem, tail_entries, machine, at_once=one_pass)
    if budget is None:
        limit += support
    at_once = one_pass and backward and rows > 0 and not tail_mass
    fitting = None if machine.strategies is None else machine.strategies(problem, at_once)
    if fitting is None:
        fitting = strategies.two_pass(problem, bare, limit - support, machine)
        # First, so that it is taken where it costs the same: it lets go of the logits at once.
        once = strategies.one_pass(problem, limit, fixed, split, machine) if at_once else []
        fitting = once + fitting
    if not fitting:
        least = support + min(cost.total_bytes(problem, strategy, machine) for strategy in bare)
        least, limit = heads * least, limit if budget is None else parse_bytes(budget)
        entries = f" ({heads * support} of them for tail_entries={tail_entries})"
        raise ValueError(
            f"memory_budget must be at least {least} bytes{entries if tail_mass else ''} for "
            f"{tokens} tokens x {hidden} hidden x {vocab} vocabulary in {realised}, got {limit}"
        )
    best = min(fitting, key=lambda strategy: cost.seconds(problem, strategy, machine))
    return Plan(
        tokens, hidden, vocab, name, realised, limit,
        best.tile_rows, best.fixed_rows, best.tile_columns, best.kept_columns,
        tokens if best.chunk_rows == rows else best.chunk_rows,
        cost.scratch_bytes(problem, best, machine), cost.kept_bytes(problem, best, machine),
        cost.accumulator_bytes(problem, best, machine), kept_entries, support,
        cost.products(problem, best) * (rows / tokens if tokens else 1),
        cost.seconds(problem, best, machine), problem.operand_dtype(machine), machine.row_quantum,
        adapter_rank=rank, active_capacity=capacity,
    )  # fmt: skip


def _machine(device: Any, dtype: Any) -> Machine:
    name = str(device)
    if name in GPUS:
        return GPUS[name]
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not index.isdecimal()):
        known = f"cpu, cuda, cuda:1 and the like, or one of {', '.join(GPUS)}"
        raise ValueError(f"device must be {known}, got {shown(device)}")
    backend = "cpu" if name == "cpu" else registry.choose("auto", name, _dtype_name("dtype", dtype))
    return registry.get(backend).machine(name)


# A plan follows from its arguments.
_cached = functools.lru_cache(maxsize=256)(plan_on)


def cached_plan(
    machine: Machine,
    tokens: int,
    hidden: int,
    vocab: int,
    dtype: Any,
    budget: int | str | None,
    **options: Any,
) -> Plan:
    """`plan_on`, made once for the same arguments."""
    limit = None if budget is None else parse_bytes(budget)
    return _cached(machine, tokens, hidden, vocab, dtype, limit, **options)


def _dtype_name(label: str, dtype: Any) -> str:
    if isinstance(dtype, type) and issubclass(dtype, np.generic):
        dtype = np.dtype(dtype)
    known = isinstance(dtype, (str, np.dtype)) or type(dtype).__module__ == "torch"
    name = str(dtype).removeprefix("torch.") if known else dtype
    choice(label, name, ITEMSIZE)
    return name
