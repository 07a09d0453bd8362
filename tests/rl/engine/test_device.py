"""A recipe's device: what is refused, and that no tensor of the host meets one of the device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import logitless.rl  # noqa: E402
from logitless.cli import main  # noqa: E402
from logitless.rl.demo.job import run  # noqa: E402
from logitless.rl.engine import claim_device, ranks  # noqa: E402
from logitless.rl.recipe import ModelRecipe  # noqa: E402
from tests.support.device.stated import Host, Stated  # noqa: E402
from tests.support.recipes import tiny_file, tiny_recipe  # noqa: E402

FOLDER = Path(logitless.rl.__file__).parent
# All that a step can do; the comparison with full logits is one of the host's memory.
EVERYTHING = (
    "steps=1", "compare_repeats=0", "entropy_change_every=1", "evaluation.every=1",
    "evaluation.group=2", "evaluation.prompts=3", "warmup.steps=3", "update.epochs=2",
    "update.micro_batches=2", "reference={kind: ema, decay: 0.5}", "task.name=hosts:Moody",
    "task.rewards={own: {function: task}, steps: {function: 'hosts:steps', steps: min}}",
)  # fmt: skip
METHODS = (
    "methods={grpo: {preset: grpo, change: {kl: {coefficient: 0.1}}}, "
    "clip_cov: {preset: clip_cov}, m2po: {preset: m2po}, clip_v: {preset: clip_v}, "
    "pure: {preset: clip_cov, advantage: pure}, process: {preset: grpo, advantage: process}}"
)
TASK = """
from logitless.rl.tasks import SumToN

class Moody(SumToN):
    calls = 0

    def reward(self, prompt, completion):
        self.calls += 1
        if self.calls % 40 == 1:
            raise KeyError("no mood for this answer")
        return super().reward(prompt, completion)

def steps(prompt, completion, data):
    return [(len(completion), float(len(completion) > 2))]
"""


@pytest.mark.parametrize("more", [(), ("rollout.top_p=0.9", "model.share_prompts=true")])
def test_every_tensor_is_made_where_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    (tmp_path / "hosts.py").write_text(TASK, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    recipe = tiny_recipe(tmp_path, *EVERYTHING, METHODS, *more)
    with Stated(FOLDER) as watched:
        assert run(recipe, tmp_path / "run") == 0
    sys.modules.pop("hosts")
    on_host = {file for file, host in watched.made if host}
    on_device = {file for file, host in watched.made if not host}
    # rewards are the host's, and so is the choice of prompts by them; and answers that are given
    hosts = {"check.py", "experience.py", "scoring.py", "step_advantages.py", "warmup.py"}
    assert on_host - {"states.py"} == hosts | {"rollout.py"}
    expected = {"generator.py", "loading.py", "parts.py", "update.py", "warmup.py"}
    assert expected | ({"rollout.py", "states.py"} if more else set()) <= on_device


CALLS = {
    "without a device": lambda here: torch.zeros(3),
    "of the host and the device": lambda here: torch.ones(3, device="cpu") * here,
    "": lambda here: torch.ones(3, device="cpu").to(here.device) * here,
}


@pytest.mark.parametrize("message", CALLS)
def test_the_watch_sees_what_is_wrong(message: str) -> None:
    here = torch.ones(3)
    with Stated(Path(__file__).parent) as watched:
        if message:
            with pytest.raises(AssertionError, match=rf"test_device\.py:\d+: .* {message}"):
                CALLS[message](here)
            return
        found = CALLS[message](here)
        assert not isinstance(found, Host)
        assert isinstance((found.cpu() + 1)[1:], Host)
    assert watched.made == {("test_device.py", True)}


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "CUDA", "mps"])
def test_other_devices_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"'model\.device' must be cpu, cuda, or cuda:1 and so on"):
        ModelRecipe(device=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
@pytest.mark.parametrize("command", [("train",), ("train", "--dry-run")])
def test_a_gpu_that_is_not_there_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    out, more = tmp_path / "run", ("model.device=cuda", "compare_repeats=0", "--out")
    assert main([*command, str(tiny_file(tmp_path)), *more, str(out)]) == 2
    message = r"recipe key 'model.device' must be cpu here: torch .* finds no CUDA device; got cuda"
    assert message.split(" torch ")[0] in capsys.readouterr().err
    assert not out.exists()


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_each_rank_has_a_gpu(two_gpus: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, expected in {"cpu": [], "cuda": [0], "cuda:1": [1]}.items():
        two_gpus.clear()
        claim_device(name)
        assert two_gpus == expected
    with pytest.raises(ValueError, match="needs CUDA device 2, and torch finds 2; got cuda:2"):
        claim_device("cuda:2")
    monkeypatch.setattr(ranks, "alone", lambda: False)
    monkeypatch.setattr(ranks, "count", lambda: 3)
    monkeypatch.setenv("LOCAL_RANK", "1")
    two_gpus.clear()
    claim_device("cuda")
    assert two_gpus == [1]
    with pytest.raises(ValueError, match="must be cuda with 3 ranks"):
        claim_device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="needs CUDA device 2, and torch finds 2; got cuda"):
        claim_device("cuda")


def test_a_comparison_is_the_hosts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'compare_repeats' must be 0 with model\.device=cuda"):
        tiny_recipe(tmp_path, "model.device=cuda")


def test_a_run_goes_on_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device of another name, which is this one: the checkpoint knows none."""
    options, out = ("compare_repeats=0", "methods={grpo: {preset: grpo}}"), tmp_path / "run"
    assert run(tiny_recipe(tmp_path, *options, "steps=1"), out) == 0
    elsewhere: Any = tiny_recipe(tmp_path, *options, "steps=2", "model.device=cuda:0")
    monkeypatch.setattr("logitless.rl.demo.prepare.claim_device", lambda name: None)
    to = torch.nn.Module.to
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda self, device: to(self, str(device).replace("cuda:0", "cpu"))
    )
    assert run(elsewhere, out, resume=True) == 0
