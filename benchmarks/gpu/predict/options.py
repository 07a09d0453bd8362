"""What an option of a call adds to it: products, bytes, numbers that ranks send each other."""

from __future__ import annotations

import math
from dataclasses import replace

from benchmarks.gpu.predict.model import (
    ACTIVE,
    BACKWARD_TILE,
    COMPACTING,
    PAIR,
    SET_IDS,
    SET_LAUNCHES,
    SORTING,
    TAILS,
    Machine,
    Shape,
    draw_from_top,
    keep,
    one_pass,
    product,
    set_bytes,
    sets,
    two_heads,
)

# Columns of an adapter's factors, and ranks of a vocabulary.
RANK, RANKS = 16, 4
# Seconds in which ranks find each other in a collective.
COLLECTIVE = 30e-6
# Rows of a masked call.
MASKED = 0.6
# float64 numbers of a row's state.
STATE = 8
# Of a normal number: a quarter of ten rounds of Philox, half of a logarithm, a root, a sine and a
# cosine. Counted in csrc/core/noise.h, an instruction as two of the float32 rate's operations.
NOISE_FLOPS = 120
# Rows of every product with batch_invariant.
FIXED_ROWS = 256


def capacity(m: Machine, s: Shape) -> float:
    """As many rows as are active, forward and backward."""
    return keep(m, replace(s, rows=math.ceil(ACTIVE * s.rows))) + COMPACTING


def weight_bytes(s: Shape) -> int:
    return s.vocab * s.width * s.item


def batch_invariant(m: Machine, s: Shape) -> float:
    """Each product of so few rows, forward and for d_hidden, reads the weight again."""
    pieces = math.ceil(s.rows / FIXED_ROWS)
    few = product(m, replace(s, rows=FIXED_ROWS)) / TAILS
    each = max(few, weight_bytes(s) / m.memory) + PAIR
    return 2 * pieces * each + product(m, s) / TAILS + 3 * one_pass(m, s) + BACKWARD_TILE


def _joined(m: Machine, s: Shape) -> tuple[float, float]:
    """Products with hidden and weight that an adapter has made wider, and the others of a call
    whose weight is frozen: B's gradient, and hidden x A with both of its own."""
    wide = 2 * product(m, replace(s, width=s.width + RANK))
    small = 3 * 2.0 * s.rows * s.width * RANK / m.flops[s.dtype]
    return wide, product(m, replace(s, width=RANK)) + small


def adapter(m: Machine, s: Shape) -> float:
    """B's gradient reads d(logits) once more, for next to no products."""
    wide, others = _joined(m, s)
    passes = 4 * one_pass(m, s)
    return (wide + others) / TAILS + passes + 5 * PAIR + BACKWARD_TILE


def adapter_floor(m: Machine, s: Shape) -> float:
    return sum(_joined(m, s))


def likeliest(m: Machine, s: Shape) -> float:
    """A first pass that names the tokens, as a draw from the top; their logits alone; and the
    log-probs. The two d_weight are added."""
    added = 3 * weight_bytes(s) / m.memory
    return draw_from_top(m, s) + sets(m, s) + keep(m, s) + added


def likeliest_floor(m: Machine, s: Shape) -> float:
    return 4 * product(m, s) + set_bytes(s) / m.memory


def row_bytes(s: Shape) -> float:
    """As `set_bytes`, with d_weight of the rows that are named, here each once."""
    named = min(SET_IDS * s.rows, s.vocab)
    return (3 * SET_IDS * s.rows + named) * s.width * s.item


def weight_rows(m: Machine, s: Shape) -> float:
    gathered = 3 * SET_IDS * s.rows * s.width * s.item
    return (row_bytes(s) + gathered) / m.memory + SORTING + SET_LAUNCHES * PAIR


def pair_set_bytes(s: Shape) -> float:
    """As `set_bytes`, and rows of the teacher's weight, which is as wide."""
    return set_bytes(s) + SET_IDS * s.rows * s.width * s.item


def pair_sets(m: Machine, s: Shape) -> float:
    gathered = pair_set_bytes(s) - weight_bytes(s)
    return (pair_set_bytes(s) + gathered) / m.memory + SORTING + SET_LAUNCHES * PAIR


def masked_heads(m: Machine, s: Shape) -> float:
    """The mask's rows of both are gathered, and no other is computed."""
    return two_heads(m, replace(s, rows=math.ceil(MASKED * s.rows))) + COMPACTING


def noisy(m: Machine, s: Shape) -> float:
    """Both are read while the noise is made, which takes longer."""
    made = NOISE_FLOPS * s.rows * s.vocab / m.flops["float32"]
    return max(2 * one_pass(m, s), made)


def _sent(m: Machine, s: Shape) -> float:
    """Every rank gets the states of the others; d_hidden is summed over a ring, in float32."""
    states = (RANKS - 1) * s.rows * STATE * 8
    ring = 2 * (RANKS - 1) / RANKS * s.sum_bytes
    return (states + ring) / m.link


def sharded(m: Machine, s: Shape) -> float:
    own = replace(s, vocab=math.ceil(s.vocab / RANKS))
    return keep(m, own) + 2 * COLLECTIVE + _sent(m, s)


def alone(m: Machine, s: Shape) -> float:
    """A group of one rank: its collectives bring nothing."""
    return keep(m, s) + 2 * COLLECTIVE


def sharded_floor(m: Machine, s: Shape) -> float:
    return 3 * product(m, s) / RANKS + _sent(m, s)
