"""Plans on a CPU with 16-bit products, as they were: what changes for other machines leaves them
alone.

python -m tests.golden.plans writes plans.json anew, for a change that means to change them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import logitless as ll
from tests.support.plans import products_of_16_bits

FILE = Path(__file__).with_suffix(".json")
TOKENS = (0, 1, 7, 64, 160, 257, 1024, 4096, 8192, 32768, 70001)
HIDDEN = (1, 64, 1024, 4096)
VOCAB = (1, 300, 2048, 50257, 128257, 151936)
DTYPES = (
    ("float32", None), ("bfloat16", None), ("float16", None), ("float64", None),
    ("bfloat16", "float32"), ("float16", "float32"),
)  # fmt: skip
BUDGETS = (None, None, "4MiB", "64MiB", "1GiB", "16GiB")
OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {}, {"one_pass": False}, {"backward": False}, {"gradients": ("hidden",)},
    {"gradients": ("weight",)}, {"split": False}, {"batch_invariant": True}, {"tail_mass": 1e-3},
    {"backward": False, "kept_entries": 256},
)  # fmt: skip
CASES, FIELDS = 500, 18


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Arguments of a plan, and a name of them."""
    chosen = random.Random(0)
    for _ in range(CASES):
        sizes = [chosen.choice(each) for each in (TOKENS, HIDDEN, VOCAB)]
        dtype, logits_dtype = chosen.choice(DTYPES)
        asked = {
            **dict(zip(("tokens", "hidden", "vocab"), sizes, strict=True)), "dtype": dtype,
            "budget": chosen.choice(BUDGETS), "logits_dtype": logits_dtype,
            **chosen.choice(OPTIONS),
        }  # fmt: skip
        yield " ".join(f"{k}={v}" for k, v in asked.items()), asked


@products_of_16_bits()
def planned(**asked: Any) -> list[Any] | str:
    """All numbers of the plan that were ever its, or why there is none."""
    try:
        return list(astuple(ll.plan(**asked)))[:FIELDS]
    except ValueError as error:
        return str(error)


def main() -> None:
    lines = [f"{json.dumps(name)}: {json.dumps(planned(**asked))}" for name, asked in cases()]
    # a case that was drawn twice has one line
    FILE.write_text("{\n" + ",\n".join(dict.fromkeys(lines)) + "\n}\n")


if __name__ == "__main__":
    main()
