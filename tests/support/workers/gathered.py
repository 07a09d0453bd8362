"""One of several gloo ranks: gradients through ll.gathered against one process with all tokens.

Run by test_sharded.py. Every rank has its own tokens, and engines average: the loss of a rank is a
mean over as many tokens as any other has.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import logitless as ll

# V is a multiple of no number of ranks; STEPS micro-batches
B, T, H, V, STEPS = 2, 3, 16, 2503, 2


class Model(nn.Module):
    """Gives hidden states; the head is called by who calls the model, on a sharded weight."""

    def __init__(self, tied: bool, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(V, H)
        self.body = nn.Linear(H, H)
        self.lm_head = nn.Linear(H, V, bias=bias)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, prompt: Tensor) -> Tensor:
        hidden: Tensor = torch.tanh(self.body(self.embed(prompt)))
        return hidden


def loss_of(model: Model, prompt: Tensor, targets: Tensor) -> Tensor:
    hidden, head = model(prompt), model.lm_head
    bias = None if head.bias is None else ll.gathered(head.bias)
    stats = ll.linear_token_stats(hidden, ll.gathered(head.weight), targets, bias=bias)
    return (-stats.logp - 0.1 * stats.entropy).mean()


def tokens(rank: int, step: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(100 * step + rank)
    prompt, targets = torch.randint(0, V, (2, B, T), generator=g)
    return prompt, targets


def check_gradients(model: nn.Module, expected: dict[str, Tensor]) -> None:
    found = {name: p.grad for name, p in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert isinstance(gradient, DTensor), name
        weight: Any = model.get_parameter(name)
        assert gradient.placements == weight.placements, name
        assert expected[name].abs().max() > 0
        whole = gradient.full_tensor()
        torch.testing.assert_close(whole, expected[name], msg=lambda m, n=name: f"{n}: {m}")


def single(tied: bool, bias: bool, ranks: int) -> dict[str, Tensor]:
    """Gradients of one process that has the tokens of all ranks."""
    model = Model(tied, bias)
    for step in range(STEPS):
        for rank in range(ranks):
            (loss_of(model, *tokens(rank, step)) / ranks).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def own_group(model: Model, mesh: DeviceMesh) -> None:
    """The head's own forward never runs: it stays sharded, and FSDP2 never sees its gradient."""
    fully_shard(model.body, mesh=mesh)
    fully_shard(model.lm_head, mesh=mesh)
    fully_shard(model, mesh=mesh)


