"""Trackers are told what the JSON lines have, every step once, however often a run is resumed.

What a service makes of it is tested with its own package, where there is one: TensorBoard, wandb
offline and trackio are read back.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from logitless import cli
from logitless.rl.demo.job import run
from logitless.rl.recipe import Recipe
from logitless.rl.tracking import metrics, run_folder
from logitless.rl.tracking.trackers import TRACKERS, Run, feed
from tests.support.paths import ROOT
from tests.support.recipes import tiny_file, tiny_recipe
from tests.support.workers import torchrun

# 4 steps with a checkpoint after the second and the fourth, and an evaluation before each two.
OPTIONS = (
    "compare_repeats=0", "warmup={steps: 0, full_steps: 0}", "methods={grpo: {preset: grpo}}",
    "evaluation={every: 2, prompts: 4, group: 2}",
)  # fmt: skip
Told = list[tuple[int, dict[str, float]]]


class Recorder:
    """A tracker that remembers; `opened` are all that were, one after another."""

    opened: list[Recorder]

    def __init__(self, module: Any, run: Run, folder: Path, id: str) -> None:
        self.run, self.folder, self.id = run, folder, id
        self.told: Told = []
        self.closed = False
        self.opened.append(self)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        assert not self.closed
        self.told.append((step, dict(numbers)))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Of "wandb" and "trackio", whose packages are not asked for."""
    opened: list[Recorder] = []
    monkeypatch.setattr(Recorder, "opened", opened, raising=False)
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(feed.TRACKERS, name, feed.Kind("json", Recorder))
    return opened


def recipe(folder: Path, *overrides: str) -> Recipe:
    return tiny_recipe(folder, *OPTIONS, *overrides)


def written(out: Path) -> Told:
    """The numbers that the JSON lines have, in the order that a tracker is told of it."""
    found = [
        (row.pop("step"), {prefix + key: value for key, value in metrics.numbers(row).items()})
        for file, prefix in ((metrics.EVALUATION_FILE, "evaluation/"), (metrics.FILE, ""))
        for row in metrics.read(out / "grpo" / file)
    ]
    # stable: an evaluation comes before the step
    return sorted(found, key=lambda told: told[0])


def places(told: Told) -> list[tuple[int, bool]]:
    return [(step, "evaluation/reward" in numbers) for step, numbers in told]


PLACES = [(0, True), (0, False), (1, False), (2, True), (2, False), (3, False), (4, True)]


def test_a_tracker_is_told_what_the_lines_have(tmp_path: Path, recorders: list[Recorder]) -> None:
    options = ("log_to=[wandb]", "log_project=mine", "seeds=[3, 5]")
    assert run(recipe(tmp_path, *options), tmp_path / "run") == 0
    assert [one.run.name for one in recorders] == ["run/seed3/grpo", "run/seed5/grpo"]
    for one, seed in zip(recorders, ("seed3", "seed5"), strict=True):
        assert one.told == written(tmp_path / "run" / seed)
        assert places(one.told) == PLACES
        assert all(math.isfinite(x) for _, numbers in one.told for x in numbers.values())
        assert (one.run.project, one.run.group, one.closed) == ("mine", "run", True)
        assert one.run.config["rollout"]["group"] == 8
        assert one.run.config["seed"] == int(seed[-1])
        assert one.folder == tmp_path / "run" / seed / "grpo"
    assert recorders[0].id != recorders[1].id


def test_a_resumed_run_tells_every_step_once(tmp_path: Path, recorders: list[Recorder]) -> None:
    """Killed after steps whose checkpoint it has not got to, and killed again on the way there."""
    out = tmp_path / "run"
    assert run(recipe(tmp_path, "log_to=[wandb]"), out) == 0
    for steps in (3, 6):
        # as a kill in the fourth step leaves it
        shutil.rmtree(out / "grpo" / "checkpoint-000004", ignore_errors=True)
        shutil.rmtree(out / "grpo" / "checkpoint-000003", ignore_errors=True)
        assert run(recipe(tmp_path, "log_to=[wandb]", f"steps={steps}"), out, resume=True) == 0
    first, again, last = recorders
    assert first.id == again.id == last.id
    assert places(first.told) == PLACES
    # the shorter run ends with an evaluation that is not later than what had been told
    assert again.told == []
    assert places(last.told) == [(4, False), (5, False), (6, True)]
    assert last.told == written(out)[-3:]


def test_a_tracker_that_is_new_gets_the_steps_before(
    tmp_path: Path, recorders: list[Recorder]
) -> None:
    out = tmp_path / "run"
    assert run(recipe(tmp_path, "log_to=[trackio]"), out) == 0
    more = recipe(tmp_path, "log_to=[trackio, wandb]", "steps=5")
    assert run(more, out, resume=True) == 0
    old, old_again, new = recorders
    assert places(old.told) == PLACES
    assert places(old_again.told) == [(4, False), (5, True)]
    assert new.told == written(out) and len(new.told) == 9


def test_a_run_without_trackers_writes_no_more_than_before(tmp_path: Path) -> None:
    assert run(recipe(tmp_path, "steps=1"), tmp_path / "run") == 0
    left = {path.name for path in (tmp_path / "run" / "grpo").iterdir()}
    assert left == {
        "checkpoint-000001", "completions.jsonl", "evaluation.jsonl", "metrics.jsonl", "tokenizer",
    }  # fmt: skip


