"""The ranks of vocab_group at the start of a call: who has which columns, and the same call on all.

In the first call of its kind every rank sends one small message: its range of columns, what must be
the same everywhere, or the error it met. So a mistake on one rank raises on all, and none waits for
another that never comes. A kind of call is an op with the shape of its weight and its options, on
any number of tokens. Later calls of the kind send nothing, and wait for nobody;
LOGITLESS_CHECK=1 has every call send its message.
"""

from __future__ import annotations

import os
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from logitless.inputs.checks import is_tensor, shown, whole
from logitless.ops.sharding.vocab_shard import VocabShard

if TYPE_CHECKING:
    from types import TracebackType

    from logitless.inputs.options import LogitTransform
    from logitless.ops.sharding.shard import Shard

# (name, value) of text, numbers and lists of them.
Facts: TypeAlias = tuple[tuple[str, Any], ...]
# Process group -> kind of call -> what its ranks agreed on, of the last kinds.
_Kinds: TypeAlias = "OrderedDict[tuple[Any, ...], Shard]"
_AGREED: weakref.WeakKeyDictionary[Any, _Kinds] = weakref.WeakKeyDictionary()
KINDS = 256


class ShardRendezvous:
    """The ranks of vocab_group at the start of a call; without a group nothing is done or sent.

    ranks = ShardRendezvous(op, vocab_group, vocab_start, lambda: ...the kind of call...)
    with ranks:
        ...                      # everything that one rank alone may fail at
    shard = ranks.shard(...)     # raises on every rank what any of them failed at
    """

    def __init__(
        self, op: str, group: Any, start: int, kind: Callable[[], tuple[Any, ...]] = tuple
    ) -> None:
        self.op, self.group, self.start, self.reduces_hidden = op, "", start, True
        # what the ranks have agreed on for this kind of call
        self.known: Shard | None = None
        if group is None:
            self.start = whole("vocab_start", start)
            if start != 0:
                raise ValueError(f"{op}: vocab_start must be 0 without vocab_group, got {start!r}")
            return
        process = group
        if isinstance(group, VocabShard):
            process, self.reduces_hidden = group.group, group.reduce_hidden
            if start not in (0, group.start):
                raise ValueError(
                    f"{op}: vocab_start must be left at 0 with a VocabShard, which starts at "
                    f"{group.start}, got {shown(start)}"
                )
            start = group.start
        self.group = _name_of(op, process)
        if not _tracing():
            self.process, self.kind = process, (op, *map(_plain, (start, *kind())))
            if not _checks_every_call():
                kinds = _AGREED.get(process)
                self.known = None if kinds is None else kinds.get(self.kind)
        with self:
            self.start = whole("vocab_start", start)

    # Not __bool__, which torch.compile cannot trace before torch 2.13.
    @property
    def sharded(self) -> bool:
        return self.group != ""

    def __enter__(self) -> ShardRendezvous:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self.group and self.known is None and isinstance(error, Exception):
            from logitless.ops.sharding.exchange import report_failure

            report_failure(self.group, f"{type(error).__name__}: {error}")

    def local(self, name: str, tensor: Any) -> Any:
        """This rank's part of a weight or bias, of which a DTensor is cut along the vocabulary."""
        if not self.sharded or type(tensor).__name__ != "DTensor":
            return tensor
        return _local_part(self, name, tensor)

    def refuse_numpy(self) -> None:
        if self.sharded:
            raise ValueError(f"{self.op}: vocab_group takes torch tensors, got NumPy arrays")

    def require(self, backend: str) -> None:
        """A backend that can compute a part of the vocabulary."""
        from logitless.backends import registry

        registry.get(backend).require(self.op, vocab_group=self.sharded)

    def shard(self, width: int, same: Callable[[], Facts]) -> Shard:
        """Who has which columns. `same`: what must agree; asked for where it is sent."""
        from logitless.ops.sharding.exchange import check_consistent
        from logitless.ops.sharding.shard import Shard

        if not self.sharded:
            return Shard()
        if self.known is not None:
            return self.known._replace(reduces_hidden=self.reduces_hidden)
        facts = same()
        if _tracing():
            from logitless.ops.symbols import fixed

            # What ranks have told each other is a constant of the graph.
            width, facts = fixed(width), tuple([(name, fixed(fact)) for name, fact in facts])
        group, bounds = check_consistent(self.op, self.group, self.start, width, facts)
        shard = Shard(group, bounds, self.reduces_hidden)
        if not _tracing():
            kinds = _AGREED.setdefault(self.process, OrderedDict())
            kinds[self.kind] = shard
            # All ranks make the same calls, so they forget the same kind.
            if len(kinds) > KINDS:
                kinds.popitem(last=False)
        return shard


