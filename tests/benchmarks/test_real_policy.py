"""The study of a trained chat model: its settings, its tasks, and what is kept of a run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

from benchmarks.studies.real_policy import numbers, plots, setting, tables
from benchmarks.studies.real_policy.__main__ import write
from benchmarks.studies.real_policy.tasks import Capitals, Larger, Pairs, Turn, Words, asked
from benchmarks.studies.real_policy.training import CURVES, run
from logitless.rl.policy import make_policy
from logitless.rl.recipe import make_spec
from logitless.rl.tasks import Prompt, load_task
from logitless.rl.tracking import metrics
from tests.support.recipes import tiny_recipe


@pytest.mark.parametrize("name", setting.SETTINGS)
@pytest.mark.parametrize("method", [setting.UNTRAINED, *setting.METHODS])
def test_settings_are_recipes(name: str, method: str) -> None:
    recipe = setting.recipe_of(name, method, seed=2, steps=7)
    assert (recipe.seed, recipe.steps, list(recipe.methods)) == (2, 7, [method])
    assert recipe.model.path == "smollm2"
    make_spec(method, recipe.methods[method])
    load_task(recipe.task.name, recipe.task.options)


def test_candidates_are_tasks() -> None:
    for options in setting.CANDIDATES.values():
        load_task(f"{setting.OWN}:Turn", options)


def test_a_turn_is_its_task() -> None:
    turn = Turn("arithmetic", low=7, high=7)
    (prompt,) = turn.prompts(random.Random(0), 1)
    assert isinstance(prompt.text, str)
    assert prompt.text.startswith("<|im_start|>user\nWhat is 7 + 7? ")
    assert prompt.text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert asked(prompt) == "What is 7 + 7? Answer with the number only."
    assert [turn.reward(prompt, answer) for answer in ("14", "77")] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "right"),
    [("3 + 4 = 7", 1.0), ("It is 10+2.", 0.0), ("It is 5+2, or 1 + 1.", 1.0), ("7", 0.0)],
)
def test_the_first_sum_of_an_answer_counts(answer: str, right: float) -> None:
    assert Pairs(5, 15).reward(Prompt("", 7), answer) == right


@pytest.mark.parametrize(
    ("answer", "right"),
    [("Boat", 1.0), (' "boat". ', 1.0), ("Car", 0.0), ("A boat", 0.0), ("be", 0.0), ("Bär", 0.0)],
)
def test_a_word_is_one_word(answer: str, right: float) -> None:
    assert Words().reward(Prompt("", "b"), answer) == right


@pytest.mark.parametrize(("answer", "right"), [("8", 1.0), ("8 > 3", 0.0), ("It is 8.", 1.0)])
def test_the_last_number_of_an_answer_counts(answer: str, right: float) -> None:
    task = Larger(1, 9)
    assert task.reward(Prompt("", 8), answer) == right
    assert all(prompt.data in range(2, 10) for prompt in task.prompts(random.Random(0), 50))


@pytest.mark.parametrize(
    ("answer", "right"), [("It is Oslo.", 1.0), ("Oslofjord", 0.0), ("oslo", 0.0)]
)
def test_a_capital_is_named_as_a_word(answer: str, right: float) -> None:
    assert Capitals().reward(Prompt("", "Oslo"), answer) == right


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, numbers.Methods]:
    """Two methods and two seeds on a toy, as the study writes and reads them."""
    folder = tmp_path_factory.mktemp("kept")
    options = (
        "steps=6", "warmup.steps=0", "warmup.full_steps=0", "evaluation={prompts: 2, group: 4}",
    )  # fmt: skip
    for method in ("grpo", "clip_cov"):
        for seed in (0, 1):
            loss = json.dumps({method: setting.METHODS[method]})
            recipe = tiny_recipe(folder, *options, f"methods={loss}", f"seed={seed}")
            name = f"sums-{method}-{seed}"
            kept = run(recipe, folder / name, make_policy(recipe.model, seed))
            rows = metrics.read(folder / name / method / metrics.FILE)
            assert kept["curves"]["entropy"] == pytest.approx(
                [row["entropy"] for row in rows], rel=1e-4
            )
            assert set(kept["curves"]) <= set(CURVES) and kept["steps"] == 6
            assert kept["entropy_change"]["step"] == [0, 2, 4]
            write(folder / f"{name}.json", {"setting": "sums", **kept})
    return numbers.read(folder)


def test_what_is_kept_is_read_in_order(settings: dict[str, numbers.Methods]) -> None:
    methods = settings["sums"]
    assert list(methods) == ["grpo", "clip_cov"]
    assert [[run["seed"] for run in runs] for runs in methods.values()] == [[0, 1], [0, 1]]


def test_tables_and_pictures_are_made(settings: dict[str, numbers.Methods], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n", "utf-8")
    for _ in range(2):
        tables.into_page(page, tables.pages(settings, tmp_path))
        text = page.read_text("utf-8")
        assert text.startswith(f"before\n{tables.BEGIN}\n") and text.endswith(
            f"{tables.END}\nafter\n"
        )
        assert "old" not in text
        assert text.count("### sums: the law") == text.count("| clip_cov | 2 |") == 1
    page.write_text("no place", "utf-8")
    with pytest.raises(ValueError, match="has no place for the tables"):
        tables.into_page(page, [])
    (path,) = plots.draw(settings, tmp_path / "a.png")
    assert path.stat().st_size > 20_000


def kept(seed: int, reward: list[float], entropy: list[float]) -> dict[str, Any]:
    return {"seed": seed, "curves": {"reward": reward, "entropy": entropy}}


def test_differences_are_of_the_same_seed() -> None:
    methods = {
        "grpo": [kept(0, [0.5], [1.0]), kept(1, [0.5], [3.0])],
        "kl_cov": [kept(1, [0.5], [3.5]), kept(0, [0.5], [1.25]), kept(2, [0.5], [9.0])],
    }
    found = numbers.paired(methods, "kl_cov", lambda run: numbers.last(run, "entropy"))
    assert sorted(found) == [0.25, 0.5]
    assert numbers.verdict(found) == "+0.38 (+0.25..+0.50), more on all 2"
    assert numbers.verdict([-0.5, 0.25]) == "-0.12 (-0.50..+0.25), within the spread"
    assert numbers.verdict([-0.5]) == "-0.50, one seed" and numbers.verdict([]) == "-"


def test_entropy_where_the_reward_gets_to() -> None:
    rising = kept(0, [0.0] * 5 + [1.0] * 5, [2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    # the mean of five steps is 0.6 with the eighth
    assert numbers.entropy_at(rising, 0.6) == pytest.approx(1.4)
    assert numbers.entropy_at(rising, 1.1) is None
    assert numbers.spread([0.5, None, 1.0]) == "0.75 ± 0.35 (0.50..1.00)"


def test_a_ceiling_that_no_reward_has_is_left_out() -> None:
    entropy = [2.0, 1.0, 0.5]
    below, above = (
        kept(0, [b - 0.1 * 2.718281828459045**h for h in entropy], entropy) for b in (1.0, 1.2)
    )
    assert tables.law_row("grpo", below)[5] == "0.90 (0.90..0.90)"
    assert tables.law_row("grpo", above)[5] == "above 1"
