"""What a way to compute the head costs: bytes held and seconds expected, from shapes alone.

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

from logitless.backends.topk import ENTRY_BYTES, KEPT

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}

# Up to this many rows weight x hidden is the faster product: it packs hidden, where hidden x weight
# packs the whole weight. Of bfloat16, width 1024, over 151936 columns, on 2 threads with AMX: 64
# rows 25 ms instead of 46, and 3 to turn the tiles; 256 rows 45 instead of 76, and 11. Of float32
# both take the same.
SHORT_ROWS = 256


@dataclass(frozen=True)
class Machine:
    """Speeds that decide between products and memory. Only their ratios matter."""

    flops: dict[str, float]  # per second of a product, by dtype
    # A product packs its operands, which takes as long as this many rows more.
    packing_rows: int
    page: float  # seconds that a byte held is worth
    stream: float  # bytes per second, memory already there


# Two cores of an AMD EPYC (Zen 4, 32 MB of L3) under Linux, torch 2.13: the best of four runs of
# python -m benchmarks.machine. bfloat16 has instructions of its own there, float16 has none. Memory
# that the system has to hand out costs 0.5e-9; most calls find that of the last one (memory.py),
# and two fifths of it make the leaner way win where two take the same time: 160 x 64 x 151936
# float32 (88 ms kept, 87 recomputed), but not 1024 x 256 in bfloat16 (493 and 570 ms).
CPU = Machine(
    flops={"bfloat16": 0.93e12, "float32": 0.21e12, "float16": 0.055e12, "float64": 0.11e12},
    packing_rows=20,
    page=0.2e-9,
    stream=65e9,
)


@dataclass(frozen=True)
class Work:
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
class Way:
    """One way to do the work."""

    rows: int  # per tile
    columns: int  # of the vocabulary per tile
    kept: int  # columns whose logits live until the backward
    chunk: int = 0  # rows per chunk of the one-pass; 0: forward and backward apart
    fixed: int = 0  # rows of every product for logits and d_hidden; 0: those of a tile


def chunks(work: Work, way: Way) -> int:
    return -(-work.tokens // way.chunk) if way.chunk else 1


def padded(n: int, way: Way) -> int:
    return -(-n // way.fixed) * way.fixed if way.fixed else n


def turns(rows: int, logits_dtype: str, fixed: int) -> bool:
    """Whether a forward makes tiles of so many rows as weight x hidden, and turns them."""
    return logits_dtype == "bfloat16" and 1 < rows <= SHORT_ROWS and not fixed


def scratch_bytes(work: Work, way: Way) -> int:
    """A tile and its transpose, operands cast or gathered, products on their way into a sum."""
    held, own = padded(way.chunk or work.tokens, way), ITEMSIZE[work.dtype]
    tile = way.rows * way.columns * work.item
    operands = padded(work.tokens, way) * work.hidden * work.item
    if work.logits_dtype != work.dtype:
        operands += way.columns * work.hidden * work.item
    turned = work.item == 2 and "weight" in work.gradients
    if turned or turns(way.rows, work.logits_dtype, way.fixed):
        tile *= 2
    if not work.backward:
        return tile + operands
    operands += held * work.hidden * (own + (work.item if way.chunk else 0))
    partial = max(way.rows, way.columns) * work.hidden * work.item if work.item == 2 else 0
    return tile + operands + partial


def kept_bytes(work: Work, way: Way) -> int:
    columns = work.vocab if way.chunk else way.kept
    return padded(way.chunk or work.tokens, way) * columns * work.item


def accumulator_bytes(work: Work, way: Way) -> int:
    """float32 sums of gradients that are stored in 16 bits."""
    if not work.gradients or not work.narrow:
        return 0
    held = padded(way.chunk or work.tokens, way)
    hidden = held * work.hidden
    if way.chunk and work.dtype == "float16":
        # Not rounded before the gradient of the loss is known: see one_pass.py.
        hidden += work.tokens * work.hidden
    weight = 0
    if "weight" in work.gradients:
        if sums_weight(work, way):
            weight = work.vocab * work.hidden
        elif way.rows < held or work.logits_dtype != work.dtype:
            weight = way.columns * work.hidden
    return 4 * (hidden + weight)


def sums_weight(work: Work, way: Way) -> bool:
    """Whether d_weight is summed over chunks of rows, or must stay wide until it is scaled."""
    return bool(way.chunk) and (chunks(work, way) > 1 or work.dtype == "float16")


def total_bytes(work: Work, way: Way) -> int:
    return scratch_bytes(work, way) + kept_bytes(work, way) + accumulator_bytes(work, way)


def candidate_bytes(tokens: int, kept: int) -> int:
    """Room for twice the entries that are kept of a row, their number and their floor."""
    return tokens * (2 * kept * ENTRY_BYTES + 2 * 8)


def support_bytes(work: Work, *, at_once: bool) -> int:
    """With tail_mass > 0: the candidates of all rows and what they drop, the sparse gradient and
    its transpose. `at_once`: the gradients are made in the forward, and of float16 not rounded
    before that of the loss is known."""
    total = candidate_bytes(work.tokens, KEPT) + work.tokens * 2 * 8
    if not work.backward:
        return total
    # Column and value of each entry, twice, and of each at most one row of the transpose.
    total += work.tokens * (KEPT + 1) * (4 * 8 + 12) + 4 * work.vocab
    if at_once and work.dtype == "float16":
        rows = {"hidden": work.tokens, "weight": work.vocab}
        total += 4 * work.hidden * sum(rows[name] for name in work.gradients)
    return total


def products(work: Work, way: Way) -> float:
    again = 0.0 if way.chunk or not work.backward else 1.0 - way.kept / work.vocab
    return 1.0 + len(work.gradients) + again


def seconds(work: Work, way: Way, machine: Machine) -> float:
    """Products, memory held, and traffic of what does not fit the caches."""
    rows = way.fixed or max(1, min(way.rows, way.chunk or work.tokens))
    product = (
        2.0 * padded(work.tokens, way) * work.hidden * work.vocab / machine.flops[work.logits_dtype]
    )
    product *= 1.0 + machine.packing_rows / rows
    held = kept_bytes(work, way)
    traffic = 2.0 * (work.logits_bytes if way.chunk else held)
    if sums_weight(work, way) and "weight" in work.gradients:
        weight = max(4, ITEMSIZE[work.dtype]) * work.vocab * work.hidden
        held += weight if work.narrow else 0
        traffic += 2.0 * chunks(work, way) * weight
    return products(work, way) * product + held * machine.page + traffic / machine.stream
