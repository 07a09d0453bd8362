"""Calls of one backend and nothing else, for tools that watch a program from outside.

python -m benchmarks.gpu.stages.single_backend BACKEND small | ROWSxVOCAB
"""

from __future__ import annotations

import sys
from typing import Any

import torch

import logitless as ll
from logitless.backends import registry
from logitless.inputs.options import ROW_EXTRAS

# One column, less than a warp, a ragged second piece, whole pieces, an odd row length.
SMALL = ((1, 1), (3, 127), (2, 4097), (5, 8192), (33, 9001))
DTYPES = (torch.float32, torch.bfloat16)
TRUNCATIONS: tuple[dict[str, Any], ...] = ({}, {"top_p": 0.9}, {"min_p": 0.01})


def one(rows: int, vocab: int, dtype: torch.dtype, backend: str, in_place: bool) -> None:
    """Forward, then backward with a fifth of the rows masked."""
    logits = torch.empty(rows, vocab, dtype=dtype, device="cuda").normal_()
    targets = torch.arange(rows, device="cuda") % vocab
    mask = torch.arange(rows, device="cuda") % 5 != 4
    logits.requires_grad_()
    stats = ll.token_stats(
        logits, targets, mask=mask, extras=ROW_EXTRAS, inplace_backward=in_place, backend=backend
    )
    (stats.logp + stats.entropy).sum().backward()
    torch.cuda.synchronize()


def beside_a_teacher(rows: int, vocab: int, dtype: torch.dtype, backend: str) -> None:
    """The same of a student and a teacher of float32, for every divergence."""
    logits = torch.empty(rows, vocab, dtype=dtype, device="cuda").normal_().requires_grad_()
    teacher = torch.empty(rows, vocab, device="cuda").normal_()
    mask = torch.arange(rows, device="cuda") % 5 != 4
    for kind in ("reverse_kl", "forward_kl", "jsd"):
        out = ll.divergence(logits, teacher, mask, kind=kind, backend=backend)
        (out.divergence + out.entropy).sum().backward()
    torch.cuda.synchronize()


def draw(rows: int, vocab: int, dtype: torch.dtype) -> None:
    """A token a row, of all of the vocabulary and of its top."""
    hidden, weight = (torch.randn(n, 16, device="cuda").to(dtype) for n in (rows, vocab))
    key: dict[str, Any] = {"seed": 1, "step": 2, "row_ids": torch.arange(rows, device="cuda")}
    for options in TRUNCATIONS:
        ll.linear_sample(hidden, weight, **key, **options)
    torch.cuda.synchronize()


def main(backend: str, sizes: str) -> None:
    if sizes == "small":
        for rows, vocab in SMALL:
            for dtype in DTYPES:
                for in_place in (False, True):
                    one(rows, vocab, dtype, backend, in_place)
                beside_a_teacher(rows, vocab, dtype, backend)
                if registry.get(backend).sampling is not None:
                    draw(rows, vocab, dtype)
    else:
        rows, vocab = map(int, sizes.split("x"))
        one(rows, vocab, torch.bfloat16, backend, in_place=True)
        beside_a_teacher(rows, vocab, torch.bfloat16, backend)
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
