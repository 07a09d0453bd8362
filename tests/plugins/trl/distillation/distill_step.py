"""The gradients of a distillation trainer's micro-batch on one of several ranks.

python -m tests.plugins.trl.distillation.distill_step RANK WORLD PORT MODEL TEACHER KIND ENGINE OUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# of trl.experimental; "distillation" is TRL's own
ARGS: dict[str, dict[str, Any]] = {
    "gkd": {"beta": 0.5},
    "sdft": {"distillation_mode": "full_logits", "distillation_topk": None},
}


def gradients(
    rank: int, world: int, folder: Path, teacher: Path, kind: str, engine: str
) -> dict[str, Any]:
    """Of the whole batch, whose rows the ranks share, with `install()`."""
    from torch.nn.parallel import DistributedDataParallel

    from logitless.integrations.trl import install
    from tests.plugins.trl.distillation.distillers import batch_of, distiller
    from tests.plugins.trl.distillation.heads import distillation_trainer
    from tests.plugins.trl.fsdp2 import shard
    from tests.plugins.trl.setting import generation, plain_model, quiet

    if kind == "distillation":
        models = (plain_model(folder), plain_model(teacher))
        trainer = distillation_trainer(folder, *models, beta=0.5)
        inputs = generation(plain_model(folder))
    else:
        trainer = distiller(kind, folder, teacher, **ARGS[kind])
        inputs = batch_of(kind, trainer)
    assert trainer.accelerator.num_processes == world
    # GKD's loss is a sum over the tokens of all ranks, which they average; SDFT's is a mean of rows
    options, scale = {}, 1
    if kind == "gkd":
        options, scale = {"num_items_in_batch": (inputs["labels"] != -100).sum()}, world
    inputs = {k: x if x.dim() == 0 else x.tensor_split(world)[rank] for k, x in inputs.items()}
    model = bare = trainer.model
    if world > 1 and engine == "ddp":
        model = DistributedDataParallel(bare)
    elif world > 1:
        shard(bare, engine)
    trainer.current_gradient_accumulation_steps = 1
    bare.train()
    with quiet(), install():
        (scale * trainer.compute_loss(model, inputs, **options)).backward()
    found = {name: p.grad for name, p in bare.named_parameters()}
    return {k: x.full_tensor() if hasattr(x, "full_tensor") else x for k, x in found.items()}


def main() -> None:
    import torch

    rank, world, port = map(int, sys.argv[1:4])
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    found = gradients(rank, world, *map(Path, sys.argv[4:6]), *sys.argv[6:8])
    if rank == 0:
        torch.save(found, sys.argv[8])
    # or a thread of gloo may outlive what it works for
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
