"""Whole steps of TRL's GRPO trainer, as it is and with this library."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from benchmarks.trainers.spans import (
    BESIDE,
    GENERATION,
    OPTIMIZER,
    REST,
    SCORING,
    UPDATE,
    Meter,
    Step,
    watch_body,
)
from benchmarks.trainers.trl_batch import rewards, trainer_of
from benchmarks.trainers.workload import Shape, Workload, shape_of


def make_trainer(way: str, work: Workload, folder: str) -> Any:
    import trl
    from datasets import Dataset

    model, tokenizer = work.make()
    texts: list[Any] = work.texts()
    if work.is_chat:
        texts = [[{"role": "user", "content": text}] for text in texts]
    args = trl.GRPOConfig(
        output_dir=folder, max_steps=(1 + work.steps) * work.minibatches,
        per_device_train_batch_size=work.answers // work.minibatches,
        num_generations=work.group, steps_per_generation=work.minibatches,
        gradient_accumulation_steps=1, max_completion_length=work.length, loss_type="grpo",
        learning_rate=1e-5, lr_scheduler_type="constant", optim="adamw_torch_fused",
        bf16=False, gradient_checkpointing=False, use_cpu=work.device == "cpu",
        disable_dropout=True, report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    kind, made_in = trainer_of(way)
    with made_in:
        return kind(
            model=model, args=args, reward_funcs=rewards, processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": texts}),
        )  # fmt: skip


def watch(trainer: Any, work: Workload, meter: Meter) -> None:
    """Times the trainer's methods where they are called."""
    from transformers import TrainerCallback

    spans = meter.spans
    step, score = trainer.training_step, trainer._get_per_token_logps_and_entropies

    def training_step(*args: Any, **options: Any) -> Any:
        with spans.of(UPDATE):
            loss = step(*args, **options)
        # up to the end of the optimizer step there is nothing else
        spans.become(OPTIMIZER, BESIDE)
        return loss

    def scores(*args: Any, **options: Any) -> Any:
        with spans.of(None if torch.is_grad_enabled() else SCORING):
            return score(*args, **options)

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step % work.minibatches == 0:
                meter.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            spans.become(REST, BESIDE)
            if state.global_step % work.minibatches == 0:
                meter.end()

    watch_body(trainer.model.base_model, spans)
    trainer.training_step = training_step
    trainer._get_per_token_logps_and_entropies = scores
    # rewards and padding, but for what is below
    trainer._prepare_inputs = spans.within(REST, trainer._prepare_inputs)
    trainer._generate_single_turn = spans.within(GENERATION, trainer._generate_single_turn)
    trainer.add_callback(Watch())


def run(way: str, work: Workload) -> tuple[list[Step], Shape]:
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(way, work, folder)
        meter = Meter(work.device)
        watch(trainer, work, meter)
        trainer.train()
    made = trainer._buffered_inputs
    prompts = sum(int(x["prompt_mask"].sum()) for x in made) // work.group
    tokens = sum(int(x["completion_mask"].sum()) for x in made)
    return meter.steps[1:], shape_of(trainer.model, prompts, tokens)
