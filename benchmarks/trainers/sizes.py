"""The sizes of a micro-batch, and the least that any implementation must do for its head."""

from __future__ import annotations

from typing import NamedTuple

import torch

from benchmarks.harness.case import Call

# Columns of logits at once: 2 MiB of them for 512 tokens.
TILE = 1024


class Sizes(NamedTuple):
    vocab: int
    hidden: int
    tokens: int  # of all completions
    rows: int = 8
    prompt: int = 16
    device: str = "cpu"

    @property
    def length(self) -> int:
        return self.tokens // self.rows


def flops(sizes: Sizes) -> float:
    """Of the head: logits, gradient of the states, gradient of the weight."""
    return 6.0 * sizes.tokens * sizes.hidden * sizes.vocab


def moved(sizes: Sizes) -> dict[str, int]:
    """Bytes of the head in float32, term by term."""
    weight, states = 4 * sizes.vocab * sizes.hidden, 4 * sizes.tokens * sizes.hidden
    return {
        "weight, forward and backward": 2 * weight,
        "gradient of the weight": weight,
        "states and their gradient": 3 * states,
    }


def products(sizes: Sizes) -> Call:
    """The three products of the head and nothing else, tile by tile, so that logits stay in cache;
    buffers and results are there before."""
    g = torch.Generator().manual_seed(0)
    states = torch.randn(sizes.tokens, sizes.hidden, generator=g).to(sizes.device)
    weight = torch.randn(sizes.vocab, sizes.hidden, generator=g).to(sizes.device)
    back, gradient = torch.empty_like(states), torch.empty_like(weight)
    logits = torch.empty(sizes.tokens * TILE, device=sizes.device)

    def run(_: None) -> float:
        back.zero_()
        for rows, into in zip(weight.split(TILE), gradient.split(TILE), strict=True):
            tile = logits[: sizes.tokens * len(rows)].view(sizes.tokens, len(rows))
            torch.mm(states, rows.T, out=tile)
            torch.addmm(back, tile, rows, out=back)
            torch.mm(tile.T, states, out=into)
        return float(back[0, 0] + gradient[0, 0])

    return Call(run)
