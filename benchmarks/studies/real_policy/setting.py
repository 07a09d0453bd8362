"""What is compared: tasks, ways of sampling, and methods, as changes to the recipe `smollm2`."""

from __future__ import annotations

import json
from typing import Any

from logitless.rl.recipe import Recipe, load_recipe

OWN = "benchmarks.studies.real_policy.tasks"
# Tasks of which the untrained model's share of right answers is measured, each as a chat turn.
CANDIDATES: dict[str, dict[str, Any]] = {
    "sums of 1 to 9": {"name": "arithmetic", "low": 1, "high": 9},
    "sums of 10 to 99": {"name": "arithmetic", "low": 10, "high": 99},
    "differences of 1 to 9": {"name": "arithmetic", "low": 1, "high": 9, "operation": "-"},
    "products of 1 to 9": {"name": "arithmetic", "low": 1, "high": 9, "operation": "*"},
    "a sum that equals 5 to 15": {"name": f"{OWN}:Pairs", "low": 5, "high": 15},
    "a word with a first letter": {"name": f"{OWN}:Words"},
    "the larger of two of 1 to 9": {"name": f"{OWN}:Larger", "low": 1, "high": 9},
    "a country's capital": {"name": f"{OWN}:Capitals"},
}


def _turn(title: str) -> str:
    return f"task={json.dumps({'name': f'{OWN}:Turn', 'options': CANDIDATES[title]})}"


# A task and a way of sampling, as overrides of the recipe.
SETTINGS: dict[str, tuple[str, ...]] = {
    "sums": (_turn("sums of 1 to 9"),),
    "sums_top_p": (_turn("sums of 1 to 9"), "rollout.top_p=0.9", "update.tail_mass=0"),
    "capitals": (_turn("a country's capital"),),
    "words": (_turn("a word with a first letter"),),
}

# Of the paper's methods the fractions of the recipes `smollm2` and `demo`; of the others the
# numbers of their presets.
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"preset": "grpo"},
    "clip_cov": {
        "preset": "clip_cov",
        "change": {
            "surrogate": {"low": 0.2, "high": 0.2},
            "control": {"fraction": 0.05, "low": 1.0, "high": 5.0},
        },
    },
    "kl_cov": {"preset": "kl_cov", "change": {"control": {"fraction": 0.4, "coefficient": 1.0}}},
    "top_entropy": {"preset": "top_entropy"},
    "top_entropy_50": {"preset": "top_entropy", "change": {"control": {"fraction": 0.5}}},
    "top_entropy_80": {"preset": "top_entropy", "change": {"control": {"fraction": 0.8}}},
    "steer": {"preset": "steer"},
    "entropic": {
        "preset": "entropic",
        "controller": {"kind": "pi", "options": {"target": 0.5}},
    },
    "siren": {"preset": "siren", "controller": {"kind": "anchor"}},
    "clip_b": {"preset": "clip_b"},
    "entropy_bonus": {"preset": "grpo", "change": {"entropy": {"coefficient": 0.01}}},
}
# The model as it comes, evaluated and not trained.
UNTRAINED = "untrained"

# What differs from another method by a number alone, and is in the tables, not in the picture.
VARIANTS = ("top_entropy_50", "top_entropy_80")

# The tasks write their own turns.
COMMON = (
    "notes=[]", "checkpoint_every=1000", "show_answers=4", "rollout.chat_template=false",
    "update.tail_entries=64",
    "evaluation={every: 0, prompts: 16, group: 8}",
)  # fmt: skip


def recipe_of(setting: str, method: str, seed: int, steps: int) -> Recipe:
    """The recipe of one run."""
    loss = METHODS["grpo" if method == UNTRAINED else method]
    own = (f"seed={seed}", f"steps={steps}", f"methods={json.dumps({method: loss})}")
    return load_recipe("smollm2", (*COMMON, *SETTINGS[setting], *own))
