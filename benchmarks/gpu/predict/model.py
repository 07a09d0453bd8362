"""What the model knows: machines, and times of products and of passes over the logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

GB, TB, MIB = 1e9, 1e12, 1 << 20
ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}
# Of a product's rate, inside a call: the last tile of each dimension is not whole. And where the
# product writes float32 logits of 16-bit operands.
TAILS, WIDE_TAILS = 0.985, 0.965
# Seconds of a product and its row kernel, launch and ramp; of a backward tile with its products.
PAIR, BACKWARD_TILE = 8e-6, 20e-6
# A fused forward's part of the vendor's rate, by width: the epilogue is not hidden.
FUSED = ((4096, 0.73), (2048, 0.68), (0, 0.60))
# Rows of a vendor's tile, columns of it; of what a tile of ours is made.
TILE_ROWS, TILE_COLUMNS, QUANTUM = 128, 256, 256
# Rows for which a tile's bytes make its columns.
USUAL_ROWS = 8192
# Few rows fill the last wave badly; dense rows of a sparse backward worse.
FEW_ROWS_RATE, DENSE_ROWS_RATE = 0.88, 0.8
ACTIVE, DENSE = 0.2, 0.08
# Seconds to find and gather the active rows.
COMPACTING = 0.11e-3
# Largest entries a row keeps on average, and seconds to sort them by token.
ENTRIES, SORTING = 32, 0.15e-3
BUDGET = 1 << 30
# Ids of a row's set, and the launches of a call that gathers rows for them.
SET_IDS, SET_LAUNCHES = 8, 40
# Passes over the logits of a draw: they are scored, and the blocks of the vocabulary summed; more
# of whole rows, which are put together first. Passes of the one processor that sorts the top of a
# row, and in the same unit the sorting.
DRAW_PASSES, WHOLE_PASSES, SLAB_PASSES = 2, 5, 6
# Ids that top_p = 0.9 keeps of logits with a standard deviation of 3, and how many are sorted at
# once.
FLAT_IDS, SLAB_IDS = 6500, 768
# Of a batch's statistics, with KL-Cov, and of its covariance: bytes a token that the calls read and
# write, their launches of a million tokens, and the bytes of what they are given. Of 16 levels of a
# selection four look at the tokens, as a rule, and all eight of the quantiles.
BATCH, COVARIANCE = (178, 33, 17), (90, 16, 9)
# The same of a loss, forward and backward, of the weights of a rollout, of ids, and of the
# log-probs of sequences: torch's ops, and kernels of ours with the bytes of their arguments.
# tests/devices/tokens/test_launches.py counts the launches.
LOSS, WEIGHTS, IDS, SEQUENCES = (36, 11, 17), (358, 48, 14), (102, 10, 24), (138, 18, 5)
# Name -> the public function, and these numbers.
TOKENS = {
    "loss of tokens, ppo": ("policy_loss", LOSS),
    "weights of a rollout, tis": ("rollout_weights", WEIGHTS),
    "ids of tokens": ("token_ids", IDS),
    "log-probs of sequences": ("sequence_logp", SEQUENCES),
    "statistics of a batch": ("batch_stats", BATCH),
    "covariance of a batch": ("covariance", COVARIANCE),
}


@dataclass(frozen=True)
class Machine:
    """Rates that long calls reach. Only the H200's product and copy were measured; others are
    their datasheets' times what such calls usually reach."""

    flops: dict[str, float]
    memory: float  # bytes a second of a row kernel
    cache: float  # the same where a tile stays in the L2, assumed
    processors: int
    tile_bytes: int
    link: float  # bytes a second that a rank sends in a collective, of ranks in one machine


def _machine(
    narrow: float, wide: float, memory: float, cache: float, processors: int, mib: int, link: float
) -> Machine:
    flops = {"bfloat16": narrow * TB, "float16": narrow * TB, "float32": wide * TB}
    return Machine(flops, memory * TB, cache * TB, processors, mib * MIB, link * TB)


MACHINES = {
    "A100": _machine(250, 15, 1.75, 3.0, 108, 128, 0.24),
    "H100": _machine(725, 50, 2.9, 5.5, 132, 264, 0.36),
    "H200": _machine(790, 50, 4.0, 5.5, 132, 264, 0.36),
    "B200": _machine(1500, 57, 6.8, 8.0, 148, 512, 0.72),
    "MI300X": _machine(600, 100, 4.0, 6.0, 304, 512, 0.3),
}


