"""What a forked process cannot do: products of torch on threads that stayed in its parent."""

from __future__ import annotations

import torch

from logitless import _core


def refuse_lost_threads() -> None:
    """Raise RuntimeError where torch's next product would wait for ever."""
    if _core.pool_is_lost() and torch.get_num_threads() > 1:
        raise RuntimeError(
            "this process was forked after torch had started its threads, which a fork does not "
            "copy: torch's products would wait for them for ever. Call torch.set_num_threads(1) in "
            "the child first (torch's DataLoader does), or start it by 'spawn' or 'forkserver'"
        )
