"""Targets: a quotient of two lines of one comparison, or the time of one line."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.harness.case import Case
from benchmarks.harness.comparison import Comparison

# Where they hold.
VOCAB = 151_936
ROWS, HEAD_ROWS, GPU_ROWS = 512, 1024, 8192
TOKENS = 1_048_576
TINY_ROWS, TINY_VOCAB = 8, 256


PEAKED = "head forward+backward, peaked"
SETS = "head forward+backward, sets of"


@dataclass(frozen=True)
class Target:
    op: str
    dtype: str
    over: str  # numerator
    under: str  # "": the time of `over` itself, in milliseconds
    limit: float
    at_most: bool = True
    rows: int = ROWS
    device: str = "cpu"
    note: str = ""
    vocab: int = VOCAB
    unit: float = 1e3  # of a time alone, in a second
    cpu: bool = False  # by the CPU clock of the calling thread

    def value(self, comparison: Comparison) -> float:
        times = comparison[self.over].times
        if self.under:
            return times.over(comparison[self.under].times)
        return self.unit * (statistics.median(times.cpu) if self.cpu else times.median)

    def met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def applies(self, comparison: Comparison) -> bool:
        at: Case = comparison.case
        return (
            (self.op, self.dtype, self.rows, self.vocab)
            == (comparison.op.name, at.dtype, at.rows, at.vocab)
            and at.device.startswith(self.device)
            and self.over in comparison
            and (not self.cpu or bool(comparison[self.over].times.cpu))
            and (not self.under or self.under in comparison)
        )


def of_head(op: str, over: str, under: str, limit: float, at_most: bool = True) -> Target:
    return Target(op, "bfloat16", over, under, limit, at_most, rows=HEAD_ROWS)


def of_losses(op: str) -> Target:
    return Target(op, "float32", "verl", "logitless", 5.0, at_most=False, rows=TOKENS)


def on_gpu(op: str, over: str, under: str, limit: float, note: str = "") -> Target:
    return Target(op, "bfloat16", over, under, limit, rows=GPU_ROWS, device="cuda", note=note)


def of_overhead(op: str, microseconds: float) -> list[Target]:
    """By the clock on the wall, which needs a machine that does nothing else, and by the CPU's."""
    return [
        Target(
            f"tiny {op}", "float32", "logitless", "", microseconds, rows=TINY_ROWS,
            vocab=TINY_VOCAB, note=f"us of {'CPU' if cpu else 'wall'}", unit=1e6, cpu=cpu,
        )
        for cpu in (False, True)
    ]  # fmt: skip


TARGETS = [
    Target("forward", "float32", "logitless", "max read", 1.35),
    Target("forward", "float32", "torch eager", "logitless", 25.0, at_most=False),
    Target("forward", "float32", "torch.compile", "logitless", 2.5, at_most=False),
    Target("forward", "bfloat16", "logitless", "logitless on float32", 0.9),
    Target("backward in place", "float32", "logitless", "copy", 1.5),
    Target("forward+backward", "float32", "torch eager", "logitless, in place", 10.0, False),
    Target("forward+backward", "float32", "torch eager", "logitless", 10.0, False),
    Target("forward with extras", "float32", "logitless", "logitless, no extras", 1.25),
    of_head("head forward+backward", "logitless", "three bare products", 1.05),
    of_head("head forward+backward", "logitless, 64MiB", "four bare products", 1.05),
    of_head("head policy loss, every row", "logitless", "three bare products", 1.05),
    of_head(PEAKED, "logitless, tail_mass=0.001", "three bare products", 0.48),
    of_head(PEAKED, "logitless, tail_mass=0.01", "three bare products", 0.40),
    of_head("head policy loss, a fifth of the rows", "logitless", "three bare products", 0.55),
    of_head(f"{SETS} 8", "logitless, d_weight as rows", "three bare products", 0.02),
    of_head(f"{SETS} 8", "logitless", "three bare products", 0.02),
    of_head(f"{SETS} 512", "logitless", "three bare products", 0.12),
    of_head("head sample, 64 rows", "softmax and multinomial", "logitless", 5.0, at_most=False),
    of_head("head sample, 64 rows", "logitless", "Hugging Face greedy", 1.0),
    of_head("head forward+backward", "torch eager", "logitless", 2.5, at_most=False),
    *(
        of_head("head forward+backward", peer, "logitless", 2.5, at_most=False)
        for peer in ("Liger", "verl", "TRL")
    ),
    *(
        of_head("head forward+backward", "logitless", peer, 1.05)
        for peer in ("Apple CCE", "torch linear_cross_entropy")
    ),
    *(of_losses(op) for op in ("policy loss", "clip cov loss", "kl cov loss")),
    *of_overhead("linear_policy_loss", 600),
    *of_overhead("linear_policy_loss backward", 150),
    *of_overhead("policy_loss", 85),
    *of_overhead("token_stats", 75),
    on_gpu("forward", "logitless cuda", "", 0.85, "ms, of an H100"),
    on_gpu("forward", "logitless triton", "", 0.85, "ms, of an H100"),
    on_gpu("backward in place", "logitless cuda", "copy", 1.15),
    on_gpu("backward in place", "logitless triton", "copy", 1.15),
]


def check_targets(comparisons: Sequence[Comparison]) -> list[str]:
    """A line for each target that these comparisons can judge."""
    lines = []
    for target in TARGETS:
        for comparison in filter(target.applies, comparisons):
            value = target.value(comparison)
            lines.append(
                f"{'met   ' if target.met(value) else 'MISSED'}  {value:6.2f}"
                f"  {'<=' if target.at_most else '>='} {target.limit:<5g}"
                f"  {target.op} {target.dtype}: {target.over}"
                f"{' / ' if target.under else ''}{target.under}"
                f" ({target.note + '; ' if target.note else ''}logits {comparison.case.logits})"
            )
    return lines