@dataclass(frozen=True)
class Shape:
    rows: int
    width: int
    vocab: int
    dtype: str = "bfloat16"

    @property
    def item(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def logits_bytes(self) -> int:
        return self.rows * self.vocab * self.item

    @property
    def sum_bytes(self) -> int:
        """d_hidden in float32."""
        return 4 * self.rows * self.width


@dataclass(frozen=True)
class Predicted:
    op: str
    seconds: float
    floor: float
    note: str = ""


def product(m: Machine, s: Shape) -> float:
    return 2.0 * s.rows * s.width * s.vocab / m.flops[s.dtype]


def one_pass(m: Machine, s: Shape) -> float:
    """Reading, or writing, all logits once."""
    return s.logits_bytes / m.memory


def columns(m: Machine, item: int, rows: int = USUAL_ROWS) -> int:
    return max(m.tile_bytes // (rows * item) // QUANTUM, 1) * QUANTUM


def tiles(m: Machine, s: Shape, item: int, rows: int = USUAL_ROWS) -> int:
    return math.ceil(s.vocab / columns(m, item, rows))


def forward(m: Machine, s: Shape) -> float:
    return product(m, s) / TAILS + one_pass(m, s) + PAIR * tiles(m, s, s.item)


def wide_forward(m: Machine, s: Shape) -> float:
    """float32 logits of 16-bit operands."""
    read = 4 * s.rows * s.vocab / m.memory
    return product(m, s) / WIDE_TAILS + read + PAIR * tiles(m, s, 4)


def fused_forward(m: Machine, s: Shape) -> float:
    return product(m, s) / next(rate for width, rate in FUSED if s.width >= width)


def keep(m: Machine, s: Shape) -> float:
    """One tile: a read forward, a read and a write backward, no sums."""
    return 3 * product(m, s) / TAILS + 3 * one_pass(m, s) + PAIR + BACKWARD_TILE


def two_heads(m: Machine, s: Shape) -> float:
    """One tile of either: two reads forward, two and a write backward, no sums."""
    return 4 * product(m, s) / TAILS + 5 * one_pass(m, s) + 2 * PAIR + BACKWARD_TILE


def sums(m: Machine, s: Shape, count: int) -> float:
    """Each tile reads and writes the float32 sum of d_hidden."""
    return count * (BACKWARD_TILE + 2 * s.sum_bytes / m.memory)


def recompute(m: Machine, s: Shape) -> float:
    """A fourth pass: the tiles that are made again."""
    return 4 * (product(m, s) / TAILS + one_pass(m, s)) + sums(m, s, tiles(m, s, s.item))


def kept_share(m: Machine, s: Shape, budget: int = BUDGET) -> float:
    """Of the logits, beside a tile and the sum of d_hidden."""
    room = budget - min(m.tile_bytes, s.logits_bytes) - s.sum_bytes
    return min(max(room / s.logits_bytes, 0.0), 1.0)


def mixed(m: Machine, s: Shape) -> float:
    """Within BUDGET; the pass over what is made again is left out, as most of it is small."""
    count = tiles(m, s, s.item, s.rows)
    products = (4 - kept_share(m, s)) * product(m, s) / TAILS
    return products + 3 * one_pass(m, s) + sums(m, s, count)


def active_rows(m: Machine, s: Shape) -> float:
    """Kept logits of a fifth of the rows: gathered, then read and written."""
    again = 2 * product(m, s) / (FEW_ROWS_RATE * TAILS) + 4 * one_pass(m, s)
    return forward(m, s) + ACTIVE * again + COMPACTING


def sparse(m: Machine, s: Shape) -> float:
    """92% of the rows from their largest entries, kept logits of the others: gathered, then read
    and written."""
    capture = 0.6 * one_pass(m, s)
    gathered = 2 * ENTRIES * s.width * s.item * s.rows / m.memory
    scattered = 1.3 * s.vocab * s.width * s.item / m.memory
    dense = DENSE * (2 * product(m, s) / DENSE_ROWS_RATE + 4 * one_pass(m, s))
    return forward(m, s) + capture + gathered + scattered + SORTING + dense


def set_bytes(s: Shape) -> float:
    """Rows of weight forward and for d_hidden, rows of hidden for d_weight, which is written."""
    return (3 * SET_IDS * s.rows + s.vocab) * s.width * s.item


def sets(m: Machine, s: Shape) -> float:
    """Rows that lie anywhere at half the rate of a stream; the floor has the whole of it."""
    gathered = set_bytes(s) - s.vocab * s.width * s.item
    return (set_bytes(s) + gathered) / m.memory + SORTING + SET_LAUNCHES * PAIR


def weight_or_product(m: Machine, s: Shape) -> float:
    """Few rows wait for the weight."""
    return max(product(m, s), s.vocab * s.width * s.item / m.memory)


def draw(m: Machine, s: Shape) -> float:
    passes = DRAW_PASSES * one_pass(m, s)
    return weight_or_product(m, s) / TAILS + passes + PAIR * tiles(m, s, s.item, s.rows)


def draw_from_top(m: Machine, s: Shape, slabs: int = 1) -> float:
    """A block of threads a row, each with a processor's share of the cache's rate."""
    waves = math.ceil(s.rows / m.processors)
    slab_pass = s.vocab * s.item / (m.cache / m.processors)
    more = (WHOLE_PASSES - DRAW_PASSES) * one_pass(m, s)
    return draw(m, s) + more + slabs * SLAB_PASSES * waves * slab_pass


def draw_from_flat(m: Machine, s: Shape) -> float:
    """Slab after slab, and that of the token again."""
    return draw_from_top(m, s, math.ceil(FLAT_IDS / SLAB_IDS) + 1)


Formula = Callable[[Machine, Shape], float]


def times(formula: Formula, number: float) -> Formula:
    return lambda m, s: number * formula(m, s)


def of_tokens(counts: tuple[int, int, int]) -> Formula:
    """Of `rows` tokens: launches of half a PAIR, behind each other, and the passes over tokens."""
    moved, launches, _ = counts
    return lambda m, s: launches * PAIR / 2 + moved * s.rows / m.memory


def token_floor(counts: tuple[int, int, int]) -> Formula:
    return lambda m, s: counts[2] * s.rows / m.memory


def rate_of_waves(m: Machine, rows: int, width: int) -> float:
    """Of a product's rate: the last wave of tiles over the processors is not full."""
    count = math.ceil(rows / TILE_ROWS) * math.ceil(width / TILE_COLUMNS)
    return count / (math.ceil(count / m.processors) * m.processors)


def over_bare(m: Machine, s: Shape, width: int, *, in_cache: bool = False) -> float:
    """The bare product's time over that of a forward with tiles of so many columns."""
    bare = product(m, s)
    rows = s.logits_bytes / (m.cache if in_cache else m.memory)
    count = math.ceil(s.vocab / width)
    return bare / (bare / rate_of_waves(m, s.rows, width) + rows + PAIR * count)