def test_overwrite_starts_another_run_of_the_service(
    tmp_path: Path, recorders: list[Recorder]
) -> None:
    out = tmp_path / "run"
    for again in (False, True):
        assert run(recipe(tmp_path, "log_to=[wandb]"), out, overwrite=again) == 0
        (out / "grpo" / "wandb").mkdir(exist_ok=True)
        (out / "grpo" / "events.out.tfevents.7.host").touch()
    first, second = recorders
    assert first.id != second.id
    assert places(second.told) == PLACES
    run_folder.clear(out, ["grpo"])
    assert list((out / "grpo").iterdir()) == []


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_named_before_anything_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # what importing it raises, whether it is installed or not
    monkeypatch.setitem(sys.modules, TRACKERS[name].module, None)
    out = tmp_path / "run"
    arguments = ["train", str(tiny_file(tmp_path)), f"log_to=[{name}]", "--out", str(out)]
    for more in ([], ["--dry-run"]):
        assert cli.main(arguments + more) != 0
        message = capsys.readouterr().err
        assert "recipe key 'log_to'" in message
        assert f"pip install 'logitless[{name}]'" in message
        assert not out.exists()


def test_names_are_those_of_the_recipe_and_of_the_extras(tmp_path: Path) -> None:
    (names,) = get_args(get_type_hints(Recipe)["log_to"])
    assert set(get_args(names)) == set(TRACKERS)
    extras = (ROOT / "pyproject.toml").read_text("utf-8")
    for name in TRACKERS:
        assert f'\n{name} = ["logitless[train]", "{name}>=' in extras
    with pytest.raises(ValueError, match=r"'log_to\[0\]' must be one of 'tensorboard'.*'wandbb'"):
        recipe(tmp_path, "log_to=[wandbb]")
    with pytest.raises(ValueError, match="'log_to' must have no two alike"):
        recipe(tmp_path, "log_to=[wandb, wandb]")


# A wandb of a few lines, in the folder where ranks run: every rank that told it has a line.
STAND_IN = """
import os, pathlib
def init(**options):
    return Run()
class Run:
    def log(self, numbers, step):
        with pathlib.Path("told.txt").open("a") as file:
            print(os.environ["RANK"], step, len(numbers) > 5, file=file)
    def finish(self):
        pass
"""


def test_the_first_rank_alone_tells(tmp_path: Path) -> None:
    tiny_file(tmp_path)
    (tmp_path / "wandb.py").write_text(STAND_IN, "utf-8")
    options = [*OPTIONS, "log_to=[wandb]", "steps=2"]
    done = torchrun.forked(2, "train", "tiny.yaml", *options, "--out", "run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "told.txt").read_text("utf-8").splitlines()
    assert told == [f"0 {step} True" for step, _ in PLACES[:4]]


def interrupted(tmp_path: Path, name: str) -> Path:
    """A run of 4 steps of which the last two are done again, and one more."""
    out = tmp_path / "run"
    assert run(recipe(tmp_path, f"log_to=[{name}]"), out) == 0
    shutil.rmtree(out / "grpo" / "checkpoint-000004")
    assert run(recipe(tmp_path, f"log_to=[{name}]", "steps=5"), out, resume=True) == 0
    return out


def assert_told(out: Path, found: Mapping[str, list[tuple[int, float]]], exact: bool) -> None:
    """Of each name one number a step, as the JSON lines have it; times of a step that was done
    twice are those of the first time."""
    expected: dict[str, list[tuple[int, float]]] = {}
    for step, numbers in written(out):
        for name, value in numbers.items():
            expected.setdefault(name, []).append((step, value))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in values], name
        if not name.startswith(("seconds", "tokens_per_second", "peak_memory", "evaluation/sec")):
            rel = 0 if exact else 1e-6
            mine = [value for _, value in found[name]]
            assert mine == pytest.approx([value for _, value in values], rel=rel, abs=0), name


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_it_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = interrupted(tmp_path, "tensorboard")
    events = EventAccumulator(str(out / "grpo"), size_guidance={"scalars": 0})
    events.Reload()
    found = {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    # an event's number is a float32
    assert_told(out, found, exact=False)


@pytest.mark.filterwarnings("ignore")
def test_wandb_reads_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = interrupted(tmp_path, "wandb")
    found: dict[str, list[tuple[int, float]]] = {}
    files = sorted((out / "grpo" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    # both are parts of one run
    (id,) = {file.stem for file in files}
    assert id == "run-" + json.loads((out / "grpo" / "trackers.json").read_text("utf-8"))["id"]
    for file in files:
        for step, numbers in wandb_history(file):
            for name, value in numbers.items():
                found.setdefault(name, []).append((step, value))
    assert_told(out, found, exact=True)


def wandb_history(file: Path) -> Told:
    from wandb.proto import wandb_internal_pb2

    rows: Told = []
    for data in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            step = int(record.history.step.num)
            rows.append((step, {k: v for k, v in items.items() if not k.startswith("_")}))
    return rows


def wandb_records(content: bytes) -> Iterator[bytes]:
    """Of a log in LevelDB's format: blocks of 32 KiB, with a header of wandb's own."""
    at, block, record = 7, 32768, b""
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        # whole, or the last part of one
        if kind in (1, 4):
            yield record
            record = b""


@pytest.mark.filterwarnings("ignore")
def test_trackio_reads_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # where its files go is decided when it is imported
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    out = interrupted(tmp_path, "trackio")
    (one,) = trackio.Api().runs("logitless")
    assert one.name.startswith("run/grpo-")
    found: dict[str, list[tuple[int, float]]] = {}
    for row in SQLiteStorage.get_logs("logitless", one.name, run_id=one.id):
        for name, value in row.items():
            if name not in ("step", "timestamp"):
                found.setdefault(name, []).append((row["step"], value))
    assert_told(out, found, exact=True)
