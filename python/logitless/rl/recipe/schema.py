"""A recipe as frozen dataclasses: keys with types, defaults and ranges, and what must fit together.

An error names the key as the YAML file spells it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from logitless.rl.recipe.data import EvaluationRecipe, RolloutRecipe, TaskRecipe, WarmupRecipe
from logitless.rl.recipe.keys import (
    REQUIRED,
    SEED,
    SHARE_ABOVE_0,
    at_least,
    check_ranges,
    key,
    within,
)
from logitless.rl.recipe.model import LoraRecipe, ModelRecipe
from logitless.rl.recipe.training import (
    DistributedRecipe,
    LossRecipe,
    ReferenceRecipe,
    UpdateRecipe,
)

# The folder of the warm-up's checkpoint, beside those of the methods.
WARMUP = "warmup"


@dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on."""

    methods: dict[str, LossRecipe] = key(
        REQUIRED,
        "The methods, each by a name of letters, digits, - and _, which is also a folder's. All "
        "have the same start.",
    )
    seed: int = key(0, "Of all that is random.", SEED)
    seeds: list[int] = key(
        list,
        "In place of one seed several: every method is trained once with each, in a folder of its "
        "own, from what this seed makes of model and warm-up; numbers get a mean and a spread.",
        "no two alike",
    )
    steps: int = key(40, "RL steps of each method.", at_least(1))
    entropy_change_every: int = key(
        10,
        "Every k-th step also gets its predicted and measured entropy change; 0: never.",
        at_least(0),
    )
    entropy_change_share: float = key(
        0.25,
        "The share of a step's answers that both are of, from every prompt where there are enough; "
        "`entropy_change_error` in the metrics is the standard error of that sample.",
        SHARE_ABOVE_0,
    )
    checkpoint_every: int = key(20, "Steps from one checkpoint to the next.", at_least(1))
    checkpoint_keep: int = key(
        2,
        "How many checkpoints a method keeps, the newest: where the last cannot be read, a run "
        "goes on from the one before.",
        at_least(1),
    )
    show_answers: int = key(
        2,
        "Answers to a step's first prompt, from the best to the worst, that the terminal shows now "
        "and then and the report token by token; completions.jsonl has all answers in every case.",
        at_least(0),
    )
    log_to: list[Literal["tensorboard", "trackio", "wandb"]] = key(
        list,
        "Who is told the metrics of every step and evaluation, beside the JSON lines; each is an "
        "extra of this package, `logitless[tensorboard]` and so on.",
        "`tensorboard`, `trackio`, `wandb`, no two alike",
    )
    log_project: str = key("logitless", "The project of the runs at trackio and wandb.")
    compare_repeats: int = key(
        0, "Repeats of the comparison with full logits; 0: no comparison.", at_least(0)
    )
    notes: list[str] = key(
        list, "Sentences for the report, which a reader of this recipe's numbers must know."
    )
    model: ModelRecipe = field(default_factory=ModelRecipe)
    lora: LoraRecipe = field(default_factory=LoraRecipe)
    task: TaskRecipe = field(default_factory=TaskRecipe)
    warmup: WarmupRecipe = field(default_factory=WarmupRecipe)
    rollout: RolloutRecipe = field(default_factory=RolloutRecipe)
    update: UpdateRecipe = field(default_factory=UpdateRecipe)
    reference: ReferenceRecipe = field(default_factory=ReferenceRecipe)
    distributed: DistributedRecipe = field(default_factory=DistributedRecipe)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)

    def __post_init__(self) -> None:
        check_ranges(self, "")
        sequences = self.rollout.prompts * self.rollout.group
        if sequences < self.update.minibatches * self.update.micro_batches:
            raise ValueError(
                f"recipe: {sequences} sequences a step (rollout.prompts * rollout.group) cannot "
                f"fill update.minibatches = {self.update.minibatches} of update.micro_batches = "
                f"{self.update.micro_batches}"
            )
        if self.update.falls_until_the_end and self.steps <= self.update.lr_warmup:
            raise ValueError(
                f"recipe key 'update.lr_warmup' must be below steps = {self.steps} with "
                f"update.lr_schedule={self.update.lr_schedule}, got {self.update.lr_warmup}"
            )
        if self.evaluation.file is not None and self.task.prompts is None:
            raise ValueError(
                "recipe key 'evaluation.file' needs task.prompts, got "
                f"evaluation.file={self.evaluation.file} with task.name={self.task.name}"
            )
        if self.rollout.truncation and self.update.tail_mass:
            names = ", ".join(f"rollout.{name}" for name in self.rollout.truncation)
            raise ValueError(
                f"recipe key 'update.tail_mass' must be 0 with {names}: a row's gradient is that "
                f"of the tokens it was drawn from; got {self.update.tail_mass}"
            )
        if self.compare_repeats and self.model.device != "cpu":
            raise ValueError(
                f"recipe key 'compare_repeats' must be 0 with model.device={self.model.device}: a "
                f"comparison measures the host's memory; got {self.compare_repeats}"
            )
        if len(set(self.log_to)) < len(self.log_to):
            raise ValueError(f"recipe key 'log_to' must have no two alike, got {self.log_to}")
        self._check_lora()
        self._check_seeds()
        for name, method in self.methods.items():
            self._check_method(f"methods.{name}", method)
        if not self.methods:
            raise ValueError("recipe key 'methods' must name at least one method")
        for name in self.methods:
            if name == WARMUP:
                raise ValueError(
                    f"recipe key 'methods.{name}': a method is also a folder's name, and the "
                    f"warm-up's is '{WARMUP}'"
                )
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(
                    f"recipe key 'methods.{name}': a method is also a folder's name; use "
                    f"letters, digits, - and _"
                )

    def _check_method(self, path: str, method: LossRecipe) -> None:
        check_ranges(method, path)
        if method.entropy_top_p is not None and self.rollout.truncation:
            names = ", ".join(f"rollout.{name}" for name in self.rollout.truncation)
            raise ValueError(
                f"recipe key '{path}.entropy_top_p' must be null with {names}: a row's entropy is "
                f"that of the tokens it was drawn from; got {method.entropy_top_p}"
            )

    def _check_seeds(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"recipe key 'seeds' must have no two alike, got {self.seeds}")
        if not all(within(SEED, seed) for seed in self.seeds):
            raise ValueError(f"recipe key 'seeds' must each be {SEED.text}, got {self.seeds}")
        if self.seeds and self.seed:
            raise ValueError(
                f"recipe key 'seed' makes no sense with seeds={self.seeds}, got {self.seed}"
            )

    def _check_lora(self) -> None:
        if self.lora.rank and self.rollout.server is not None:
            raise ValueError(
                "recipe key 'rollout.server' must be null with lora.rank: the server takes whole "
                f"models; got {self.rollout.server}"
            )
        if not self.lora.rank:
            if self.lora != LoraRecipe():
                raise ValueError("recipe key 'lora.rank' must be above 0 with other keys of lora")
            return
        if self.model.path is None:
            raise ValueError(
                "recipe key 'lora.rank' needs model.path, a trained model: one from scratch has "
                f"nothing to adapt; got {self.lora.rank}"
            )
        for name, value in {
            "warmup.steps": self.warmup.steps,
            "warmup.full_steps": self.warmup.full_steps,
            "update.embedding_lr": self.update.embedding_lr,
        }.items():
            if value:
                raise ValueError(
                    f"recipe key '{name}' must be 0 with lora.rank = {self.lora.rank}: adapters "
                    f"alone are trained; got {value}"
                )
