"""What a forked process cannot do: products of torch on threads that stayed in its parent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from logitless import _core


def refuse_lost_threads() -> None:
    """Raise RuntimeError where torch's next product would wait for ever."""
    import torch

    if _core.runtime.pool_is_lost() and torch.get_num_threads() > 1:
        raise RuntimeError(
            "this process was forked after torch had started its threads, which a fork does not "
            "copy: torch's products would wait for them for ever. Call torch.set_num_threads(1) in "
            "the child first (torch's DataLoader does), or start it by 'spawn' or 'forkserver'"
        )


@contextlib.contextmanager
def without_lost_threads() -> Iterator[None]:
    """For torch's own loops over tokens: on the calling thread alone where a fork may have lost the
    others. Elsewhere nothing changes."""
    import torch

    threads = torch.get_num_threads()
    if threads == 1 or not _core.runtime.pool_may_be_lost():
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
