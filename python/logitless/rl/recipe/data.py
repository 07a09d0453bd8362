"""What a policy is asked, what it answers, and what the answers are worth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from logitless.rl.recipe.keys import (
    FINITE,
    REQUIRED,
    SHARE,
    SHARE_ABOVE_0,
    above,
    at_least,
    check_ranges,
    key,
)

# Rounds of a step that drops answers, where a recipe does not say.
MAX_ROUNDS = 10
# Bundled functions that reward the steps of an answer.
STEPWISE = ("implicit_prm",)


@dataclass(frozen=True)
class RewardRecipe:
    """One of several rewards."""

    function: str = key(
        REQUIRED,
        "A function of your own, or a class of one; a bundled one (`format`, `laser`, `laser_d`, "
        "`over_length`, `worst_case`, `lower_bound`, `math`, `implicit_prm`); or `task`: the "
        "reward that a named task has itself.",
    )
    options: dict[str, Any] = key(
        dict, "Arguments of the function, beside those of the prompt's row; of a class its own."
    )
    weight: float = key(
        1.0, "What the reward is multiplied with; 0: it is logged, and trains nothing.", FINITE
    )
    threshold: float | None = key(
        None, "It counts as 1 from here on, and as 0 below; null: as it is.", FINITE
    )
    of: list[str] = key(
        list,
        "Names of rewards above this one, which the function is given as a list `of`.",
    )
    steps: Literal["min", "sum"] | None = key(
        None,
        "The function returns a reward for each step of an answer, as `[(end, reward), ...]`, and "
        "the answer's is the least of them, or their sum. Advantages `pure` and `process` are of "
        "steps. null: it returns the answer's reward; of `implicit_prm` that is their sum.",
    )

    def check_steps(self, path: str) -> None:
        """ValueError where it cannot be of steps and is."""
        if self.steps is None:
            return
        own = ":" in self.function or self.function.endswith(".py")
        if not own and self.function not in STEPWISE:
            raise ValueError(
                f"recipe key '{path}.steps' must be null with {path}.function={self.function}, "
                f"which rewards whole answers; got {self.steps}"
            )
        if self.threshold is not None:
            raise ValueError(
                f"recipe key '{path}.threshold' must be null with {path}.steps={self.steps}, got "
                f"{self.threshold}"
            )


@dataclass(frozen=True)
class TaskRecipe:
    """Where prompts come from, and what an answer is worth."""

    name: str | None = key(
        None,
        "A built-in task, `reasoning_gym:NAME`, or `module:attribute` or `file.py:attribute` of "
        "your own; null: `sum_to_n`.",
    )
    options: dict[str, Any] = key(dict, "Arguments of that task.")
    prompts: str | None = key(
        None,
        "In place of a name: a JSON Lines file whose rows have `prompt`, a text or chat messages.",
    )
    reward: str | None = key(
        None,
        "The reward of these prompts: a function `score(prompt, completion, **other keys of the "
        "row)`, named like a task of your own, or a bundled one.",
    )
    rewards: dict[str, RewardRecipe] = key(
        dict,
        "In place of `reward`, or beside a named task, several, each by a name: the reward of an "
        "answer is their weighted sum.",
    )
    reward_timeout: float | None = key(
        None,
        "Seconds of a call of a reward, at most; an answer whose reward takes longer has none. "
        "null: there is no limit.",
        above(0),
    )
    threshold: float | None = key(
        None,
        "A reward counts as 1 from here on, and as 0 below; null: rewards are as the task returns "
        "them. reasoning-gym gives 0.01 or 0.05 to some wrong answers, which a group's standard "
        "deviation makes large: 0.99 gives credit to right answers alone.",
        FINITE,
    )
    special_tokens: bool = key(
        False, "Whether a reward sees special tokens, such as the end token, as text."
    )
    right: float = key(
        0.99, "The smallest reward of a right answer, for metrics that count right ones.", FINITE
    )

    def __post_init__(self) -> None:
        check_ranges(self, "task")
        for name, reward in self.rewards.items():
            check_ranges(reward, f"task.rewards.{name}")
            reward.check_steps(f"task.rewards.{name}")
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(
                    f"recipe key 'task.rewards.{name}': a reward is also a column's name; use "
                    "letters, digits, - and _"
                )
        by_steps = [name for name, reward in self.rewards.items() if reward.steps is not None]
        if len(by_steps) > 1:
            raise ValueError(
                f"recipe key 'task.rewards.{by_steps[1]}.steps' must be null with "
                f"task.rewards.{by_steps[0]}.steps: one reward may be of steps"
            )
        if self.rewards and self.reward is not None:
            raise ValueError(
                "recipe keys 'task.reward' and 'task.rewards' are one in place of the other, got "
                f"{self.reward} and {', '.join(self.rewards)}"
            )


@dataclass(frozen=True)
class WarmupRecipe:
    """Supervised steps before RL, for a task that has solutions; steps = 0 and full_steps = 0 skip
    them."""

    steps: int = key(
        0, "Steps over the few entries of the vocabulary that the examples use.", at_least(0)
    )
    batch: int = key(128, "Examples of a step.", at_least(1))
    examples: int = key(16384, "Examples in all.", at_least(1))
    lr: float = key(3e-3, "Largest learning rate of `steps`.", above(0))
    unused_logit: float = key(
        -12.0, "Logit given to the rows of the head that no example uses.", FINITE
    )
    unused_scale: float = key(0.3, "The share of their own values that these rows keep.", SHARE)
    full_steps: int = key(0, "Steps over the whole vocabulary, after the others.", at_least(0))
    full_lr: float = key(3e-4, "Learning rate of `full_steps`.", above(0))

    @property
    def any_steps(self) -> bool:
        return self.steps + self.full_steps > 0

    def __post_init__(self) -> None:
        check_ranges(self, "warmup")


@dataclass(frozen=True)
class RolloutRecipe:
    """The answers of a step."""

    prompts: int = key(8, "Prompts of a step.", at_least(1))
    group: int = key(
        16, "Answers to each prompt, which the advantages compare with each other.", at_least(2)
    )
    max_new_tokens: int = key(16, "Tokens of an answer, at most.", at_least(1))
    temperature: float = key(1.0, "Of the softmax, in rollouts and in training.", above(0))
    top_k: int | None = key(
        None, "So many of the likeliest tokens are left to draw from, and trained on.", at_least(1)
    )
    top_p: float | None = key(
        None,
        "The likeliest tokens that hold this much probability are left to draw from.",
        SHARE_ABOVE_0,
    )
    min_p: float | None = key(
        None,
        "Tokens with less than this share of the likeliest one's probability are not drawn.",
        SHARE,
    )
    filter_groups: bool = key(
        False,
        "Whether answers to a prompt that all have the same reward are dropped, since their "
        "advantages are 0: rounds of further prompts are sampled until `prompts` are left.",
    )
    oversample: float = key(
        1.0,
        "With `filter_groups`: prompts of a round, as a multiple of `prompts`, rounded up. What a "
        "batch has no place for is dropped.",
        at_least(1),
    )
    max_rounds: int = key(
        MAX_ROUNDS,
        "With `filter_groups`: rounds of a step, at most; a method that has too few groups then "
        "ends.",
        at_least(1),
    )
    chat_template: bool = key(
        False, "Whether a prompt that is a text is a user's turn in the chat template."
    )
    system_prompt: str | None = key(
        None, "With `chat_template`: the system's turn before a prompt that is a text."
    )
    mask_truncated: bool = key(
        False,
        "Whether answers that `max_new_tokens` has cut off are not trained on, as DAPO's overlong "
        "filtering has it. Their rewards count, in advantages and in metrics.",
    )
    server: str | None = key(
        None,
        "Address of a vLLM server that samples the answers, like `http://localhost:8000`; null: "
        "the trainer does.",
    )
    server_folder: str | None = key(
        None,
        "A folder that both see: the policy of each step is written there, and the server reads "
        "it. `rollout.server` needs it.",
    )

    def __post_init__(self) -> None:
        check_ranges(self, "rollout")
        if (self.server is None) != (self.server_folder is None):
            raise ValueError(
                "recipe keys 'rollout.server' and 'rollout.server_folder' need each other, got "
                f"{self.server} and {self.server_folder}"
            )
        if self.server is not None and not self.server.startswith(("http://", "https://")):
            raise ValueError(
                f"recipe key 'rollout.server' must begin with http:// or https://, got "
                f"{self.server!r}"
            )
        if self.server is not None and self.truncation and (self.top_k or 0) < 2:
            names = ", ".join(f"rollout.{name}" for name in ("server", *self.truncation))
            raise ValueError(
                f"recipe key 'rollout.top_k' must be at least 2 with {names}: a server says which "
                f"tokens were left to draw from where top_k bounds their number; got {self.top_k}"
            )
        if self.system_prompt is not None and not self.chat_template:
            raise ValueError(
                "recipe key 'rollout.system_prompt' needs rollout.chat_template=true, got "
                f"{self.system_prompt!r} without"
            )
        limits = (self.oversample, self.max_rounds)
        if not self.filter_groups and limits != (1.0, MAX_ROUNDS):
            raise ValueError(
                "recipe keys 'rollout.oversample' and 'rollout.max_rounds' need "
                f"rollout.filter_groups=true, got {self.oversample:g} and {self.max_rounds} without"
            )

    @property
    def prompts_at_once(self) -> int:
        """Of a round."""
        # 1.1 times 10 is more than 11 in floating point
        return math.ceil(round(self.prompts * self.oversample, 6))

    def unfiltered(self) -> RolloutRecipe:
        """The same with one round, which nothing is dropped of."""
        return replace(self, filter_groups=False, oversample=1.0, max_rounds=MAX_ROUNDS)

    @property
    def template(self) -> dict[str, Any]:
        """Arguments of `encode`."""
        return {"chat_template": self.chat_template, "system": self.system_prompt}

    @property
    def truncation(self) -> dict[str, Any]:
        """Arguments of `linear_sample`; empty: the whole softmax."""
        given = {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class EvaluationRecipe:
    """Answers to prompts that are not trained on: sampled ones, and a greedy one each."""

    every: int = key(
        0,
        "Before the first step, after the last and every so many steps; 0: never.",
        at_least(0),
    )
    prompts: int = key(32, "Prompts of an evaluation.", at_least(1))
    group: int = key(8, "Sampled answers to each; pass@k is known up to this k.", at_least(1))
    temperature: float | None = key(None, "null: that of the rollout.", above(0))
    file: str | None = key(
        None,
        "A file like `task.prompts`, for the same reward; null: the task's own prompts, of a seed "
        "apart.",
    )

    def __post_init__(self) -> None:
        check_ranges(self, "evaluation")
