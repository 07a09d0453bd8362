"""Rows over sets of tokens: by gathered rows of weight, or by dense products; from sizes alone."""

from __future__ import annotations

from typing import NamedTuple

from logitless.backends.machine import Machine
from logitless.ops.head.planner.cost import ITEMSIZE


class SetProblem(NamedTuple):
    rows: int  # that have a set
    entries: int  # ids of all sets
    hidden: int
    vocab: int
    dtype: str

    def pays_dense(self, machine: Machine) -> bool:
        """Whether a dense product costs less than as many gathered rows of weight as there are ids.
        Forward and backward make the same choice: each dense product has its gathered twin."""
        gathered = self.entries * self.hidden * ITEMSIZE[self.dtype] / machine.gathered
        rows = self.rows + machine.packing_rows
        rate = machine.flops[machine.logits_dtype(self.dtype)]
        return gathered > 2.0 * rows * self.hidden * self.vocab / rate

    def seconds(self, products: int, machine: Machine) -> float:
        """Of gathered rows in place of so many dense products."""
        return products * self.entries * self.hidden * ITEMSIZE[self.dtype] / machine.gathered

    def check(self, budget: int | None, backward: bool) -> int:
        """What gathering holds, where it fits."""
        least = self.bytes(backward)
        if budget is not None and budget < least:
            raise ValueError(
                f"memory_budget must be at least {least} bytes for {self.entries} ids of "
                f"{self.rows} rows in sampling_mask, got {budget}"
            )
        return least

    def bytes(self, backward: bool) -> int:
        """What gathering holds: hidden of the rows, values, and in the backward their gradient,
        what of it is not 0, the transpose of that, and d_hidden of the rows."""
        wide = 8 if self.dtype == "float64" else 4
        of_hidden = self.rows * self.hidden * ITEMSIZE[self.dtype]
        total = of_hidden + self.entries * wide
        if backward:
            total += of_hidden + 4 * self.vocab + self.entries * (3 * wide + 2 * 4 + 8 + 2 * 4)
        return total
