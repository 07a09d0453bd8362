"""One optimizer step on one of several ranks: a GRPO trainer under DDP, a model's head under FSDP2.

python -m tests.plugins.trl.rank_step RANK WORLD PORT MODEL WAY LOSS ENGINE OUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

ROWS = 16


def rows_of(rank: int, world: int, folder: Path) -> dict[str, Any]:
    from tests.plugins.trl.setting import generation, plain_model

    made = generation(plain_model(folder), ROWS, cut=(9, 6, 0, 4, 8))
    return {k: v if v.dim() == 0 else v.tensor_split(world)[rank] for k, v in made.items()}


def trained(rank: int, world: int, folder: Path, way: str, loss: str) -> dict[str, Any]:
    """How far the weights moved at a rate of 1, which is the gradient."""
    from tests.plugins.trl.setting import grpo, plain_model, quiet

    args: dict[str, Any] = {
        "per_device_train_batch_size": ROWS // world // 2, "gradient_accumulation_steps": 2,
        "num_iterations": 2, "max_steps": 1, "optim": "sgd", "learning_rate": 1.0,
        "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "loss_type": "dapo",
    }  # fmt: skip
    trainer = grpo(way, folder, **args, trainer_options={"loss": loss} if loss else {})
    assert trainer.accelerator.num_processes == world
    made = rows_of(rank, world, folder)
    trainer._generate_and_score_completions = lambda _: made
    with quiet():
        trainer.train()
    now = dict(trainer.model.named_parameters())
    start = plain_model(folder).named_parameters()
    logs = next(row for row in trainer.state.log_history if "loss" in row)
    return {
        "gradients": {name: (p - now[name]).detach() for name, p in start},
        "logs": {k: v for k, v in logs.items() if k != "step_time"},
    }


def sharded(rank: int, world: int, folder: Path, way: str, engine: str) -> dict[str, Any]:
    """Gradients of log-probs ("head") or of a loss ("loss"), averaged over ranks by FSDP2."""
    import torch

    import logitless as ll
    from logitless.integrations.trl.arrays import loss_arrays, valid
    from logitless.integrations.trl.head import add_head
    from logitless.integrations.trl.scorers import LossScorer
    from tests.plugins.trl.fsdp2 import shard
    from tests.plugins.trl.setting import plain_model

    model = plain_model(folder)
    add_head(model)
    if world > 1:
        shard(model, engine)
    made = rows_of(rank, world, folder)
    ids, mask = (
        torch.cat((made[f"prompt_{x}"], made[f"completion_{x}"]), dim=1) for x in ("ids", "mask")
    )
    if way == "head":
        labels = ids.masked_fill(mask == 0, -100)
        out = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        loss = world * (out.log_probs * torch.arange(out.log_probs.shape[1])).sum()
    else:
        spec, tokens = ll.presets["ppo"], int(made["num_items_in_batch"])
        options = {"spec": spec, "totals": ll.Totals(tokens, 0, world), "grad_scale": float(world)}
        scorer = LossScorer(made["completion_ids"], loss_arrays(spec, made, valid(made)), options)
        loss = model(input_ids=ids, attention_mask=mask, fused_lm_head=scorer).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {
        "gradients": {k: x.full_tensor() if world > 1 else x for k, x in gradients.items()},
        "logs": {},
    }


def main() -> None:
    given = sys.argv[1:]
    rank, world, port = map(int, given[:3])
    folder, way, loss, engine, out = Path(given[3]), *given[4:7], Path(given[7])
    if world > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    import torch

    if engine == "ddp":
        found = trained(rank, world, folder, way, loss)
    else:
        if world > 1:
            torch.distributed.init_process_group("gloo")
        found = sharded(rank, world, folder, way, engine)
    if rank == 0:
        torch.save(found, out)
    if world > 1:
        # or a thread of gloo may outlive what it works for
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