def tail(array: Any, dims: int = 1) -> tuple[Any, ...]:
    """What of an array makes a kind of call: dtype and last dimensions, not the number of tokens.
    Nothing is checked yet."""
    if not is_tensor(array) or array.is_nested:
        return (type(array).__name__,)
    return (str(array.dtype), *(int(n) for n in array.shape[-dims:]))


def _plain(value: Any) -> Any:
    """A hashable stand-in: a number or text itself, of all else the type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return type(value).__name__


def _checks_every_call() -> bool:
    return os.environ.get("LOGITLESS_CHECK", "0") not in ("", "0")


def _tracing() -> bool:
    import torch

    return torch.compiler.is_compiling()


def _name_of(op: str, group: Any) -> str:
    import torch
    import torch.distributed as dist

    # A graph's tracer shows a stand-in.
    if not torch.compiler.is_compiling() and not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"{op}: vocab_group must be a torch.distributed process group that this rank is in, "
            f"got {shown(group)}"
        )
    name: str = group.group_name
    return name


def _local_part(ranks: ShardRendezvous, name: str, tensor: Any) -> Any:
    import torch.distributed as dist
    from torch.distributed.tensor import Shard as Sharded

    from logitless.ops.sharding.shard import process_group

    op, mesh, placements = ranks.op, tensor.device_mesh, tensor.placements
    mine, theirs = process_group(ranks.group), mesh.get_group() if mesh.ndim == 1 else None
    cut = len(placements) == 1 and type(placements[0]) is Sharded and placements[0].dim == 0
    same_ranks = theirs is not None and (
        dist.get_process_group_ranks(theirs) == dist.get_process_group_ranks(mine)
    )
    if not (cut and same_ranks):
        raise ValueError(
            f"{op}: {name} as a DTensor must be Shard(0) over the ranks of vocab_group, "
            f"got {list(placements)} over {mesh}"
        )
    # DTensor cuts as torch.chunk does.
    start = min(-(-len(tensor) // mine.size()) * mine.rank(), len(tensor))
    if ranks.start not in (0, start):
        raise ValueError(
            f"{op}: vocab_start must be left at 0, or be the {start} at which this rank's part of "
            f"the DTensor {name} starts, got {ranks.start}"
        )
    ranks.start = start
    return tensor.to_local()


def fingerprint(*arrays: Any) -> int:
    """A checksum of tensors on the CPU (None aside), so that ranks with other data are told apart.

    0 where it would wait for a device, or while torch.compile traces.
    """
    import torch

    total = 0
    for x in arrays:
        if x is None or torch.compiler.is_compiling() or x.device.type != "cpu":
            continue
        flat = x.detach().reshape(-1).clone(memory_format=torch.contiguous_format)
        total = zlib.crc32(flat.view(torch.uint8).numpy(), total)
    return total


def head_facts(head: LogitTransform) -> Facts:
    """What of the chain must be the same on every rank."""
    t = head.temperature
    return (
        ("temperature", float(t) if isinstance(t, (int, float)) else fingerprint(t)),
        ("softcap", head.cap),
        ("logit_scale", float(head.logit_scale)),
        ("whether there is a bias", head.bias is not None),
    )


def rows_facts(source: Any, targets: Any, mask: Any, shape: tuple[int, ...]) -> Facts:
    """The same of the rows: logits or hidden, and what is flat."""
    return (
        ("the dtype", str(source.dtype)),
        ("the shape of targets", [int(n) for n in shape]),
        ("targets (their checksum)", fingerprint(targets)),
        ("mask (its checksum)", -1 if mask is None else fingerprint(mask)),
    )
