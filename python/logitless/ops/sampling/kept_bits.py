"""What rows were drawn from, where nobody waits to know how many tokens it is: a bit for each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Bits that are looked at together, as a byte each.
AT_ONCE = 1 << 27


class KeptBits(NamedTuple):
    """As `KeptSets`, which it becomes when somebody asks."""

    bits: Tensor  # [n, ceil(vocab / 8)] uint8, the first id in the lowest bit
    sizes: Tensor  # [n] int64
    logp: Tensor  # [n] float32, of the drawn token within its row's set
    vocab: int

    @classmethod
    def empty(cls, n: int, vocab: int, like: Tensor) -> KeptBits:
        """Memory for n rows, to be written."""
        return cls(
            like.new_empty(n, -(-vocab // 8), dtype=torch.uint8),
            like.new_empty(n, dtype=torch.int64),
            like.new_empty(n, dtype=torch.float32),
            vocab,
        )

    def outputs(self, chunk: slice) -> dict[str, Tensor]:
        """Of some rows, as the kernels take them."""
        bits, sizes, logp = self.bits[chunk], self.sizes[chunk], self.logp[chunk]
        return {"set_bits": bits, "set_sizes": sizes, "kept_logp": logp}

    @property
    def csr(self) -> tuple[Tensor, Tensor]:
        """(ids int32, ascending within a row, offsets [n + 1] int64). Waits for the device."""
        places = torch.arange(8, dtype=torch.uint8, device=self.bits.device)
        found = []
        for part in self.bits.split(max(AT_ONCE // self.vocab, 1)):
            each = part[..., None].bitwise_right_shift(places).bitwise_and(1)
            found.append(each.flatten(1).nonzero()[:, 1].int())
        offsets = self.sizes.new_zeros(len(self.sizes) + 1)
        torch.cumsum(self.sizes, 0, out=offsets[1:])
        return torch.cat(found) if found else self.sizes.new_empty(0, dtype=torch.int32), offsets
