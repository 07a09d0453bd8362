"""The ratios this project promises, each the quotient of two lines of one match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.case import Setting
from benchmarks.match import Match

# Where they are promised.
VOCAB = 151_936
ROWS = 512


@dataclass(frozen=True)
class Target:
    op: str
    dtype: str
    over: str  # numerator
    under: str
    limit: float
    at_most: bool = True

    def ratio(self, match: Match) -> float:
        return match[self.over].times.median / match[self.under].times.median

    def met(self, ratio: float) -> bool:
        return ratio <= self.limit if self.at_most else ratio >= self.limit

    def applies(self, match: Match) -> bool:
        at: Setting = match.setting
        return (
            (self.op, self.dtype, ROWS, VOCAB) == (match.op.name, at.dtype, at.rows, at.vocab)
            and self.over in match
            and self.under in match
        )


TARGETS = [
    Target("forward", "float32", "logitless", "max read", 1.35),
    Target("forward", "float32", "torch eager", "logitless", 25.0, at_most=False),
    Target("forward", "float32", "torch.compile", "logitless", 2.5, at_most=False),
    Target("forward", "bfloat16", "logitless", "logitless on float32", 0.9),
    Target("backward in place", "float32", "logitless", "copy", 1.5),
    Target("forward+backward", "float32", "torch eager", "logitless, in place", 10.0, False),
    Target("forward with extras", "float32", "logitless", "logitless, no extras", 1.25),
]


def verdicts(matches: Sequence[Match]) -> list[str]:
    """A line for each target that these matches can judge."""
    lines = []
    for target in TARGETS:
        for match in filter(target.applies, matches):
            ratio = target.ratio(match)
            lines.append(
                f"{'met   ' if target.met(ratio) else 'MISSED'}  {ratio:6.2f}"
                f"  {'<=' if target.at_most else '>='} {target.limit:<5g}"
                f"  {target.op} {target.dtype}: {target.over} / {target.under}"
                f" (logits {match.setting.logits})"
            )
    return lines
