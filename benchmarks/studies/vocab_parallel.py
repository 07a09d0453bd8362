"""What a vocabulary in parts costs: two gloo ranks of one thread against one rank of two.

    python -m benchmarks.studies.vocab_parallel [--rows 1024] [--width 1024] [--vocab 151936]

Both have the same tokens, the same vocabulary and the same two cores, and take turns: what a call
takes beyond the one rank is agreement, exchange and products of half the width. Then what is sent,
by itself. Ranks on one machine send through its memory; between machines it takes longer.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import logitless as ll
from benchmarks.cases.peaked_head import peaked_head
from benchmarks.harness.case import Case
from logitless.backends import registry
from logitless.backends.row_kernels.rows import STATE, Rows
from logitless.backends.row_kernels.topk import TopK
from logitless.ops.rows.op import empty_states
from logitless.ops.sharding.exchange import check_consistent
from logitless.ops.sharding.shard import Shard
from logitless.ops.sharding.topk import finalize

WORLD, SAMPLED, REPEATS = 2, 64, 15
SPEC = ll.PolicyLossSpec(surrogate=ll.Unclipped(), entropy=ll.EntropyBonus(0.01))
Calls = dict[str, Callable[[], Any]]


def problem(case: Case, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """hidden, weight and targets of rows as peaked as a policy's."""
    n, width, vocab = case.rows, case.width, case.vocab
    hidden, weight = (torch.empty(size, width, dtype=case.torch_dtype) for size in (n, vocab))
    targets = torch.empty(n, dtype=torch.int64)
    if rank == 0:
        made = peaked_head(case)
        hidden, weight, targets = made.hidden, made.weight, made.targets
    for tensor in (hidden, weight, targets):
        dist.broadcast(tensor.view(torch.uint8), 0)
    return hidden, weight, targets


def head_calls(hidden: Tensor, weight: Tensor, targets: Tensor, **shard: Any) -> Calls:
    h, w = (x.detach().requires_grad_() for x in (hidden, weight))
    n = len(h)
    old, advantages, mask = torch.full((n,), -1.0), torch.linspace(-1, 1, n), torch.ones(n).bool()
    ids = torch.arange(SAMPLED)

    def score() -> None:
        with torch.no_grad():
            ll.linear_token_stats(h, w, targets, **shard)

    def train(**options: Any) -> None:
        h.grad = w.grad = None
        ll.linear_policy_loss(
            h, w, targets, old, advantages, mask, SPEC, **options, **shard
        ).loss.backward()

    def sample(**options: Any) -> None:
        ll.linear_sample(hidden[:SAMPLED], weight, seed=0, step=0, row_ids=ids, **options, **shard)

    return {
        "linear_token_stats, no gradient": score,
        "linear_policy_loss, forward and backward": train,
        "the same, tail_mass=1e-3": functools.partial(train, tail_mass=1e-3),
        f"linear_sample, {SAMPLED} rows": sample,
        "the same, top_p=0.9": functools.partial(sample, top_p=0.9),
    }


def exchanges(n: int, width: int, shard: Shard) -> Calls:
    """What those calls send, each by itself."""
    start, stop = shard.ranges[dist.get_rank()]
    state, partial = torch.empty(n, STATE, dtype=torch.float64), torch.zeros(n, width)
    empty_states(state)
    state[:, 0], state[:, 1] = 0.0, 1.0
    rows, kept = Rows(registry.get("cpu"), n, threads=1), TopK.empty(n, 64)

    def entries() -> None:
        kept.values[:] = torch.linspace(0, -9, kept.values.shape[1])
        kept.ids[:] = torch.arange(kept.ids.shape[1])
        kept.count.fill_(64)
        finalize(rows, state, kept, shard, torch.bfloat16)

    facts = tuple((f"fact {i}", i) for i in range(20))
    return {
        "the agreement": lambda: check_consistent("op", shard.group, start, stop - start, facts),
        f"states of {n} tokens": lambda: shard.merge(state.clone(), rows),
        f"64 entries of each of {n} tokens, merged": entries,
        f"the sum of d_hidden, [{n}, {width}]": lambda: shard.reduce_hidden(partial),
    }


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(together: Calls, alone: Calls) -> dict[str, list[tuple[float, float]]]:
    """Each turn's seconds of all ranks together, the slowest, and right after it of this one alone;
    `alone` is empty on other ranks than 0. The first turn warms up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in together}
    for turn in range(REPEATS + 1):
        for name, call in together.items():
            dist.barrier()
            taken = torch.tensor(seconds(call))
            dist.all_reduce(taken, dist.ReduceOp.MAX)
            other = 0.0
            if name in alone:
                torch.set_num_threads(WORLD)
                other = seconds(alone[name])
                torch.set_num_threads(1)
            if turn:
                found[name].append((float(taken), other))
    return found


def milliseconds(times: Iterable[float]) -> str:
    median = statistics.median(times) * 1e3
    return f"{median:.0f} ms" if median >= 10 else f"{median:.1f} ms"


def quartiles(ratios: list[float]) -> str:
    """Of turns, whose two runs are neighbours: a machine that slows down slows both."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def as_rank(rank: int, store: str, case: Case) -> None:
    torch.set_num_threads(1)
    init = Path(store).as_uri()
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=WORLD)
    hidden, weight, targets = problem(case, rank)
    half = case.vocab // WORLD
    bounds = [0, half, half, case.vocab]
    start, stop = bounds[2 * rank : 2 * rank + 2]
    group = dist.distributed_c10d._get_default_group()
    own = weight[start:stop].clone()
    together = head_calls(hidden, own, targets, vocab_group=group, vocab_start=start)
    alone = head_calls(hidden, weight, targets) if rank == 0 else {}
    if rank:
        del weight
    results = measure(together, alone)
    sent = exchanges(case.rows, case.width, Shard(group.group_name, bounds))
    times = measure(sent, {})
    if rank == 0:
        print("| call | one rank, 2 threads | 2 ranks, a thread each | ratio |\n|---|---|---|---|")
        for name, turns in results.items():
            ours, one = zip(*turns, strict=True)
            ratio = quartiles([a / b for a, b in turns])
            print(f"| {name} | {milliseconds(one)} | {milliseconds(ours)} | {ratio} |")
        print("\n| sent | time |\n|---|---|")
        for name, turns in times.items():
            print(f"| {name} | {milliseconds(ours for ours, _ in turns)} |")
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rows", 1024), ("width", 1024), ("vocab", 151_936)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    case = Case(chosen.rows, chosen.vocab, chosen.width, chosen.dtype)
    if chosen.rank is not None:
        as_rank(chosen.rank, chosen.store, case)
        return
    with tempfile.TemporaryDirectory() as folder:
        mine = ["--store", str(Path(folder) / "store"), *sys.argv[1:]]
        command = [sys.executable, "-m", "benchmarks.studies.vocab_parallel", *mine]
        ranks = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(WORLD)]
        sys.exit(max(rank.wait() for rank in ranks))


if __name__ == "__main__":
    main()
