"""How the weights change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import logitless as ll
from logitless.rl.recipe.keys import (
    REQUIRED,
    SHARE,
    SHARE_ABOVE_0,
    SHARE_BELOW_1,
    Range,
    above,
    at_least,
    check_ranges,
    key,
)

ADVANTAGE_NAMES = "group_std, group_mean, leave_one_out, gpg, max_rl, qae, pure, process"


ENTRIES = Range("a multiple of 64 up to 1024", lambda x: x % 64 == 0 and 0 < x <= 1024)


@dataclass(frozen=True)
class UpdateRecipe:
    """The optimization of a step: passes over minibatches of whole sequences, with AdamW."""

    minibatches: int = key(
        4, "Parts of a step's answers, with an optimizer step each.", at_least(1)
    )
    micro_batches: int = key(
        1, "Parts of a minibatch, with a forward each; gradients add up.", at_least(1)
    )
    micro_tokens: int = key(
        0,
        "In place of `micro_batches`: a minibatch is cut into parts that bring at most this many "
        "tokens to the body, padding included; a longer answer is a part of its own. 0: it is cut "
        "into `micro_batches`.",
        at_least(0),
    )
    epochs: int = key(1, "Passes over the minibatches.", at_least(1))
    advantage: str | None = key(
        None,
        "Of every method that has none of its own; null: that of the method's preset.",
        ADVANTAGE_NAMES,
    )
    pure_temperature: float = key(
        0.1,
        "Of advantage `pure`: of the softmax that makes the rewards of steps add up to about the "
        "least of them.",
        above(0),
    )
    memory_budget: str | None = key(
        None,
        "Of one `linear_policy_loss` call; null: the library's default.",
        "bytes, or like `64MiB`",
    )
    tail_mass: float = key(
        0.0,
        "A row gets its gradient from its largest entries where they hold all but this much of "
        "its probability; 0: every gradient is exact.",
        "0, or in [1e-5, 1)",
    )
    tail_entries: int = key(
        512,
        "How many of its largest entries a row may use, with `tail_mass`.",
        ENTRIES,
    )
    body_lr: float = key(3e-5, "Learning rate of the body; 0 freezes it.", at_least(0))
    head_lr: float = key(3e-5, "Learning rate of the head; 0 freezes it.", at_least(0))
    embedding_lr: float = key(
        0.0,
        "Learning rate of an embedding that is not the head's; 0 freezes it.",
        at_least(0),
    )
    beta1: float = key(0.9, "Of AdamW.", SHARE_BELOW_1)
    beta2: float = key(0.95, "Of AdamW.", SHARE_BELOW_1)
    weight_decay: float = key(0.0, "Of AdamW.", at_least(0))
    clip_norm: float = key(
        1.0, "Gradients are scaled down to this norm; `.inf`: never.", above(0, endless=True)
    )
    lr_warmup: int = key(
        0,
        "Steps until the learning rates are whole; the first has a share of 1 / (lr_warmup + 1).",
        at_least(0),
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = key(
        "constant", "How the learning rates fall after that."
    )
    lr_decay_steps: int | None = key(
        None,
        "The step from which on they are at `lr_final`, above `lr_warmup`; null: the end of the "
        "run.",
        at_least(1),
    )
    lr_final: float = key(0.0, "What is left of them then, as a share.", SHARE)
    gradient_checkpointing: bool = key(
        False,
        "Whether the body's layers keep their inputs alone and run a second time in the backward: "
        "less memory, one more forward, and the same gradients.",
    )

    @property
    def falls_until_the_end(self) -> bool:
        """Whether the learning rate of a step depends on how many steps the run has."""
        return self.lr_schedule != "constant" and self.lr_decay_steps is None

    def __post_init__(self) -> None:
        check_ranges(self, "update")
        if self.micro_tokens and self.micro_batches > 1:
            raise ValueError(
                "recipe key 'update.micro_tokens' must be 0 with update.micro_batches = "
                f"{self.micro_batches}: a minibatch is cut by one of them; got {self.micro_tokens}"
            )
        if self.lr_decay_steps is not None and self.lr_decay_steps <= self.lr_warmup:
            raise ValueError(
                f"recipe key 'update.lr_decay_steps' must be at least {self.lr_warmup + 1}, got "
                f"{self.lr_decay_steps}"
            )
        for name, unset in {"lr_decay_steps": None, "lr_final": 0}.items():
            if self.lr_schedule == "constant" and getattr(self, name) != unset:
                raise ValueError(
                    f"recipe key 'update.{name}' needs update.lr_schedule=linear or cosine, "
                    f"got {getattr(self, name)} with constant"
                )
        try:
            ll.plan(
                1, 1, 1, budget=self.memory_budget, tail_mass=self.tail_mass,
                tail_entries=self.tail_entries,
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"recipe key 'update': {str(error).removeprefix('plan: ')}") from None


@dataclass(frozen=True)
class DistributedRecipe:
    """What the ranks of torchrun do with the model."""

    shard: bool = key(
        False,
        "Whether each rank keeps a share of the weights, of their gradients and of the optimizer's "
        "state, by FSDP2, and gathers a layer when training runs it; rollouts gather the whole "
        "model. false: each has all. One rank has all in either case.",
    )


@dataclass(frozen=True)
class ReferenceRecipe:
    """The policy that a KL term compares with; methods without such a term have none."""

    kind: Literal["frozen", "ema", "anchor"] = key(
        "frozen",
        "`frozen`: the policy of the start; `ema`: a moving mean of the policy's weights; "
        "`anchor`: the policy itself, every so many steps.",
    )
    decay: float | None = key(
        None, "Of kind `ema`: the share of the mean that a step leaves as it was.", SHARE_BELOW_1
    )
    every: int | None = key(
        None, "Of kind `anchor`: steps from one copy of the policy to the next.", at_least(1)
    )

    def __post_init__(self) -> None:
        for name, kind in {"decay": "ema", "every": "anchor"}.items():
            value = getattr(self, name)
            if (value is not None) != (self.kind == kind):
                raise ValueError(
                    f"recipe key 'reference.{name}' goes with reference.kind={kind}, got "
                    f"reference.{name}={value} and reference.kind={self.kind}"
                )
        check_ranges(self, "reference")


@dataclass(frozen=True)
class ControllerRecipe:
    """A number of the loss that follows the entropy, from optimizer step to optimizer step."""

    kind: Literal["anchor", "log", "pi", "repo", "step"] = key(
        REQUIRED,
        "`anchor`: what Siren holds its entropy at, that of the first step; `pi`: the coefficient "
        "of Entropic; `log`, `step`: that of an entropy bonus; `repo`: zeta or beta of REPO.",
    )
    options: dict[str, Any] = key(
        dict,
        "Arguments of `EntropyAnchor`, `PIController`, `LogController`, `StepController` or "
        "`RepoController`: `{target: 0.5}`.",
    )


@dataclass(frozen=True)
class LossRecipe:
    """A method: a loss of the library, and the changes to it."""

    preset: str = key(REQUIRED, "The loss.", "a name of `logitless losses`")
    change: dict[str, Any] = key(
        dict,
        "New values inside of the preset, at any depth: `{control: {fraction: 0.1}}`.",
        "fields of the preset",
    )
    advantage: str | None = key(None, "null: `update.advantage`.", ADVANTAGE_NAMES)
    entropy_top_p: float | None = key(
        None,
        "The entropy term is of each row's likeliest tokens, which hold this much probability, "
        "renormalised: 0.8 in SIREN's paper; null: of all tokens. Log-probs are of all tokens in "
        "either case.",
        SHARE_ABOVE_0,
    )
    controller: ControllerRecipe | None = key(
        None,
        "What moves a number of the loss with the entropy: `{kind: pi, options: {target: 0.5}}`; "
        "null: the number stays.",
    )
