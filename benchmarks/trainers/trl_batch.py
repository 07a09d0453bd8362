"""A micro-batch of TRL's GRPO trainer, loss and backward.

"trl" is TRL's trainer, "head" the same made under `install()`, "small" under one with a budget,
"loss" this library's GRPOTrainer.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from benchmarks.harness.case import Call
from benchmarks.trainers.models import reward, toy_model, toy_tokenizer
from benchmarks.trainers.sizes import Sizes

NAME = "TRL"
BUDGET = "64MiB"
WAYS = {
    "trl": "TRL",
    "head": "`install()`",
    "small": f'`install(memory_budget="{BUDGET}")`',
    "loss": "`GRPOTrainer`",
}


def trainer_of(way: str) -> tuple[Any, Any]:
    """The class of the trainer, and the context that it is made in."""
    import trl

    from logitless.integrations.trl import GRPOTrainer, install

    kind = GRPOTrainer if way == "loss" else trl.GRPOTrainer
    budget = BUDGET if way == "small" else None
    installed = way in ("head", "small")
    return kind, install(memory_budget=budget) if installed else contextlib.nullcontext()


def rewards(completions: list[Any], **_: Any) -> list[float]:
    """Of texts, or of the messages of a chat."""
    return [reward(x if isinstance(x, str) else x[0]["content"]) for x in completions]


def make_trainer(way: str, sizes: Sizes, folder: str) -> Any:
    import trl
    from datasets import Dataset

    args = trl.GRPOConfig(
        output_dir=folder, per_device_train_batch_size=sizes.rows, num_generations=sizes.rows,
        bf16=False, gradient_checkpointing=False, report_to="none",
        use_cpu=sizes.device == "cpu", disable_dropout=True,
    )  # fmt: skip
    kind, made_in = trainer_of(way)
    with made_in:
        trainer = kind(
            model=toy_model(sizes.vocab, sizes.hidden), args=args, reward_funcs=rewards,
            # nothing is generated
            processing_class=toy_tokenizer(8),
            train_dataset=Dataset.from_dict({"prompt": ["w3"] * sizes.rows}),
        )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def make_inputs(sizes: Sizes) -> dict[str, Any]:
    """Completions of equal length, near the policy that made them."""
    g = torch.Generator().manual_seed(1)
    shape = (sizes.rows, sizes.length)
    return {
        "prompt_ids": torch.randint(2, sizes.vocab, (sizes.rows, sizes.prompt), generator=g),
        "prompt_mask": torch.ones(sizes.rows, sizes.prompt, dtype=torch.int64),
        "completion_ids": torch.randint(2, sizes.vocab, shape, generator=g),
        "completion_mask": torch.ones(shape, dtype=torch.int64),
        "advantages": torch.randn(sizes.rows, generator=g),
        "num_items_in_batch": torch.tensor(sizes.rows * sizes.length),
        "old_per_token_logps": -torch.tensor(float(sizes.vocab)).log()
        + 0.1 * torch.randn(shape, generator=g),
    }


def call(way: str, sizes: Sizes, folder: str) -> Call:
    trainer = make_trainer(way, sizes, folder)
    inputs = {k: x.to(trainer.accelerator.device) for k, x in make_inputs(sizes).items()}

    def run(_: None) -> float:
        loss = trainer._compute_loss(trainer.model, inputs)
        trainer.accelerator.backward(loss)
        return float(loss)

    return Call(run, prepare=lambda: trainer.model.zero_grad(set_to_none=True))
