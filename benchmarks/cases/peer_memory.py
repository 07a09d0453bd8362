"""What other implementations hold for forward and backward of the head, beyond inputs and outputs.

    python -m benchmarks.cases.peer_memory --tokens 1024 --hidden 1024 --vocab 151936

Formulas of their documented chunking, read in the version named; not measurements.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

import logitless as ll
from benchmarks.harness.report import mib


class Head(NamedTuple):
    n: int
    h: int
    v: int
    item: int  # bytes of a logit


class Peer(NamedTuple):
    name: str
    what: str
    size: Callable[[Head], int]


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _liger_rows(x: Head) -> int:
    """The next power of two of N / ceil(V / H)."""
    return 1 << max(_ceil(x.n, _ceil(x.v, x.h)) - 1, 0).bit_length()


PEERS = (
    Peer(
        "plain torch 2.13 (log_softmax, autograd)",
        "logits, their log-softmax and the gradient of each, [N, V]",
        lambda x: 4 * x.n * x.v * x.item,
    ),
    Peer(
        "torch 2.13 linear_cross_entropy (log-prob only)",
        "as called by default: logits and their gradient, [N, V]",
        lambda x: 2 * x.n * x.v * x.item,
    ),
    Peer(
        "Apple cut-cross-entropy 25.1.1, torch_compile (log-prob only)",
        "logits and their gradient, [N, V]; its GPU kernels hold no logits",
        lambda x: 2 * x.n * x.v * x.item,
    ),
    Peer(
        "Liger 0.8.5 fused_linear_cross_entropy (log-prob only)",
        "logits of a chunk of next_pow2(N / ceil(V / H)) rows",
        lambda x: _liger_rows(x) * x.v * x.item,
    ),
    Peer(
        "Liger 0.8.5 fused_linear_scaled_cross_entropy, torch path",
        "chunks of 512 rows: logits and five float32 [512, V]",
        lambda x: min(512, x.n) * x.v * (x.item + 5 * 4),
    ),
    Peer(
        "verl 0.9.1 FusedLinearForPPO",
        "chunks of 512 rows: logits and three float32 [512, V]",
        lambda x: min(512, x.n) * x.v * (x.item + 3 * 4),
    ),
    Peer(
        "verl 0.9.1 Triton kernel",
        "three float32 [N, V / 1024], d(logits) of 9504 columns",
        lambda x: 3 * 4 * x.n * _ceil(x.v, 1024) + x.n * min(9504, x.v) * x.item,
    ),
    Peer(
        "TRL 1.16 _ChunkedLogProbFunction",
        "two float32 [N, 32768], float32 d_hidden and d_weight",
        lambda x: 2 * 4 * x.n * min(32768, x.v) + 4 * x.h * (x.n + x.v),
    ),
)


def peer_lines(head: Head) -> list[tuple[int, str]]:
    """(bytes, who holds what), least first."""
    return sorted((peer.size(head), f"{peer.name}: {peer.what}") for peer in PEERS)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("tokens", "hidden", "vocab"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--budget", help="memory budget of ours, such as 64MiB")
    given = parser.parse_args(arguments)
    sizes = (given.tokens, given.hidden, given.vocab)
    plan = ll.plan(*sizes, given.dtype, given.budget)
    ours = (plan.total_bytes, f"logitless: {plan.mode}, as `logitless plan` says")
    item = getattr(torch, plan.dtype).itemsize
    for size, what in sorted([ours, *peer_lines(Head(*sizes, item))]):
        print(f"{mib(size):>12}  {what}")


if __name__ == "__main__":
    main()
