"""A model is read whole or not at all: of what a file lacks, transformers makes random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Arguments of from_pretrained, which then returns (model, report) and leaves it to `check_whole` to
# refuse a tensor of another shape.
REPORTED = {"output_loading_info": True, "ignore_mismatched_sizes": True}
# An error names so many tensors.
NAMED = 5


def check_whole(place: str | Path, report: Mapping[str, Any]) -> None:
    """ValueError where a model that was read from `place` has tensors that were not in its files,
    or had another shape there. Those that transformers ties to others, or computes, are none."""
    missing = sorted(report["missing_keys"])
    mismatched = sorted(
        f"{name} {list(found)} instead of {list(wanted)}"
        for name, found, wanted in report["mismatched_keys"]
    )
    faults = []
    if missing:
        faults.append(f"it lacks {_listed(missing)}")
    if mismatched:
        faults.append(f"it has {_listed(mismatched)}")
    if faults:
        raise ValueError(f"{place} must have all tensors of its model: {'; '.join(faults)}")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
