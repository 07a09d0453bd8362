"""vocab_group at the public ops: who has which columns, and that all ranks ask for the same.

A call starts with one small message from every rank: its range of columns, what must be the same
everywhere, or the error it met. So a mistake on one rank raises on all, and none waits for another
that never comes.
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from logitless.ops.options import HeadOptions
    from logitless.ops.shard import Shard

# Bytes of a rank's message, and letters of the error in it: JSON writes up to six bytes for one.
MESSAGE = 4096
LONGEST_ERROR = 600


class Meeting:
    """The ranks of vocab_group at the start of a call; without a group nothing is done or sent.

        meeting = Meeting(op, vocab_group, vocab_start)
        with meeting:
            ...                      # everything that one rank alone may fail at
        shard = meeting.shard(...)   # raises on every rank what any of them failed at
    """

    def __init__(self, op: str, group: Any, start: int) -> None:
        self.op, self.group, self.start = op, "", start
        if group is not None:
            self.group = _name_of(op, group)
        elif start != 0:
            raise ValueError(f"{op}: vocab_start must be 0 without vocab_group, got {start!r}")

    def __bool__(self) -> bool:
        return bool(self.group)

    def __enter__(self) -> Meeting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self.group and isinstance(error, Exception):
            text = f"{type(error).__name__}: {error}"
            _exchange(self.group, {"error": text[:LONGEST_ERROR]})

    def local(self, name: str, tensor: Any) -> Any:
        """This rank's part of a weight or bias, of which a DTensor is cut along the vocabulary."""
        if not self or type(tensor).__name__ != "DTensor":
            return tensor
        return _local_part(self, name, tensor)

    def refuse_numpy(self) -> None:
        if self:
            raise ValueError(f"{self.op}: vocab_group takes torch tensors, got NumPy arrays")

    def refuse_backend(self, backend: str) -> None:
        """Plain torch would need autograd through the exchange, or a copy of our own backward."""
        if self and backend == "torch":
            raise NotImplementedError(f"{self.op}: vocab_group with backend='torch' is not built")

    def shard(self, width: int, same: tuple[tuple[str, Any], ...]) -> Shard:
        """Who has which columns. `same`: names and values that must agree, text and numbers."""
        from logitless.ops.shard import Shard

        if not self:
            return Shard()
        return Shard(*_agreed(self.op, self.group, self.start, width, same))


def _name_of(op: str, group: Any) -> str:
    import torch
    import torch.distributed as dist

    # A graph's tracer shows a stand-in.
    if not torch.compiler.is_compiling() and not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"{op}: vocab_group must be a torch.distributed process group that this rank is in, "
            f"got {group!r}"
        )
    name: str = group.group_name
    return name


def _local_part(meeting: Meeting, name: str, tensor: Any) -> Any:
    import torch.distributed as dist
    from torch.distributed.tensor import Shard as Sharded

    from logitless.ops.shard import process_group

    op, mesh, placements = meeting.op, tensor.device_mesh, tensor.placements
    mine, theirs = process_group(meeting.group), mesh.get_group() if mesh.ndim == 1 else None
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
    if meeting.start not in (0, start):
        raise ValueError(
            f"{op}: vocab_start must be left at 0, or be the {start} at which this rank's part of "
            f"the DTensor {name} starts, got {meeting.start}"
        )
    meeting.start = start
    return tensor.to_local()


def _agreed(
    op: str, group: str, start: int, width: int, same: tuple[tuple[str, Any], ...]
) -> tuple[str, list[int]]:
    """(group, bounds). A constant of a compiled graph: it follows from what that is guarded on."""
    facts = {"op": op, "range": [start, start + width], "same": [list(pair) for pair in same]}
    answers = _exchange(group, facts)
    for rank, answer in enumerate(answers):
        if "error" in answer:
            raise RuntimeError(f"{op}: rank {rank} of vocab_group failed: {answer['error']}")
        for (name, mine), (_, other) in zip(
            [("the op", answers[0]["op"]), *answers[0]["same"]],
            [("the op", answer["op"]), *answer["same"]],
            strict=False,
        ):
            if mine != other:
                raise ValueError(
                    f"{op}: {name} must be the same on every rank of vocab_group, "
                    f"got {mine} on rank 0 and {other} on rank {rank}"
                )
    ranges = [(a, b) if b > a else (0, 0) for a, b in (answer["range"] for answer in answers)]
    at = 0
    for a, b in sorted(r for r in ranges if r[1] > r[0]):
        if a != at:
            at = -1
            break
        at = b
    if at <= 0:
        got = ", ".join(f"[{a}, {b})" for a, b in (answer["range"] for answer in answers))
        raise ValueError(
            f"{op}: the shards of vocab_group must cover a vocabulary from 0 on, without gap or "
            f"overlap; vocab_start and the columns of ranks 0, 1, ... say {got}"
        )
    return group, [bound for r in ranges for bound in r]


def _exchange(name: str, facts: dict[str, Any]) -> list[dict[str, Any]]:
    import torch
    import torch.distributed as dist

    from logitless.ops.shard import process_group

    group = process_group(name)
    text = json.dumps(facts).encode()
    assert len(text) <= MESSAGE, "a message must fit"
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    mine = torch.frombuffer(bytearray(text.ljust(MESSAGE)), dtype=torch.uint8).to(device)
    everyone = [torch.zeros_like(mine) for _ in range(group.size())]
    dist.all_gather(everyone, mine, group=group)
    return [json.loads(bytes(answer.cpu().tolist())) for answer in everyone]


def fingerprint(*arrays: Any) -> int:
    """A checksum of tensors on the CPU (None aside), so that ranks with other data are told apart.

    0 where it would wait for a device, or while torch.compile traces.
    """
    import torch

    total = 0
    for x in arrays:
        if x is None or torch.compiler.is_compiling() or x.device.type != "cpu":
            continue
        total = zlib.crc32(x.detach().contiguous().view(-1).view(torch.uint8).numpy(), total)
    return total


def head_facts(head: HeadOptions) -> tuple[tuple[str, Any], ...]:
    """What of the chain must be the same on every rank, as `Meeting.shard` takes it."""
    t = head.temperature
    return (
        ("temperature", float(t) if isinstance(t, (int, float)) else fingerprint(t)),
        ("softcap", head.cap),
        ("logit_scale", float(head.logit_scale)),
        ("whether there is a bias", head.bias is not None),
    )


def rows_facts(
    source: Any, targets: Any, mask: Any, shape: tuple[int, ...]
) -> tuple[tuple[str, Any], ...]:
    """The same of the rows: logits or hidden, and what is flat."""
    return (
        ("the dtype", str(source.dtype)),
        ("the shape of targets", [int(n) for n in shape]),
        ("targets (their checksum)", fingerprint(targets)),
        ("mask (its checksum)", -1 if mask is None else fingerprint(mask)),
    )
