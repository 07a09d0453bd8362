"""One of two gloo ranks: the head under DDP and FSDP2 against one process with the whole batch.

Run by test_sharded.py; docs/sharded.md shows the same calls.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import logitless as ll

B, T, H, V = 8, 5, 16, 2500
WORLD = 2
SPEC = dataclasses.replace(
    ll.presets["kl_cov"], control=ll.KLCov(0.2, 1.0), entropy=ll.EntropyBonus(0.01)
)


class Policy(nn.Module):
    """Calls the head where its weight is whole: inside forward."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(V, H)
        self.body = nn.Linear(H, H)
        self.lm_head = nn.Linear(H, V, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(
        self, batch: dict[str, Tensor], statistics: ll.BatchStats, grad_scale: float
    ) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.body(self.embed(batch["prompt"])))
        out = ll.linear_policy_loss(
            hidden,
            self.lm_head.weight,
            batch["targets"],
            batch["old_logp"],
            batch["advantages"],
            batch["mask"],
            SPEC,
            token_ids=batch["token_ids"],
            batch=statistics,
            grad_scale=grad_scale,
        )
        return out.loss, out.logp


def make_batch() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "prompt": torch.randint(0, V, (B, T), generator=g),
        "targets": torch.randint(0, V, (B, T), generator=g),
        "old_logp": -7.5 - torch.rand(B, T, generator=g),
        "advantages": torch.randn(B, T, generator=g),
        "mask": torch.rand(B, T, generator=g) > 0.3,
        "token_ids": ll.token_ids(torch.arange(B), torch.arange(T), T),
    }


def statistics_of(batch: dict[str, Tensor], group: object) -> ll.BatchStats:
    return ll.batch_stats(
        batch["old_logp"], batch["advantages"], batch["mask"], SPEC,
        token_ids=batch["token_ids"], data_group=group, seed=0, step=0,
    )  # fmt: skip


def whole(tied: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and gradients of one process on the whole batch."""
    policy, batch = Policy(tied), make_batch()
    loss, _ = policy(batch, statistics_of(batch, None), 1.0)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in policy.named_parameters()}


def check(loss: Tensor, found: dict[str, Tensor], tied: bool) -> None:
    """The ranks' losses sum to the whole's (grad_scale undone), and gradients are the whole's."""
    total = loss.detach().clone() / WORLD
    dist.all_reduce(total)
    expected, gradients = whole(tied)
    torch.testing.assert_close(total, expected)
    assert found.keys() == gradients.keys()
    for name, gradient in found.items():
        assert gradients[name].abs().max() > 0
        torch.testing.assert_close(gradient, gradients[name], msg=lambda m, n=name: f"{n}: {m}")


def ddp(mine: dict[str, Tensor], statistics: ll.BatchStats, tied: bool) -> None:
    policy = Policy(tied)
    wrapped = nn.parallel.DistributedDataParallel(policy)
    total = torch.zeros(())
    # the rank's rows in two micro-batches; only the last one reduces
    for i, rows in enumerate((slice(0, 1), slice(1, None))):
        part = {name: x[rows] for name, x in mine.items()}
        wrapped.require_backward_grad_sync = i == 1
        loss, _ = wrapped(part, statistics, float(WORLD))
        loss.backward()
        total += loss.detach()
    check(total, {name: p.grad for name, p in policy.named_parameters()}, tied)


def fsdp2(mine: dict[str, Tensor], statistics: ll.BatchStats, tied: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    policy: Any = Policy(tied)
    fully_shard(policy.body, mesh=mesh)
    # embedding and head belong to the root, whose weights are gathered all through its forward
    fully_shard(policy, mesh=mesh)
    loss, _ = policy(mine, statistics, float(WORLD))
    loss.backward()
    check(loss, {name: p.grad.full_tensor() for name, p in policy.named_parameters()}, tied)

    # outside: a DTensor is refused with what to do, and both things it says to do work
    policy.reshard()
    weight = policy.lm_head.weight
    hidden = torch.zeros(*mine["targets"].shape, H)
    message = refusal(hidden, weight, mine["targets"])
    for expected in (
        "weight is a DTensor, of which this rank holds",
        "logitless.gathered(weight)",
        "lm_head.unshard()",
    ):
        assert expected in message, message
    gathered = ll.linear_token_stats(hidden, ll.gathered(weight), mine["targets"])
    policy.unshard()
    unsharded = ll.linear_token_stats(hidden, policy.lm_head.weight, mine["targets"])
    policy.reshard()
    assert torch.equal(gathered.logp, unsharded.logp)


def refusal(*arguments: Tensor) -> str:
    try:
        ll.linear_token_stats(*arguments)
    except TypeError as error:
        return str(error)
    raise AssertionError("a sharded weight was taken")


def main() -> None:
    kind, rank, store, tied = (
        sys.argv[1],
        int(sys.argv[2]),
        Path(sys.argv[3]),
        sys.argv[4] == "tied",
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=rank, world_size=WORLD)
    batch = make_batch()
    # uneven on purpose: 3 and 5 sequences
    rows = slice(0, 3) if rank == 0 else slice(3, B)
    mine = {name: x[rows] for name, x in batch.items()}
    statistics = statistics_of(mine, dist.group.WORLD)
    {"ddp": ddp, "fsdp2": fsdp2}[kind](mine, statistics, tied)
    dist.barrier()
    dist.destroy_process_group()
    # gloo's threads may outlive the group, and at a normal exit abort the process once in a while
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
