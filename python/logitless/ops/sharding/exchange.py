"""What the ranks of vocab_group tell each other at the start of a call."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist

from logitless.ops.sharding.rendezvous import Facts
from logitless.ops.sharding.shard import process_group

# Bytes of a rank's message, and letters of the error in it: JSON writes up to six bytes for one.
MESSAGE = 4096
LONGEST_ERROR = 600


def report_failure(group: str, error: str) -> None:
    """Say that this rank failed, to ranks that are in, or on their way to, `check_consistent`."""
    _exchange(group, {"error": error[:LONGEST_ERROR]})


# A compiled graph holds the answer as a constant: it follows from what the graph is guarded on, and
# ranks that run one program trace at the same calls.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def check_consistent(
    op: str, group: str, start: int, width: int, same: Facts
) -> tuple[str, list[int]]:
    """Group and bounds of a `Shard`: after every rank has said what it has and is asked for."""
    mine = {"range": [start, start + width], "same": [["the op", op], *map(list, same)]}
    answers = _exchange(group, mine)
    for rank, answer in enumerate(answers):
        if "error" in answer:
            raise RuntimeError(f"{op}: rank {rank} of vocab_group failed: {answer['error']}")
        # Of another op there may be more or fewer, but its name comes first.
        for (name, first), (_, other) in zip(answers[0]["same"], answer["same"], strict=False):
            if first != other:
                raise ValueError(
                    f"{op}: {name} must be the same on every rank of vocab_group, "
                    f"got {first} on rank 0 and {other} on rank {rank}"
                )
    ranges = [tuple(answer["range"]) for answer in answers]
    _check_ranges(op, ranges)
    return group, [bound for a, b in ranges for bound in ((a, b) if b > a else (0, 0))]


def _check_ranges(op: str, ranges: list[tuple[int, ...]]) -> None:
    ordered = sorted((a, b) for a, b in ranges if b > a)
    ends = [0, *(b for _, b in ordered)]
    if not ordered or any(a != end for (a, _), end in zip(ordered, ends, strict=False)):
        got = ", ".join(f"[{a}, {b})" for a, b in ranges)
        raise ValueError(
            f"{op}: the shards of vocab_group must cover a vocabulary from 0 on, without gap or "
            f"overlap; vocab_start and the columns of ranks 0, 1, ... say {got}"
        )


def _exchange(name: str, facts: dict[str, Any]) -> list[dict[str, Any]]:
    group = process_group(name)
    text = json.dumps(facts).encode()
    assert len(text) <= MESSAGE, "a message must fit"
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    mine = torch.frombuffer(bytearray(text.ljust(MESSAGE)), dtype=torch.uint8).to(device)
    everyone = [torch.zeros_like(mine) for _ in range(group.size())]
    dist.all_gather(everyone, mine, group=group)
    return [json.loads(bytes(answer.cpu().tolist())) for answer in everyone]
