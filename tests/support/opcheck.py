"""torch's own checker of registered ops."""

from __future__ import annotations

from typing import Any

import torch

TESTS = ("test_schema", "test_autograd_registration", "test_faketensor")


def check_op(op: Any, *arguments: Any) -> None:
    """Schema, fake kernel and autograd registration of an op of ours agree."""
    torch.library.opcheck(op.overload, tuple(op.flat(arguments)), test_utils=TESTS)
