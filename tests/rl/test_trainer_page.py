"""The page of the trainer, followed to the letter."""

from __future__ import annotations

import importlib.util
import random
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from logitless.cli import main
from logitless.rl.answers import task_of
from logitless.rl.policy import make_policy
from logitless.rl.recipe import load_recipe, recipe_of
from logitless.rl.tasks import FollowsTraining, Prompt, load_task, score
from logitless.rl.tracking import metrics
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "trainer.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+) ?([\w.]*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PEFT = importlib.util.find_spec("peft") is not None
COMMANDS = [line for kind, _, text in BLOCKS if kind == "sh" for line in text.splitlines()]

SMALL = """
model: {tokenizer: bytes, hidden_size: 16, intermediate_size: 32, layers: 1, heads: 2}
methods: {grpo: {preset: grpo}}
rollout: {prompts: 3, group: 4, max_new_tokens: 4}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files of the page."""
    for _, name, text in BLOCKS:
        if name:
            (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    # the path is as before, once the test is over
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    # modules of the page: another test has others of these names
    for _, name, _ in BLOCKS:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_the_commands_in_their_order(folder: Path) -> None:
    assert len(COMMANDS) == 9
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert program == "logitless"
        if any(argument.startswith("lora.") for argument in arguments) and not PEFT:
            continue
        assert main(arguments) == 0, command
    for method in ("grpo", "clip_cov"):
        rows = metrics.read(folder / "run" / method / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(5))
        assert len(metrics.read(folder / "other" / method / "metrics.jsonl")) == 3
    for seed in ("seed0", "seed1"):
        assert len(metrics.read(folder / "several" / seed / "grpo" / "metrics.jsonl")) == 3
    assert not (folder / "new").exists()
    assert "clip_cov" in (folder / "both" / "report.html").read_text("utf-8")
    left = {path.name for path in (folder / "run").iterdir()}
    assert {"recipe.json", "report.html", "summary.json", "run.json", "run.lock"} <= left


def test_the_class(folder: Path) -> None:
    task = load_task("my_tasks.py:Shout", {"word": "hello"})
    (prompt,) = task.prompts(random.Random(0), 1)
    assert prompt.text == "say hello loudly:"
    assert [task.reward(prompt, text) for text in ("HELLO", "hello")] == [1.0, 0.0]


def test_several_rewards(folder: Path) -> None:
    (text,) = [text for kind, _, text in BLOCKS if kind == "yaml" and "over_length" in text]
    recipe = recipe_of(yaml.safe_load(text) | {"methods": {"grpo": {"preset": "grpo"}}}, "the page")
    prompt = Prompt("sum 8:", {"total": 8})
    found = score(task_of(recipe), [prompt], ["35", "3500", "no"], tokens=[3, 5, 3])
    columns = {name: column.tolist()[0] for name, column in found.columns.items()}
    assert columns == {
        "accuracy": [1, 1, 0],
        "format": [1, 1, 0],
        "brevity": [0.5, 0, 0],
        "length": [-0.5, -1, -0.5],
    }
    torch.testing.assert_close(found.rewards, torch.tensor([[1.45, 0.7, -0.25]]))


def test_rewards_that_follow_training(folder: Path) -> None:
    (text,) = [text for kind, _, text in BLOCKS if kind == "yaml" and "laser_d" in text]
    own = "task.rewards.novelty={function: 'novelty.py:Novelty', weight: 0.1}"
    (folder / "following.yaml").write_text(text + SMALL)
    assert main(["train", "following.yaml", "steps=2", own, "--out", "following"]) == 0
    rows = metrics.read(folder / "following" / "grpo" / "metrics.jsonl")
    for level in ("easy", "medium", "hard"):
        assert rows[0][f"reward_state/brevity/target_{level}"] == 4
    assert rows[1]["reward/novelty"] < rows[0]["reward/novelty"] == 1
    assert rows[1]["reward_state/novelty/beginnings"] > 0
    assert issubclass(sys.modules["novelty"].Novelty, FollowsTraining)


def test_rewards_of_steps(folder: Path) -> None:
    (text,) = [text for kind, _, text in BLOCKS if kind == "yaml" and "pure" in text]
    (folder / "steps.yaml").write_text(text + SMALL)
    assert main(["train", "steps.yaml", "steps=1", "--out", "steps"]) == 0
    (row,) = metrics.read(folder / "steps" / "grpo" / "metrics.jsonl")
    assert row["reward"] == pytest.approx(row["reward/accuracy"] + row["reward/steps"] / 2)
    score_steps = sys.modules["steps"].steps
    assert score_steps("sum 8:", "359", 8) == [(1, 1), (2, 1), (3, 0)]
    assert score_steps("sum 8:", "", 8) == [(0, 0)]


def test_steps_that_a_model_rewards(folder: Path) -> None:
    (text,) = [text for kind, _, text in BLOCKS if kind == "yaml" and "implicit_prm" in text]
    (folder / "credit.yaml").write_text(text + SMALL)
    recipe = load_recipe("credit.yaml")
    for seed, name in enumerate(("prm", "base"), 1):
        make_policy(recipe.model, seed).save(folder / name)
    assert main(["train", "credit.yaml", "steps=1", "--out", "credit"]) == 0
    (row,) = metrics.read(folder / "credit" / "grpo" / "metrics.jsonl")
    assert row["reward"] == pytest.approx(row["reward/accuracy"] + row["reward/credit"])
    assert row["reward_std/credit"] > 0
