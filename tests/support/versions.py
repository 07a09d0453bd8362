"""What a test needs to know of the versions it runs with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch


def numbers(text: str) -> tuple[int, ...]:
    """ "2.13.0+cpu" -> (2, 13)."""
    return tuple(int(x) for x in text.split(".")[:2])


TORCH = numbers(torch.__version__)


def why_no_interpreter() -> str:
    """Why Triton's interpreter cannot run here; "" if it can."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        return "Triton has no wheel for this platform"
    # Tried: 3.6 fails with 2.4 and 2.5 and works with 2.3; 3.8 and 3.9 work with 2.4.
    if numbers(triton) < (3, 8) and numbers(np.__version__) >= (2, 4):
        return f"the interpreter of Triton {triton} needs NumPy below 2.4, here is {np.__version__}"
    return ""
