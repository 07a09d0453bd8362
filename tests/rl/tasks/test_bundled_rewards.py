"""Bundled rewards, by the formulas of their sources."""

from __future__ import annotations

import importlib.util
import math
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from logitless.cli import main
from logitless.rl.recipe import RewardRecipe
from logitless.rl.tasks import BUNDLED, Prompt, Task, load_task, score
from tests.support.recipes import tiny_file

HAS_MATH_VERIFY = importlib.util.find_spec("math_verify") is not None


def load(**rewards: RewardRecipe) -> Task:
    return load_task("sum_to_n", {}, rewards=rewards)


@pytest.mark.parametrize(
    ("part", "texts", "expected"),
    [
        (False, ["<a>8</a>", "so <a>8</a>", "<a>8</a>\n", "<a>x</a>"], [1, 0, 0, 0]),
        (True, ["<a>8</a>", "so <a>8</a>", "<a>8</a>\n", "<a>x</a>"], [1, 1, 1, 0]),
    ],
)
def test_format(part: bool, texts: list[str], expected: list[float]) -> None:
    reward = BUNDLED["format"](pattern=r"<a>\d</a>", part=part)
    assert [reward("a prompt", text, total=8) for text in texts] == expected


def test_laser_is_for_right_and_short_answers() -> None:
    reward = BUNDLED["laser"](target=10)
    asked = [(1.0, 10), (1.0, 11), (0.98, 10), (-0.5, 3)]
    found = [reward("", "", of=[right], answer_tokens=n) for right, n in asked]
    assert found == [0.5, 0.0, 0.0, 0.0]
    assert BUNDLED["laser"](target=10, alpha=2.0, right=0.5)("", "", of=[0.5], answer_tokens=1) == 2
    with pytest.raises(ValueError, match="of must name one reward"):
        reward("", "", of=[1.0, 1.0], answer_tokens=1)


def test_over_length_falls_to_minus_one_at_the_limit() -> None:
    reward = BUNDLED["over_length"](limit=20, cache=5)
    found = [reward("", "", answer_tokens=n) for n in (1, 15, 16, 19, 20, 21)]
    assert found == pytest.approx([0, 0, -0.2, -0.8, -1, -1])


def test_ensembles() -> None:
    rewards = [1.0, 0.5, 0.75, 0.0]
    assert BUNDLED["worst_case"]()("", "", of=rewards) == 0.0
    mean = sum(rewards) / 4
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 4)
    for k in (0.0, 1.0, 2.5):
        found = BUNDLED["lower_bound"](k=k)("", "", of=rewards)
        assert found == pytest.approx(mean - k * deviation, abs=1e-12)


def test_columns_of_one_recipe() -> None:
    task = load(
        accuracy=RewardRecipe("task"),
        brevity=RewardRecipe("laser", options={"target": 4}, of=["accuracy"]),
        length=RewardRecipe("over_length", options={"limit": 6, "cache": 4}, weight=2.0),
        digits=RewardRecipe("format", options={"pattern": r"\d+"}, weight=0.0),
        doubt=RewardRecipe("lower_bound", of=["accuracy", "digits"], options={"k": 2.0}),
    )
    found = score(task, [Prompt("sum 17:", 17)], ["8225", "8226", "no"], tokens=[4, 5, 2])
    assert {name: column.tolist()[0] for name, column in found.columns.items()} == {
        "accuracy": [1.0, 0.0, 0.0],
        "brevity": [0.5, 0.0, 0.0],
        "length": [-0.5, -0.75, 0.0],
        "digits": [1.0, 1.0, 0.0],
        # 1/2 - 2 * 1/2 where they disagree
        "doubt": [1.0, -0.5, 0.0],
    }
    assert found.rewards.tolist() == [[1.5, -2.0, 0.0]]


def test_what_needs_tokens_says_so() -> None:
    task = load(length=RewardRecipe("over_length", options={"limit": 6, "cache": 4}))
    assert "answer_tokens are not known" in score(task, [Prompt("", 1)], ["1"]).failures[0]


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("format", {"pattern": "("}, r"a\.function 'format': pattern must be a regular expression"),
        (
            "format",
            {"patern": "x"},
            r"a\.function 'format': .*unexpected keyword argument 'patern'",
        ),
        ("format", {}, r"a\.function 'format': .*missing 1 required .* 'pattern'"),
        ("laser", {"target": 0}, "target must be a whole number of at least 1, got 0"),
        ("laser", {"target": 4.5}, "target must be a whole number of at least 1, got 4.5"),
        ("laser", {"target": 4}, "of must name other rewards"),
        ("over_length", {"limit": 4, "cache": 5}, "cache must be at most limit = 4, got 5"),
        ("lower_bound", {"k": -1}, "k must be at least 0, got -1"),
    ],
)
def test_options_are_checked_before_anything_runs(
    function: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(a=RewardRecipe(function, options=options))


def test_a_bundled_name_serves_as_the_one_reward(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "sum 8:", "total": 8}\n', "utf-8")
    with pytest.raises(ValueError, match=r"task\.reward 'formt' is unknown; did you mean 'format'"):
        load_task(None, {}, str(tmp_path / "rows.jsonl"), "formt")


def fake_math(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A library that reads whole numbers, behind an "=" or between dollars."""
    calls: list[dict[str, Any]] = []

    def parse(text: str, **limits: Any) -> list[int]:
        calls.append(limits)
        text = text.strip("$") if "frac" not in text else text
        return [int(text.rpartition("=")[2])] if text.rpartition("=")[2].isdigit() else []

    def verify(gold: list[int], target: list[int], **limits: Any) -> bool:
        calls.append(limits)
        return gold == target

    library = types.SimpleNamespace(parse=parse, verify=verify)
    monkeypatch.setitem(sys.modules, "math_verify", library)  # type: ignore[arg-type]
    return calls


def test_math_is_wired_to_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_math(monkeypatch)
    reward = BUNDLED["math"]()
    assert [reward("", text, answer=8) for text in ("3+5=8", "3+5=9", "no")] == [1.0, 0.0, 0.0]
    assert BUNDLED["math"](key="gold")("", "8", gold="8") == 1.0
    with pytest.raises(ValueError, match="must have 'answer', got total"):
        reward("", "8", total=8)
    with pytest.raises(ValueError, match=r"must be mathematics, got 'frac'"):
        reward("", "8", answer="frac")
    assert all(limits == {} for limits in calls)
    # signals are the main thread's
    calls.clear()
    thread = threading.Thread(target=reward, args=("", "8"), kwargs={"answer": 8})
    thread.start()
    thread.join()
    assert calls == [{"parsing_timeout": None}] * 2 + [{"timeout_seconds": None}]


def test_without_math_verify_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    change = "task.rewards={answer: {function: math, options: {key: data}}}"
    assert main(["train", str(tiny_file(tmp_path)), change, "--out", str(tmp_path / "run")]) == 2
    assert "pip install 'logitless[math]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not HAS_MATH_VERIFY, reason="math-verify is not installed")
@pytest.mark.parametrize("limit", [None, 60.0])
def test_math_verify(limit: float | None) -> None:
    task = load(answer=RewardRecipe("math", options={"key": "data"}))
    texts = [r"It is $\frac{2}{4}$.", r"\boxed{0.5}", "$1/3$", "I do not know"]
    for gold in ("1/2", r"\frac{1}{2}", "$0.5$"):
        found = score(task, [Prompt("", gold)], texts, seconds=limit)
        assert found.rewards.tolist() == [[1.0, 1.0, 0.0, 0.0]], found.failures
