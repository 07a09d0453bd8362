"""A recipe small enough to train in a test: 384 vocabulary entries, 16 wide, one layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from logitless.rl.recipe import Recipe, load_recipe

TINY: dict[str, Any] = {
    "steps": 4,
    "entropy_change_every": 2,
    "checkpoint_every": 2,
    "compare_repeats": 1,
    "model": {
        "tokenizer": "bytes",
        "vocab_size": 384,
        "hidden_size": 16,
        "intermediate_size": 32,
        "layers": 1,
        "heads": 2,
    },
    "task": {"name": "sum_to_n", "options": {"low": 8, "high": 10, "digits": 2}},
    "warmup": {"steps": 60, "batch": 64, "examples": 512, "lr": 0.01, "full_steps": 2},
    "rollout": {"prompts": 4, "group": 8, "max_new_tokens": 4},
    "update": {"minibatches": 2, "head_lr": 0.003},
    "methods": {
        "grpo": {"preset": "grpo"},
        "clip_cov": {
            "preset": "clip_cov",
            "change": {"control": {"fraction": 0.2, "low": 0.0, "high": 50.0}},
        },
    },
}


def tiny_file(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY, sort_keys=False), "utf-8")
    return path


def tiny_recipe(folder: Path, *overrides: str) -> Recipe:
    return load_recipe(str(tiny_file(folder)), overrides)
