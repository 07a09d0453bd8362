"""Several seeds of a recipe: each is the run that it would be alone, and all have one report."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from logitless import cli  # noqa: E402
from logitless.rl.demo.job import run  # noqa: E402
from logitless.rl.report import text  # noqa: E402
from logitless.rl.report.summary import mean, spread, summarize  # noqa: E402
from logitless.rl.tracking import checkpoint, metrics, run_folder  # noqa: E402
from tests.support.recipes import tiny_file, tiny_recipe  # noqa: E402

SMALL = (
    "steps=6", "compare_repeats=0", "warmup.steps=20",
    "evaluation={every: 6, prompts: 2, group: 2}",
)  # fmt: skip
METHODS = ("grpo", "clip_cov")
CLOCKS = ("seconds", "tokens_per_second", "peak_memory_bytes")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with the seeds 3 and 0."""
    folder = tmp_path_factory.mktemp("seeds")
    assert run(tiny_recipe(folder, *SMALL, "seeds=[3, 0]"), folder / "run") == 0
    return folder / "run"


def timeless(path: Path) -> list[dict[str, Any]]:
    rows = metrics.read(path)
    assert rows
    return [{k: v for k, v in row.items() if not k.startswith(CLOCKS)} for row in rows]


def assert_same(one: Path, other: Path) -> None:
    for method in METHODS:
        for file in (metrics.FILE, metrics.EVALUATION_FILE, "completions.jsonl"):
            assert timeless(one / method / file) == timeless(other / method / file)
        saved, expected = (checkpoint.latest(folder / method) for folder in (one, other))
        assert saved.name == expected.name
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert (saved / file).read_bytes() == (expected / file).read_bytes()


@pytest.mark.parametrize("seed", [3, 0])
def test_a_seed_of_several_is_the_run_of_that_seed(seeds: Path, tmp_path: Path, seed: int) -> None:
    """Model, warm-up, prompts, draws and minibatches."""
    assert run(tiny_recipe(tmp_path, *SMALL, f"seed={seed}"), tmp_path / "run") == 0
    assert_same(seeds / f"seed{seed}", tmp_path / "run")


def test_seeds_differ(seeds: Path) -> None:
    first = [metrics.read(seeds / f"seed{i}" / "grpo" / metrics.FILE)[0] for i in (0, 3)]
    assert first[0]["entropy"] != first[1]["entropy"]


def test_means_and_spread_are_those_of_the_seeds(seeds: Path) -> None:
    summary, details = (
        json.loads((seeds / f"{name}.json").read_text("utf-8")) for name in ("summary", "run")
    )
    assert details["complete"] and set(summary) == set(METHODS)
    for method in METHODS:
        rows = [metrics.read(seeds / f"seed{i}" / method / metrics.FILE) for i in (3, 0)]
        last = [statistics.fmean(row["entropy"] for row in of_seed[1:]) for of_seed in rows]
        assert summary[method]["entropy_last"] == pytest.approx(sum(last) / 2)
        each = summary[method]["seeds"]
        assert [each["3"]["entropy_last"], each["0"]["entropy_last"]] == pytest.approx(last)
        found = details["spread"][method]
        assert found["entropy"] == pytest.approx(
            {
                "mean": sum(last) / 2, "std": abs(last[0] - last[1]) / 2**0.5,
                "min": min(last), "max": max(last),
            }
        )  # fmt: skip
        ends = [
            metrics.read(seeds / f"seed{i}" / method / metrics.EVALUATION_FILE)[-1] for i in (3, 0)
        ]
        assert found["pass@2"]["mean"] == pytest.approx(sum(row["pass@2"] for row in ends) / 2)
        assert details["evaluations"][method][-1]["right"] == pytest.approx(
            sum(row["right"] for row in ends) / 2
        )


