"""What a strategy to compute the head costs: bytes held and seconds expected, from shapes alone.

A product is N x H x V. With f the share of the vocabulary whose logits are kept, and every row
active:

    keep, recompute and their mix    3 + (1 - f) products; the kept logits go to memory
    one-pass, in chunks of C rows    3 products; a buffer of C x V logits, used again by each chunk;
                                     with more than one chunk d_weight is a float32 sum of V x H
                                     that each chunk reads and writes

A frozen weight or hidden drops its product; rows without a gradient drop theirs as well, which no
shape can tell, so it is not in the model: it speaks for keeping a little more than the model knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from logitless.backends.machine import Machine
from logitless.backends.row_kernels.topk import ENTRY_BYTES, KEPT

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


@dataclass(frozen=True)
class Problem:
    """What is asked for: the shapes, the dtypes and the gradients of one call."""

    tokens: int
    hidden: int
    vocab: int
    dtype: str  # of hidden and weight
    logits_dtype: str  # in which tiles are realised
    gradients: tuple[str, ...]  # of "hidden", "weight": those that need products
    backward: bool = True

    @property
    def item(self) -> int:
        return ITEMSIZE[self.logits_dtype]

    @property
    def narrow(self) -> bool:
        """Whether gradients are stored in 16 bits, so that their sums need room of their own."""
        return ITEMSIZE[self.dtype] == 2

    @property
    def logits_bytes(self) -> int:
        return self.tokens * self.vocab * self.item


@dataclass(frozen=True)
class Strategy:
    """One way to compute a problem."""

    tile_rows: int
    tile_columns: int  # of the vocabulary
    kept_columns: int  # whose logits live until the backward
    chunk_rows: int = 0  # per chunk of the one-pass; 0: forward and backward apart
    fixed_rows: int = 0  # of every product for logits and d_hidden; 0: those of a tile


def chunks(problem: Problem, strategy: Strategy) -> int:
    return -(-problem.tokens // strategy.chunk_rows) if strategy.chunk_rows else 1


def padded(n: int, strategy: Strategy) -> int:
    return -(-n // strategy.fixed_rows) * strategy.fixed_rows if strategy.fixed_rows else n


def transposes(rows: int, logits_dtype: Any, fixed_rows: int, machine: Machine) -> bool:
    """Whether a forward makes tiles of so many rows as weight x hidden, and transposes them."""
    narrow = str(logits_dtype).removeprefix("torch.") == "bfloat16"
    return narrow and 1 < rows <= machine.short_rows and not fixed_rows


def scratch_bytes(problem: Problem, strategy: Strategy, machine: Machine) -> int:
    """A tile and its transpose, operands cast or gathered, products on their way into a sum."""
    held, own = padded(strategy.chunk_rows or problem.tokens, strategy), ITEMSIZE[problem.dtype]
    tile = strategy.tile_rows * strategy.tile_columns * problem.item
    operands = padded(problem.tokens, strategy) * problem.hidden * problem.item
    if problem.logits_dtype != problem.dtype:
        operands += strategy.tile_columns * problem.hidden * problem.item
    transposed = problem.item == 2 and "weight" in problem.gradients
    short = transposes(strategy.tile_rows, problem.logits_dtype, strategy.fixed_rows, machine)
    if transposed or short:
        tile *= 2
    if not problem.backward:
        return tile + operands
    operands += held * problem.hidden * (own + (problem.item if strategy.chunk_rows else 0))
    partial = (
        max(strategy.tile_rows, strategy.tile_columns) * problem.hidden * problem.item
        if problem.item == 2
        else 0
    )
    return tile + operands + partial


def kept_bytes(problem: Problem, strategy: Strategy) -> int:
    columns = problem.vocab if strategy.chunk_rows else strategy.kept_columns
    return padded(strategy.chunk_rows or problem.tokens, strategy) * columns * problem.item


def accumulator_bytes(problem: Problem, strategy: Strategy) -> int:
    """float32 sums of gradients that are stored in 16 bits."""
    if not problem.gradients or not problem.narrow:
        return 0
    held = padded(strategy.chunk_rows or problem.tokens, strategy)
    hidden = held * problem.hidden
    if strategy.chunk_rows and problem.dtype == "float16":
        # Not rounded before the gradient of the loss is known: see policy_op.py.
        hidden += problem.tokens * problem.hidden
    weight = 0
    if "weight" in problem.gradients:
        if sums_weight(problem, strategy):
            weight = problem.vocab * problem.hidden
        elif strategy.tile_rows < held or problem.logits_dtype != problem.dtype:
            weight = strategy.tile_columns * problem.hidden
    return 4 * (hidden + weight)


def sums_weight(problem: Problem, strategy: Strategy) -> bool:
    """Whether d_weight is summed over chunks of rows, or must stay wide until it is scaled."""
    return bool(strategy.chunk_rows) and (
        chunks(problem, strategy) > 1 or problem.dtype == "float16"
    )


def total_bytes(problem: Problem, strategy: Strategy, machine: Machine) -> int:
    return (
        scratch_bytes(problem, strategy, machine)
        + kept_bytes(problem, strategy)
        + accumulator_bytes(problem, strategy)
    )


def topk_bytes(tokens: int, kept: int) -> int:
    """Room for twice the entries that are kept of a row, their number and their threshold."""
    return tokens * (2 * kept * ENTRY_BYTES + 2 * 8)


def support_bytes(problem: Problem, *, at_once: bool) -> int:
    """With tail_mass > 0: the largest entries of all rows and what they drop, the sparse gradient
    and its transpose. `at_once`: the gradients are made in the forward, and of float16 not rounded
    before that of the loss is known."""
    total = topk_bytes(problem.tokens, KEPT) + problem.tokens * 2 * 8
    if not problem.backward:
        return total
    # Column and value of each entry, twice, and of each at most one row of the transpose.
    total += problem.tokens * (KEPT + 1) * (4 * 8 + 12) + 4 * problem.vocab
    if at_once and problem.dtype == "float16":
        rows = {"hidden": problem.tokens, "weight": problem.vocab}
        total += 4 * problem.hidden * sum(rows[name] for name in problem.gradients)
    return total


def products(problem: Problem, strategy: Strategy) -> float:
    again = (
        0.0
        if strategy.chunk_rows or not problem.backward
        else 1.0 - strategy.kept_columns / problem.vocab
    )
    return 1.0 + len(problem.gradients) + again


def seconds(problem: Problem, strategy: Strategy, machine: Machine) -> float:
    """Products, memory held, and traffic of what does not fit the caches."""
    rows = strategy.fixed_rows or max(
        1, min(strategy.tile_rows, strategy.chunk_rows or problem.tokens)
    )
    product = (
        2.0
        * padded(problem.tokens, strategy)
        * problem.hidden
        * problem.vocab
        / machine.flops[problem.logits_dtype]
    )
    product *= 1.0 + machine.packing_rows / rows
    held = kept_bytes(problem, strategy)
    traffic = 2.0 * (problem.logits_bytes if strategy.chunk_rows else held)
    if sums_weight(problem, strategy) and "weight" in problem.gradients:
        weight = max(4, ITEMSIZE[problem.dtype]) * problem.vocab * problem.hidden
        held += weight if problem.narrow else 0
        traffic += 2.0 * chunks(problem, strategy) * weight
    return products(problem, strategy) * product + held * machine.page + traffic / machine.stream
