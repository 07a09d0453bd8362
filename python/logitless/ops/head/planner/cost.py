"""What a strategy to compute the head costs: bytes held and seconds expected, from shapes alone.

A product is N x H x V. With f the share of the vocabulary whose logits are kept, and every row
active:

    keep, recompute and their mix    3 + (1 - f) products; the kept logits go to memory
    one-pass, in chunks of C rows    3 products; a buffer of C x V logits, used again by each chunk;
                                     with more than one chunk d_weight is a float32 sum of V x H
                                     that each chunk reads and writes

Where tiles do not stay in caches (`Machine.cached`), a pass of the row kernels over logits costs
their bytes: one forward, two backward, one more of what is made again; and so does each product
that is added to a sum in memory. Logits that are all kept are one tile there, whose products need
no sums.

A frozen weight or hidden drops its product; rows without a gradient drop theirs as well, which no
shape can tell, so it is not in the model: it speaks for keeping a little more than the model knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from logitless.backends.machine import Machine
from logitless.backends.row_kernels.topk import CHAIN, ENTRY_BYTES

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
    rank: int = 0  # of an adapter

    @property
    def width(self) -> int:
        """Of hidden and weight as products take them, with the columns of an adapter."""
        return self.hidden + self.rank

    @property
    def item(self) -> int:
        return ITEMSIZE[self.logits_dtype]

    @property
    def narrow(self) -> bool:
        """Whether gradients are stored in 16 bits, so that their sums need room of their own."""
        return ITEMSIZE[self.dtype] == 2

    def rounds_once(self, machine: Machine) -> bool:
        """Whether a product may be a gradient as it is: of operands in the dtype of gradients, and
        not of d(logits) that were scaled to be stored in float16."""
        operands = self.operand_dtype(machine)
        scaled = operands == "float16" and self.logits_dtype != operands
        return operands == self.dtype and not scaled

    @property
    def logits_bytes(self) -> int:
        return self.tokens * self.vocab * self.item

    def operand_dtype(self, machine: Machine) -> str:
        """Of the operands of products, and of d(logits)."""
        return self.dtype if self.narrow and machine.mixed_products else self.logits_dtype


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


def tile_columns(
    vocab: int, rows: int, item: int, machine: Machine, most: int | None = None
) -> int:
    """As many columns as a tile of so many rows has bytes for, and no more than `most`."""
    quantum = machine.column_quantum
    fitting = machine.tile_bytes // (max(rows, 1) * item)
    fitting = fitting if most is None else min(fitting, most)
    return min(max(fitting // quantum * quantum, quantum), vocab)


def row_columns(columns: int, machine: Machine) -> int:
    """From one row of a tile to the next."""
    return -(-columns // machine.row_quantum) * machine.row_quantum


def one_tile(problem: Problem, strategy: Strategy, machine: Machine) -> bool:
    """Whether all columns are kept, of all rows or of those of a chunk, as one tile."""
    whole = strategy.chunk_rows or strategy.kept_columns == problem.vocab
    return not machine.cached and bool(whole) and strategy.tile_columns == problem.vocab


def scratch_bytes(problem: Problem, strategy: Strategy, machine: Machine) -> int:
    """A tile and its transpose, operands cast or gathered, products on their way into a sum."""
    held, own = padded(strategy.chunk_rows or problem.tokens, strategy), ITEMSIZE[problem.dtype]
    of_operands, columns = problem.operand_dtype(machine), strategy.tile_columns
    item = ITEMSIZE[of_operands]
    if one_tile(problem, strategy, machine):
        # where it lies, or gathered from there
        columns = tile_columns(problem.vocab, strategy.tile_rows, problem.item, machine)
    tile = strategy.tile_rows * row_columns(columns, machine) * problem.item
    operands = padded(problem.tokens, strategy) * problem.width * item
    if of_operands != problem.dtype or problem.rank:
        operands += strategy.tile_columns * problem.width * item
    if problem.rank:
        operands += problem.tokens * problem.width * own
    transposed = machine.transposed_tiles and problem.item == 2 and "weight" in problem.gradients
    short = transposes(strategy.tile_rows, problem.logits_dtype, strategy.fixed_rows, machine)
    if transposed or short:
        tile *= 2
    if not problem.backward:
        return tile + operands
    if of_operands != problem.logits_dtype:
        # d(logits) in the dtype of operands: of a tile that is all there is, all of it
        tile += strategy.tile_rows * row_columns(strategy.tile_columns, machine) * item
    operands += held * problem.width * (own + (item if strategy.chunk_rows else 0))
    partial = (
        max(strategy.tile_rows, strategy.tile_columns) * problem.width * problem.item
        if problem.item == 2 and not machine.mixed_products
        else 0
    )
    return tile + operands + partial


def kept_bytes(problem: Problem, strategy: Strategy, machine: Machine) -> int:
    columns = problem.vocab if strategy.chunk_rows else strategy.kept_columns
    rows = padded(strategy.chunk_rows or problem.tokens, strategy)
    return rows * row_columns(columns, machine) * problem.item


def accumulator_bytes(problem: Problem, strategy: Strategy, machine: Machine) -> int:
    """float32 sums of gradients that are stored in 16 bits."""
    if not problem.gradients or not problem.narrow:
        return 0
    held = padded(strategy.chunk_rows or problem.tokens, strategy)
    hidden = held * problem.width
    if strategy.chunk_rows and problem.dtype == "float16":
        # Not rounded before the gradient of the loss is known: see policy_op.py.
        hidden += problem.tokens * problem.width
    # B's is wide throughout
    weight = problem.vocab * problem.rank
    if "weight" in problem.gradients:
        if sums_weight(problem, strategy):
            weight += problem.vocab * problem.hidden
        elif strategy.tile_rows < held or not problem.rounds_once(machine):
            weight += strategy.tile_columns * problem.hidden
    return 4 * (hidden + weight)


def sums_weight(problem: Problem, strategy: Strategy) -> bool:
    """Whether d_weight is summed over chunks of rows, or must stay wide until it is scaled."""
    return bool(strategy.chunk_rows) and (
        chunks(problem, strategy) > 1 or problem.dtype == "float16"
    )


def total_bytes(problem: Problem, strategy: Strategy, machine: Machine) -> int:
    return (
        scratch_bytes(problem, strategy, machine)
        + kept_bytes(problem, strategy, machine)
        + accumulator_bytes(problem, strategy, machine)
    )


def topk_bytes(tokens: int, kept: int) -> int:
    """Room for twice the entries that are kept of a row, their number and their threshold."""
    return tokens * (2 * kept * ENTRY_BYTES + 2 * 8)


def support_bytes(problem: Problem, entries: int, machine: Machine, *, at_once: bool) -> int:
    """With tail_mass > 0: so many of the largest entries of all rows and what they drop, the
    sparse gradient and its transpose. `at_once`: the gradients are made in the forward, and of
    float16 not rounded before that of the loss is known."""
    total = topk_bytes(problem.tokens, entries) + problem.tokens * 2 * 8
    if not problem.backward:
        return total
    # Column and value of each entry, twice, and of each at most one row of the transpose. A device
    # sorts in as much, counts the entries of every column, and adds long columns up by chains.
    most = problem.tokens * (entries + 1)
    total += most * (4 * 8 + 12) + 4 * problem.vocab
    if not machine.cached:
        total += 4 * 8 * problem.vocab + 4 * problem.width * (2 * most // CHAIN)
    if at_once and problem.dtype == "float16":
        rows = {"hidden": problem.tokens, "weight": problem.vocab}
        total += 4 * problem.hidden * sum(rows[name] for name in problem.gradients)
    return total


def made_again(problem: Problem, strategy: Strategy) -> float:
    """The share of the logits that the backward makes."""
    if strategy.chunk_rows or not problem.backward:
        return 0.0
    return 1.0 - strategy.kept_columns / problem.vocab


def products(problem: Problem, strategy: Strategy) -> float:
    again = made_again(problem, strategy)
    # An adapter's columns are in those of logits and of d_hidden, and B has a gradient.
    of_adapter = 1.0 + again + ("hidden" in problem.gradients) + problem.backward
    of_adapter *= problem.rank / problem.hidden
    return 1.0 + len(problem.gradients) + again + of_adapter


def sum_bytes(problem: Problem, strategy: Strategy) -> int:
    """Read and written by products that are added to a float32 sum: d_hidden's of each tile of
    columns, d_weight's of each tile of rows. Chunks of rows, which may add to one d_weight, are not
    counted here."""
    held = strategy.chunk_rows or problem.tokens
    columns = -(-problem.vocab // strategy.tile_columns)
    rows = -(-held // strategy.tile_rows)
    sums = {"hidden": problem.tokens * columns, "weight": problem.vocab * rows}
    several = {"hidden": columns > 1, "weight": rows > 1}
    return 8 * problem.width * sum(sums[name] for name in problem.gradients if several[name])


def uncached_bytes(problem: Problem, strategy: Strategy, machine: Machine) -> float:
    """Read and written by row kernels, and by sums, where no tile stays in caches."""
    passes = 1.0 + (2.0 + made_again(problem, strategy) if problem.backward else 0.0)
    if problem.backward and problem.operand_dtype(machine) != problem.logits_dtype:
        # d(logits) copied to the dtype of operands
        passes += 1.5
    return passes * problem.logits_bytes + sum_bytes(problem, strategy)


def tiles(problem: Problem, strategy: Strategy) -> int:
    rows = -(-(strategy.chunk_rows or problem.tokens) // strategy.tile_rows)
    columns = -(-problem.vocab // strategy.tile_columns)
    return chunks(problem, strategy) * rows * columns


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
        / machine.flops[problem.operand_dtype(machine)]
    )
    product *= 1.0 + machine.packing_rows / rows
    product += machine.launch * tiles(problem, strategy)
    held = kept_bytes(problem, strategy, machine)
    if machine.cached:
        traffic = 2.0 * (problem.logits_bytes if strategy.chunk_rows else held)
    else:
        traffic = uncached_bytes(problem, strategy, machine)
    if sums_weight(problem, strategy) and "weight" in problem.gradients:
        weight = max(4, ITEMSIZE[problem.dtype]) * problem.vocab * problem.hidden
        held += weight if problem.narrow else 0
        traffic += 2.0 * chunks(problem, strategy) * weight
    return products(problem, strategy) * product + held * machine.page + traffic / machine.stream