def root_group(model: Model, mesh: DeviceMesh) -> None:
    """Embedding and head are gathered for the model's forward and sharded again when the head is
    called: a tied weight has one gradient from FSDP2 and one from here."""
    fully_shard(model.body, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def kept_whole(model: Model, mesh: DeviceMesh) -> None:
    """FSDP2's default for the root: the weight is still whole after the forward, and passes."""
    fully_shard(model, mesh=mesh)


def check_engine(
    shard: Callable[[Model, DeviceMesh], None],
    mesh: DeviceMesh,
    *,
    tied: bool = False,
    bias: bool = False,
) -> None:
    model, rank = Model(tied, bias), dist.get_rank()
    shard(model, mesh)
    for step in range(STEPS):
        loss_of(model, *tokens(rank, step)).backward()
    check_gradients(model, single(tied, bias, dist.get_world_size()))


def check_sum(mesh: DeviceMesh) -> None:
    """Without FSDP2's division the gradient is the sum over ranks, of head and body alike."""
    ranks = dist.get_world_size()
    model: Any = Model(tied=False, bias=False)
    own_group(model, mesh)
    for module in (model, model.body, model.lm_head):
        module.set_gradient_divide_factor(1.0)
        # gloo has no reduction that scales
        module.set_force_sum_reduction_for_comms(True)
    for step in range(STEPS):
        prompt, targets = tokens(dist.get_rank(), step)
        weight = ll.gathered(model.lm_head.weight, reduce="sum")
        stats = ll.linear_token_stats(model(prompt), weight, targets)
        ((-stats.logp - 0.1 * stats.entropy).mean() / ranks).backward()
    check_gradients(model, single(False, False, ranks))


def check_tensor_parallel(mesh: DeviceMesh) -> None:
    """The head cut by tensor parallelism, and each part of it by FSDP2: ranks of a row of the mesh
    have the same tokens."""
    model = Model(tied=False, bias=True)
    parallelize_module(model, mesh["tp"], {"lm_head": ColwiseParallel()})
    fully_shard(model.lm_head, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"], ignored_params={*model.body.parameters()})
    for step in range(STEPS):
        loss_of(model, *tokens(mesh["dp"].get_local_rank(), step)).backward()
    expected = single(False, True, mesh["dp"].size())
    for name in ("weight", "bias"):
        gradient: Any = model.lm_head.get_parameter(name).grad
        torch.testing.assert_close(gradient.full_tensor(), expected[f"lm_head.{name}"])


def placements(mesh: DeviceMesh) -> Iterator[tuple[Any, ...]]:
    if mesh.ndim == 1:
        yield from ((Shard(0),), (Shard(1),), (Replicate(),))
    else:
        yield from ((Replicate(), Shard(0)), (Shard(0), Shard(0)), (Shard(0), Shard(1)))


def check_same_tokens(mesh: DeviceMesh) -> None:
    """Tensor parallel ranks have the same tokens, so each has the whole gradient already."""
    g = torch.Generator().manual_seed(7)
    plain, hidden = torch.randn(V, H, generator=g), torch.randn(B, H, generator=g)
    targets = torch.arange(B)
    whole = plain.clone().requires_grad_()
    ll.linear_token_stats(hidden, whole, targets).logp.sum().backward()
    for layout in placements(mesh):
        weight = nn.Parameter(distribute_tensor(plain, mesh, layout))
        full = ll.gathered(weight)
        assert type(full) is Tensor
        assert torch.equal(full, plain)
        ll.linear_token_stats(hidden, full, targets).logp.sum().backward()
        gradient: Any = weight.grad
        assert gradient.placements == layout
        torch.testing.assert_close(gradient.full_tensor(), whole.grad)
        assert not ll.gathered(weight.detach()).requires_grad


def check_refusals(mesh: DeviceMesh) -> None:
    plain, hidden, targets = torch.randn(V, H), torch.randn(B, H), torch.arange(B)
    weight, bias, states = (
        distribute_tensor(x, mesh, [Shard(0)] * mesh.ndim) for x in (plain, torch.randn(V), hidden)
    )
    noise = {"seed": 0, "step": 0, "row_ids": targets}
    for name, call in (
        ("weight", lambda: ll.linear_token_stats(hidden, weight, targets)),
        ("bias", lambda: ll.linear_token_stats(hidden, plain, targets, bias=bias)),
        ("bias", lambda: ll.linear_sample(hidden, plain, bias=bias, **noise)),
        ("hidden", lambda: ll.linear_token_stats(states, plain, targets)),
    ):
        try:
            call()
        except TypeError as error:
            message = str(error)
        else:
            raise AssertionError(f"a sharded {name} was taken")
        assert f"{name} is a DTensor, of which this rank holds" in message, message
        assert name == "hidden" or f"logitless.gathered({name})" in message, message


def main() -> None:
    rank, ranks, store = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=rank, world_size=ranks)
    if ranks == 4:
        # replicas of shards
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        check_engine(own_group, mesh, bias=True)
        check_tensor_parallel(init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp")))
    else:
        mesh = init_device_mesh("cpu", (ranks,))
        for bias in (False, True):
            check_engine(own_group, mesh, bias=bias)
            for shard in (root_group, kept_whole):
                for tied in (False, True):
                    check_engine(shard, mesh, tied=tied, bias=bias)
        check_sum(mesh)
    check_same_tokens(mesh)
    check_refusals(mesh)
    dist.barrier()
    dist.destroy_process_group()
    # gloo's threads may outlive the group, and at a normal exit abort the process once in a while
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
