"""One process and two ranks of torchrun: the same tokens, losses, files, and a common end."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from logitless.rl.demo.job import run  # noqa: E402
from logitless.rl.engine import ranks  # noqa: E402
from logitless.rl.recipe import Recipe  # noqa: E402
from logitless.rl.rollout import Rollout, join_rollouts  # noqa: E402
from logitless.rl.tracking import checkpoint, metrics  # noqa: E402
from tests.support.recipes import tiny_file, tiny_recipe  # noqa: E402
from tests.support.rl.runs_alike import assert_alike, half_way  # noqa: E402
from tests.support.workers import torchrun  # noqa: E402

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_gloo_available(), reason="torch without gloo"
)

# Some rewards are missing: those of "sum 8:" where an answer is wrong.
TASK = """
import os, signal
from logitless.rl.tasks import Prompt, SumToN

class Moody(SumToN):
    def reward(self, prompt, completion):
        right = super().reward(prompt, completion)
        if prompt.text == "sum 8:" and not right and len(completion) > 2:
            raise KeyError("no mood for this answer")
        return right if right else -0.1 * len(completion)

class Dies(SumToN):
    # what the second rank does in the third step
    def __init__(self, end, **options):
        super().__init__(**options)
        self.end, self.calls = end, 0

    def prompts(self, rng, n):
        self.calls += n == 5
        if self.calls == 3 and os.environ.get("RANK") == "1":
            if self.end == "raise":
                raise LookupError("the file of prompts is gone")
            if self.end == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
        return super().prompts(rng, n)

    def reward(self, prompt, completion):
        if self.end == "reward" and self.calls == 3:
            raise ArithmeticError("no answer pleases")
        return super().reward(prompt, completion)