def test_the_report_says_how_many_seeds_there_are(
    seeds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (seeds / "report.html").read_bytes()
    assert cli.main(["report", str(seeds)]) == 0
    printed = capsys.readouterr().out
    assert "means of 2 seeds" in printed and "over the seeds, last" in printed
    assert " ± " in printed and ".." in printed
    page = (seeds / "report.html").read_text("utf-8")
    assert before == page.encode()
    assert "There are 2 seeds" in page and "means of 2 seeds" in page and " ± " in page


def test_a_run_goes_on_with_more_seeds(seeds: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(tiny_recipe(tmp_path, *SMALL, "seeds=[3]"), out) == 0
    # as a kill leaves it: steps that were logged and never saved
    metrics.append(out / "seed3" / "grpo" / metrics.FILE, {"step": 6, "reward": -1.0})
    assert run(tiny_recipe(tmp_path, *SMALL, "seeds=[3, 0]"), out, resume=True) == 0
    for seed in (3, 0):
        assert_same(out / f"seed{seed}", seeds / f"seed{seed}")
    with pytest.raises(ValueError, match=r"seeds: \[3, 0\] before, \[\] now"):
        run(tiny_recipe(tmp_path, *SMALL), out, resume=True)


def test_one_seed_does_not_go_on_as_several(tmp_path: Path) -> None:
    out, options = tmp_path / "run", ("steps=1", "compare_repeats=0", "warmup.steps=1")
    assert run(tiny_recipe(tmp_path, *options), out) == 0
    several = tiny_recipe(tmp_path, *options, "seeds=[0, 1]")
    with pytest.raises(ValueError, match=r"seeds: \[\] before, \[0, 1\] now"):
        run(several, out, resume=True)
    with pytest.raises(ValueError, match=r"holds a run \(clip_cov, grpo, warmup\)"):
        run(several, out)
    (tmp_path / "run" / "seed0" / "mine").mkdir(parents=True)
    assert run(several, out, overwrite=True) == 0
    of_seeds = ["clip_cov", "grpo", "warmup"]
    held = [f"seed{i}/{name}" for i in (0, 1) for name in of_seeds]
    assert run_folder.runs_in(out) == held
    with pytest.raises(ValueError, match=f"holds a run \\({', '.join(held)}\\)"):
        run(several, out)
    assert run(tiny_recipe(tmp_path, *options), out, overwrite=True) == 0
    assert run_folder.runs_in(out) == of_seeds and (out / "seed0" / "mine").is_dir()


def test_a_folder_of_runs_is_no_run(tmp_path: Path) -> None:
    """Whatever is two folders down belongs to others, unless the folder between is a seed's."""
    for name in ("other/grpo", "seedling/grpo", "seed0/grpo"):
        (tmp_path / name).mkdir(parents=True)
        metrics.append(tmp_path / name / metrics.FILE, {"step": 0})
    assert run_folder.runs_in(tmp_path) == ["seed0/grpo"]


def test_a_dry_run_lists_the_seeds(
    seeds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ["train", str(tiny_file(tmp_path)), *SMALL, "seeds=[3, 7]", "--dry-run"]
    assert cli.main([*recipe, "--out", str(seeds), "--resume"]) == 0
    plan = capsys.readouterr().out.partition("\n\n")[2].splitlines()
    lines = [line for line in plan if line.startswith(("seed ", "warm-up", "method"))]
    assert lines[0] == f"seed       3, in {seeds / 'seed3'}"
    assert lines[1] == "warm-up    done"
    assert lines[2].startswith("method     grpo: done;")
    assert lines[4] == f"seed       7, in {seeds / 'seed7'}"
    assert lines[5] == "warm-up    20 + 2 supervised steps"
    assert lines[6].startswith("method     grpo: steps 1 to 6;")
    assert not (seeds / "seed7").exists()


def test_every_seed_is_evaluated(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(seeds)]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if line[0] != " "]
    expected = [f"seed{seed}/{method} after 6 steps" for seed in (3, 0) for method in METHODS]
    assert titles == expected
    # a seed's folder is a run of its own
    last = metrics.read(seeds / "seed0" / "grpo" / metrics.EVALUATION_FILE)[-1]
    assert cli.main(["eval", str(seeds / "seed0" / "grpo")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"  {'reward':<22} {last['reward']:.4g}" in lines


def test_runs_are_reported_side_by_side(
    seeds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone"
    options = ("steps=2", "warmup.steps=1", "notes=[of the other run]")
    assert run(tiny_recipe(tmp_path, *options), alone) == 0
    capsys.readouterr()
    before = [(folder / "report.html").read_bytes() for folder in (seeds, alone)]
    out = tmp_path / "both"
    assert cli.main(["report", str(seeds), str(alone), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    names = ["run/grpo", "run/clip_cov", "alone/grpo", "alone/clip_cov"]
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert list(summary) == names
    one = json.loads((alone / "summary.json").read_text("utf-8"))
    assert summary["alone/grpo"] == one["grpo"]
    page = (out / "report.html").read_text("utf-8")
    for name in names:
        assert name in page and name in printed
    assert "of the other run" in page and "alone: One training step of" in page
    assert [(folder / "report.html").read_bytes() for folder in (seeds, alone)] == before

    # a seed's folder has a name that others have, too
    others = [seeds / "seed0", seeds / "seed3", tmp_path / "seed0"]
    assert (
        run(tiny_recipe(tmp_path, "steps=1", "warmup.steps=1", "compare_repeats=0"), others[2]) == 0
    )
    assert cli.main(["report", *map(str, others), "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    ends = [f"{folder.parent.name}/{folder.name}/grpo" for folder in others]
    assert list(summary)[::2] == ends
    assert cli.main(["report", str(seeds), str(alone), "--out", str(alone)]) == 2
    assert "needs a folder of its own" in capsys.readouterr().err


def row(step: int, reward: float, entropy: float) -> dict[str, Any]:
    return {
        "step": step, "reward": reward, "entropy": entropy, "distinct_right_answers": 2.0,
        "selected_tokens": 3, "seconds": 1.0, "peak_memory_bytes": 10, "full_logits_bytes": 20,
    }  # fmt: skip


def test_a_spread_in_numbers() -> None:
    # R = 1 - 0.1 exp(H), so a ceiling of 0.9; and with 0.3 in place of 0.1, of 0.7
    def seed(a: float) -> list[dict[str, Any]]:
        e = 2.718281828459045
        return [row(i, 1 - a * e ** (h := 2.0 - 0.25 * i), h) for i in range(7)]

    runs = {"grpo": {0: seed(0.1), 1: seed(0.3)}, "one": {0: seed(0.1), 1: []}}
    found = spread(runs, {"grpo": {}, "one": {}})
    assert list(found) == ["grpo"]
    expected = {"mean": 0.8, "std": 0.2 / 2**0.5, "min": 0.7, "max": 0.9}
    assert found["grpo"]["ceiling b - a"] == pytest.approx(expected)
    assert found["grpo"]["distinct right"] == {"mean": 2.0, "std": 0.0, "min": 2.0, "max": 2.0}
    assert text.spread_table(found)[1][4] == "0.800 ± 0.141 (0.700..0.900)"
    summary = summarize(runs, {})
    assert "seeds" not in summary["one"] and summary["grpo"]["seconds"] == 7.0
    # all 14 points are on no line: the law of a mixture is not the mean of the laws
    assert summary["grpo"]["law"]["r2"] < 1.0
    assert summary["grpo"]["seeds"][1]["law"]["ceiling"] == pytest.approx(0.7)
    # rows without an evaluation, and a law that cannot be fitted
    short = {"grpo": {0: seed(0.1)[:3], 1: seed(0.3)[:3]}}
    assert "ceiling b - a" not in spread(short, {"grpo": {}})["grpo"]


def test_a_mean_is_of_the_steps_that_all_seeds_have() -> None:
    seeds = {0: [row(i, 0.0, 1.0) for i in range(3)], 1: [row(i, 0.5, 3.0) for i in range(2)]}
    found = mean(seeds)
    assert [x["step"] for x in found] == [0, 1]
    assert [x["reward"] for x in found] == [0.25, 0.25] and found[0]["entropy"] == 2.0
    assert mean({0: seeds[0], 1: []}) == seeds[0] and mean({0: []}) == []
