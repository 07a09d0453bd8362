"""One of two gloo ranks: training through ll.head_of inside DDP and FSDP2, against one process that
has the tokens of both. Run by test_head_of_ranks.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import Gemma2Config, Gemma2ForCausalLM

import logitless as ll

V = 101


def make(tied: bool) -> Any:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, final_logit_softcapping=2.0,
        initializer_range=0.3, tie_word_embeddings=tied,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).double()


def tokens(rank: int) -> Tensor:
    return torch.randint(3, V, (2, 7), generator=torch.Generator().manual_seed(rank))


def single(tied: bool, ranks: int) -> dict[str, Tensor]:
    """Gradients by full logits."""
    model = make(tied)
    for rank in range(ranks):
        ids = tokens(rank)
        logp = model(input_ids=ids).logits.log_softmax(-1).gather(-1, ids[..., None])
        (logp.mean() / ranks).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def check(model: Any, tied: bool) -> None:
    expected = single(tied, dist.get_world_size())
    head = ll.head_of(model)
    assert head.softcap == 2.0
    ids = tokens(dist.get_rank())
    for _ in range(2):
        model.zero_grad()
        hidden = head.hidden(model, input_ids=ids)
        weight = ll.gathered(head.weight)
        ll.linear_token_stats(hidden, weight, ids, **head.options).logp.mean().backward()
        found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            torch.testing.assert_close(whole, expected[name], msg=lambda m, n=name: f"{n}: {m}")


def main() -> None:
    rank, ranks, store = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    for tied in (False, True):
        for ways in ({}, {"find_unused_parameters": True}, {"static_graph": True}):
            check(DistributedDataParallel(make(tied), **ways), tied)
        model = make(tied)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        check(model, tied)
    model = make(tied=False)
    # a group of its own, as trainers give an untied head
    fully_shard(model.lm_head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    check(model, tied=False)
    flat = FullyShardedDataParallel(make(tied=False), device_id=torch.device("cpu"))
    with pytest.raises(TypeError, match="head_of: FullyShardedDataParallel keeps"):
        ll.head_of(flat)
    dist.barrier()
    dist.destroy_process_group()
    # gloo's threads may outlive the group, and at a normal exit abort the process once in a while
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
