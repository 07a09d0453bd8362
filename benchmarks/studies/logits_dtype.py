"""What logits_dtype=float32 buys and costs, by size of the logits:

python -m benchmarks.studies.logits_dtype [--vocab 32768] [--width 1024] [--rows 256] [--threads 2]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

import logitless as ll
from logitless import reference

SIZES = (1.0, 5.0, 20.0, 50.0)
CHECKED, RUNS = 32, 5


def inputs(rows: int, width: int, vocab: int, largest: float) -> tuple[Tensor, Tensor, Tensor]:
    """bfloat16 hidden and weight whose logits are at most about `largest`, and likely targets."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator)
    weight = torch.randn(vocab, width, generator=generator) / width**0.5
    hidden *= largest / (hidden @ weight.T).abs().max()
    hidden, weight = hidden.bfloat16(), weight.bfloat16()
    # tokens that a policy draws: the targets of RL sit where the probability does
    logits = hidden[:CHECKED].double() @ weight.double().T
    drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    return hidden, weight, drawn.repeat(-(-rows // CHECKED))[:rows]


def errors(hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, tuple[float, float]]:
    """dtype -> largest error of logp and of entropy against float64."""
    h, t = hidden[:CHECKED], targets[:CHECKED]
    truth = reference.linear_token_stats(h.double().numpy(), weight.double().numpy(), t.numpy())
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        stats = ll.linear_token_stats(h, weight, t, logits_dtype=dtype)
        pair = [
            float((value.double() - torch.from_numpy(truth[name])).abs().max())
            for name, value in (("logp", stats.logp), ("entropy", stats.entropy))
        ]
        found[str(dtype)] = (pair[0], pair[1])
    return found


def both_ways(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> None:
    leaves = [x.detach().requires_grad_() for x in (hidden, weight)]
    stats = ll.linear_token_stats(leaves[0], leaves[1], targets, logits_dtype=dtype)
    torch.autograd.grad((stats.logp + 0.1 * stats.entropy).sum(), leaves)


def median(runs: list[float]) -> float:
    return sorted(runs)[len(runs) // 2]


def price(hidden: Tensor, weight: Tensor, targets: Tensor) -> float:
    """Time of forward and backward with float32 tiles over that with bfloat16 ones, by turns."""
    calls: dict[torch.dtype, Callable[[], None]] = {
        dtype: lambda d=dtype: both_ways(hidden, weight, targets, d)  # type: ignore[misc]
        for dtype in (torch.bfloat16, torch.float32)
    }
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in calls}
    for _ in range(RUNS):
        for dtype, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[dtype].append(time.perf_counter() - started)
    return median(seconds[torch.float32]) / median(seconds[torch.bfloat16])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"vocab": 32768, "width": 1024, "rows": 256, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--no-time", action="store_true", help="accuracy alone")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    shape = (chosen.rows, chosen.width, chosen.vocab)
    print(f"{shape[0]} rows x {shape[1]} x {shape[2]}, bfloat16 inputs, torch {torch.__version__}")
    print(f"{'largest |z|':>12} {'logits in':>16} {'error of logp':>14} {'of entropy':>12}")
    for largest in SIZES:
        made = inputs(*shape, largest)
        for dtype, (logp, entropy) in errors(*made).items():
            print(f"{largest:>12} {dtype:>16} {logp:>14.1e} {entropy:>12.1e}")
    if not chosen.no_time:
        print(
            f"forward+backward with float32 tiles: {price(*made):.2f} x the time of bfloat16 ones"
        )


if __name__ == "__main__":
    main()