"""
# Prompts and sequences are no multiple of two; the KL of the first method is against a reference.
OPTIONS = (
    "compare_repeats=0", "rollout.prompts=5", "rollout.group=7", "update.minibatches=3",
    "update.micro_batches=2", "update.epochs=2", "evaluation.every=2", "evaluation.group=3",
    "evaluation.prompts=5", "update.lr_schedule=linear", "update.lr_decay_steps=9",
    "reference={kind: ema, decay: 0.5}", "task.name=moody_tasks.py:Moody",
    "methods.grpo.change={kl: {coefficient: 0.1}}",
)  # fmt: skip
METHODS = ("grpo", "clip_cov")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the task, where everything runs."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "moody_tasks.py").write_text(TASK, "utf-8")
    tiny_file(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def recipe(home: Path, *overrides: str) -> Recipe:
    return tiny_recipe(home, *OPTIONS, *overrides)


def on_two(home: Path, out: str, *overrides: str, run: Any = torchrun.forked) -> Any:
    return run(2, "train", "tiny.yaml", *OPTIONS, *overrides, "--out", out, folder=home)


@pytest.fixture(scope="module")
def alone(home: Path) -> Path:
    assert run(recipe(home), home / "alone") == 0
    return home / "alone"


@pytest.fixture(scope="module")
def pair(home: Path) -> Path:
    done = on_two(home, "pair", run=torchrun.run)
    assert done.returncode == 0, done.stderr
    # one of them speaks
    assert done.stdout.count("report: pair/report.html") == 1
    assert done.stdout.count("after   4 steps, evaluation") == 2
    return home / "pair"


def test_two_ranks_are_one_process(pair: Path, alone: Path) -> None:
    assert_alike(pair, alone, METHODS)
    rows = metrics.read(pair / "clip_cov" / metrics.FILE)
    assert sum(row["selected_tokens"] for row in rows) > 0
    assert sum(row["skipped_prompts"] for row in rows) > 0
    assert {"entropy_change", "entropy_change_predicted"} <= rows[2].keys()
    assert metrics.read(pair / "grpo" / metrics.FILE)[3]["actor/kl_loss"] > 0
    summary = json.loads((pair / "summary.json").read_text("utf-8"))
    assert set(summary) == {"grpo", "clip_cov"}


BY_TOKENS = ("update.micro_batches=1", "update.micro_tokens=25")


def test_ranks_cut_their_shares_by_tokens(home: Path, alone: Path) -> None:
    done = on_two(home, "by_tokens", *BY_TOKENS)
    assert done.returncode == 0, done.stderr
    assert_alike(home / "by_tokens", alone, METHODS)


def test_one_process_goes_on_for_two(home: Path, pair: Path, alone: Path) -> None:
    out = half_way(pair, home / "then_one", METHODS)
    assert run(recipe(home), home / out, resume=True) == 0
    assert_alike(home / out, alone, METHODS)


def test_two_go_on_for_one_process(home: Path, alone: Path) -> None:
    out = half_way(alone, home / "then_two", METHODS)
    done = on_two(home, out, "--resume")
    assert done.returncode == 0, done.stderr
    assert_alike(home / out, alone, METHODS)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("raise", "of the task has failed: LookupError: the file of prompts is gone"),
        ("reward", "none of 5 prompts could be scored: ArithmeticError: no answer pleases"),
        ("SIGKILL", "rank 0 has lost another rank"),
    ],
)
def test_an_error_on_one_rank_ends_all(home: Path, end: str, message: str) -> None:
    out, options = f"dead_{end}", f"task.options={{low: 8, high: 10, digits: 2, end: {end}}}"
    began = time.monotonic()
    more = ("task.name=moody_tasks.py:Dies", options, "warmup.steps=5", "evaluation.every=0")
    done = on_two(home, out, *more, run=torchrun.run)
    # far from the half hour that gloo would wait for
    assert time.monotonic() - began < 600
    assert done.returncode != 0
    # said after the user's traceback, and who reports the other's end says nothing
    assert sum(message in line for line in done.stderr.splitlines()) == 1, done.stderr
    # two steps were written, and their checkpoint
    assert len(metrics.read(home / out / "grpo" / metrics.FILE)) == 2
    saved = checkpoint.latest(home / out / "grpo")
    assert saved is not None and saved.name == "checkpoint-000002"


def test_what_is_refused_is_said_once(home: Path) -> None:
    done = on_two(home, "refused", "rollout.prompts=1", "rollout.group=35", run=torchrun.run)
    assert done.returncode != 0
    message = "recipe key 'rollout.prompts' must be at least 2, a prompt for each rank, got 1"
    assert done.stderr.count(message) == 1
    assert not (home / "refused").exists()


def test_a_signal_ends_all_with_a_checkpoint(home: Path) -> None:
    with torchrun.start(
        2, "train", "tiny.yaml", *OPTIONS, "steps=100000", "--out", "stopped", folder=home
    ) as process:  # fmt: skip
        log, deadline = home / "stopped" / "grpo" / metrics.FILE, time.monotonic() + 300
        while len(metrics.read(log)) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=300)
    assert out.count("stopped before its end; --resume --out stopped goes on") == 1
    rows = metrics.read(log)
    assert len(rows) >= 3
    saved = checkpoint.latest(home / "stopped" / "grpo")
    assert saved is not None and checkpoint.step_of(saved) == len(rows)
    assert not (home / "stopped" / "clip_cov").exists()


def test_a_method_that_diverges_ends_on_all_ranks_and_the_next_begins(home: Path) -> None:
    wild = "{preset: ppo, change: {entropy: {coefficient: 1e38}}}"
    methods = f"methods={{wild: {wild}, grpo: {{preset: grpo}}}}"
    done = on_two(
        home, "wild", methods, "steps=2", "reference={kind: frozen}", "task.name=sum_to_n"
    )
    assert done.stdout.count("method 'wild' diverged in step ") == 1
    assert len(metrics.read(home / "wild" / "grpo" / metrics.FILE)) == 2


@pytest.mark.parametrize("things", [0, 1, 5, 8])
def test_shares_are_all_there_is(things: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(ranks, "count", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(ranks, "number", lambda rank=rank: rank)
        found.append(list(range(things))[ranks.share(things)])
    assert [thing for part in found for thing in part] == list(range(things))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_rollouts_are_joined_as_if_sampled_together() -> None:
    def part(prompts: list[list[int]], answers: list[list[int]]) -> Rollout:
        left, right = (max(map(len, rows)) for rows in (prompts, answers))
        ids = [
            [9] * (left - len(p)) + p + a + [9] * (right - len(a))
            for p, a in zip(prompts, answers, strict=True)
        ]
        mask = torch.tensor([[t < len(a) for t in range(right)] for a in answers])
        before = torch.tensor([[t >= left - len(p) for t in range(left)] for p in prompts])
        numbers = torch.tensor([[float(x) for x in a] + [0.0] * (right - len(a)) for a in answers])
        attention = torch.cat([before, mask], dim=1)
        return Rollout(torch.tensor(ids), attention, mask, -numbers, 2 * numbers)

    prompts, answers = [[1], [1, 2], [3, 4, 5]], [[6, 7, 8], [6], [7, 8]]
    whole = part(prompts, answers)
    found = join_rollouts([part(prompts[:2], answers[:2]), part(prompts[2:], answers[2:])], pad=9)
    for name, value in vars(whole).items():
        mine = getattr(found, name)
        assert mine is value or torch.equal(mine, value), name
