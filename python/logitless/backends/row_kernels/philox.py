"""Philox 4x32-10 in torch's operations, for those without the compiled core's kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LOW = 0xFFFFFFFF


def philox_words(key: int, x: Tensor, y: Tensor | int) -> list[Tensor]:
    """Four words of (key, x, y), csrc/core/philox.h: 64 bits each, x and y int64 of one shape or
    such that they broadcast; y may be the host's. Words are int64, whose products wrap as unsigned
    ones do."""
    words: list[Any] = [x & LOW, x >> 32 & LOW, y & LOW, y >> 32 & LOW]
    keys = [key & LOW, key >> 32]
    for _ in range(10):
        products = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        (low0, high0), (low1, high1) = ((p & LOW, p >> 32 & LOW) for p in products)
        words = [high1 ^ words[1] ^ keys[0], low1, high0 ^ words[3] ^ keys[1], low0]
        keys = [(keys[0] + 0x9E3779B9) & LOW, (keys[1] + 0xBB67AE85) & LOW]
    return words
