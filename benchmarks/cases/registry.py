"""What is timed, and by whom."""

from __future__ import annotations

from benchmarks.cases import head, losses, overhead, rows
from benchmarks.cases.contenders.ours import OURS
from benchmarks.cases.contenders.peers import PEERS
from benchmarks.cases.contenders.plain import COMPILED, EAGER
from benchmarks.harness.case import Implementation

OPS = [*rows.OPS, *head.OPS, *losses.OPS, *overhead.OPS]
BY_NAME = {op.name: op for op in OPS}


def implementations(with_peers: bool) -> list[Implementation]:
    return [OURS, EAGER, COMPILED, *(PEERS if with_peers else [])]
