"""First contact with a GPU where there is none: faults of every kind cost themselves alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

import logitless as ll
from benchmarks.gpu import carry, contact, contact_table
from benchmarks.gpu.build_paths import sources_hash
from benchmarks.gpu.contact import NAMES, STEPS, Run
from logitless import _core
from tests.support.paths import ROOT, TESTS

FAULTS = TESTS / "support" / "device"


def faulty(out: Path, seconds: float = 60.0) -> Run:
    run = Run(out, "cpu", True, time.monotonic() + seconds, module="contact_faults")
    run.path = [FAULTS]
    return run


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Path]:
    """A run through all faults."""
    out = tmp_path_factory.mktemp("contact")
    pid = out / "pid"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTACT_PID", str(pid))
        patch.setattr(contact, "first_look", lambda run, *_, **__: None)
        steps = [replace(s, seconds=8.0 if s.name == "T5" else 20.0) for s in STEPS]
        assert not contact.contact(faulty(out), steps, out)
    return out, results(out), pid


def statuses(step: dict[str, Any]) -> dict[str, str]:
    return {key: case["status"] for key, case in step["cases"].items()}


def test_an_error_costs_its_case_alone(aftermath: Any) -> None:
    step = aftermath[1]["steps"]["T1"]
    assert statuses(step) == {
        "before": "done", "raises": "failed", "not here": "skipped", "no dictionary": "failed",
        "after": "done",
    }  # fmt: skip
    assert step["status"] == "done"
    assert "out of memory" in step["cases"]["raises"]["reason"]
    assert step["cases"]["after"]["ms"] == 2.0


def test_a_crash_costs_its_case_alone(aftermath: Any) -> None:
    step = aftermath[1]["steps"]["T2"]
    assert statuses(step) == {"before": "done", "crashes": "failed", "after": "done"}
    reason = step["cases"]["crashes"]["reason"]
    assert "status 9" in reason and "last words" in reason
    assert "last words" in (aftermath[0] / "log.txt").read_text()


def test_a_lost_device_is_left_behind(aftermath: Any) -> None:
    step = aftermath[1]["steps"]["T4"]
    assert statuses(step) == {"loses": "failed", "after": "done"}
    assert step["cases"]["after"]["lost"] is False


def test_garbage_hides_nothing(aftermath: Any) -> None:
    data = aftermath[1]
    assert statuses(data["steps"]["T3"]) == {"garbage": "done", "after": "done"}
    assert len(data["garbage"]) == 4
    # A number that is none, and another step's name, stay with the case that said so.
    assert data["steps"]["T3"]["cases"]["garbage"]["ms"] == "fast"
    assert "garbage:" not in contact_table.short(data)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_hang_ends_with_its_step_and_its_children(aftermath: Any) -> None:
    _, data, pid = aftermath
    step = data["steps"]["T5"]
    assert statuses(step) == {"before": "done", "hangs": "failed"}
    assert step["status"] == "timed out"
    # Where it hung is said.
    assert "contact_faults.py" in step["cases"]["hangs"]["reason"]
    stat = Path(f"/proc/{pid.read_text()}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_broken_step_leaves_the_others(aftermath: Any) -> None:
    steps = aftermath[1]["steps"]
    assert steps["T6"]["status"] == "failed" and "no inputs" in steps["T6"]["reason"]
    assert steps["T8"]["status"] == "failed" and "status 7" in steps["T8"]["reason"]
    for name in ("T7", "T9", "T10", "T11", "T12", "T13"):
        assert statuses(steps[name]) == {"last": "done"} and steps[name]["status"] == "done"
    assert list(steps) == list(NAMES)


def test_the_tables_name_what_failed(aftermath: Any) -> None:
    out, data, _ = aftermath
    short, whole = contact_table.short(data), (out / "table.md").read_text()
    for text in (short, whole):
        for words in ("T1 raises: RuntimeError: CUDA out of memory", "T5 hangs: ", "no inputs"):
            assert words in text
    assert len(short) <= contact_table.SHORT_CHARACTERS + 100
    assert "NaN" not in (out / "results.json").read_text()
    assert "| before |" in whole


def test_who_is_killed_leaves_what_was_found(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; from pathlib import Path;"
        "from benchmarks.gpu import contact as c;"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143));"
        "run = c.Run(Path(sys.argv[1]), 'cpu', True, time.monotonic() + 60,"
        " module='contact_faults'); run.path = [Path(sys.argv[2])];"
        "c.first_look = lambda *_, **__: None; c.contact(run, c.STEPS, run.out)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(FAULTS)], cwd=ROOT,
        env={**os.environ, "CONTACT_SLOW": "1"}, stdout=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        done = 0
        while done < 3 and time.monotonic() < deadline:
            time.sleep(0.2)
            if (tmp_path / "results.json").exists():
                cases = results(tmp_path)["steps"].get("T1", {}).get("cases", {})
                done = sum(case["status"] == "done" for case in cases.values())
        assert done >= 3
    finally:
        process.terminate()
        process.wait(20)
    assert process.returncode == 128 + signal.SIGTERM
    assert sum(c["status"] == "done" for c in results(tmp_path)["steps"]["T1"]["cases"].values())


def test_what_there_is_no_time_for_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact, "first_look", lambda *_, **__: None)
    started = time.monotonic()
    assert contact.contact(faulty(tmp_path, seconds=1.0), STEPS, tmp_path)
    assert time.monotonic() - started < 10
    for step in results(tmp_path)["steps"].values():
        assert step["status"] == "skipped" and step["reason"] == "no time left"


def test_without_a_package_there_is_still_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was carried does not import, and the build fails: T1 needs neither."""
    monkeypatch.setattr(contact, "BUILT", tmp_path / "built")
    monkeypatch.setattr(contact, "facts", dict)
    begun: list[Path] = []

    def build_here(folder: Path, core: Path, chips: str | None) -> Any:
        begun.append(core)
        core.parent.mkdir(parents=True)
        carry.build_log(core).write_text("error: no such compiler")
        return subprocess.Popen(
            [sys.executable, "-c", "raise SystemExit(1)"], start_new_session=True
        )

    monkeypatch.setattr(carry, "build_here", build_here)
    run = faulty(tmp_path / "out")
    chosen = [step for step in STEPS if step.name in ("T1", "T7")]
    # The module of the faults is among the tests, where first_look does not put the path.
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    contact.contact(run, chosen, tmp_path / "carried")
    data = results(tmp_path / "out")
    assert begun and data["package"]["how"] == "none"
    assert "no such compiler" in data["package"]["reason"]
    assert data["steps"]["T1"]["cases"]["after"]["ms"] == 2.0
    assert data["steps"]["T7"] == {
        "status": "skipped",
        "cases": {},
        "reason": "there is no package",
    }
    assert any("no package" in line for line in contact_table.failures(data))


# ---- what travels


def test_a_carried_core_is_of_these_sources(tmp_path: Path) -> None:
    assert "no core for" in str(carry.core_of(tmp_path))
    folder = tmp_path / carry.folder_of(str(sys.implementation.cache_tag))
    folder.mkdir()
    (folder / Path(_core.__file__).name).write_bytes(Path(_core.__file__).read_bytes())
    (folder / carry.STAMP).write_text("of last year")
    assert "built from other sources" in str(carry.core_of(tmp_path))
    (folder / carry.STAMP).write_text(sources_hash(carry.CORE))
    core = carry.core_of(tmp_path)
    assert isinstance(core, Path)
    # Laid out with the tree's Python it is a package, whatever else is installed.
    site = tmp_path / "site"
    carry.lay_out(site, core)
    assert carry.about(site)["cuda"] == _core.runtime.build_info()["cuda"]
    core.write_bytes(b"no library")
    carry.lay_out(site, core)
    with pytest.raises(RuntimeError, match="does not import"):
        carry.about(site)


def test_a_carried_core_that_does_not_serve_the_device_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact, "BUILT", tmp_path / "built")
    monkeypatch.setattr(carry, "core_of", lambda folder: Path(_core.__file__))
    monkeypatch.setattr(carry, "build_here", lambda *_: "a build")
    run = faulty(tmp_path)
    assert contact.first_look(run, tmp_path, build=True) is None  # of a rehearsal
    assert run.data["package"]["how"] == "carried"
    run.device = "cuda"
    answer = "" if not _core.runtime.cuda_device_reason(0) else "a build"
    assert (contact.first_look(run, tmp_path, build=True) or "") == answer
    if answer:
        reason = _core.runtime.cuda_device_reason(0)
        assert f"it does not serve the device: {reason}" in run.data["package"]["reason"]


def test_a_python_without_headers_is_named(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho \'["cpython-312", "{python}", "{tmp_path}"]\'\n')
    python.chmod(0o755)
    with pytest.raises(ValueError, match="has no headers"):
        carry.pythons([str(python)])
    (tmp_path / "Python.h").touch()
    assert carry.pythons([str(python)]) == {"cpython-312": str(python)}


def test_wrong_options_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--out", "x", "--only", "T0"], "no step 'T0'; there are T1"),
        ([], "--out DIR is needed"),
    ):
        with pytest.raises(SystemExit):
            contact.parse(arguments)
        assert words in capsys.readouterr().err


# ---- the checks before a figure


@pytest.mark.parametrize("spoil", ["logp", "entropy", "d_hidden", "d_weight"])
@pytest.mark.parametrize("how", ["off", "nan"])
def test_a_wrong_figure_is_not_kept(spoil: str, how: str) -> None:
    from benchmarks.gpu.contact_steps.checks import check_head, head_inputs
    from benchmarks.gpu.contact_steps.tiling import AMPLE, forced, stats_gradients

    x = head_inputs(21, 32, 5000, torch.bfloat16, "cpu")
    with forced(21, 2048, 0):
        plan = ll.plan(21, 32, 5000, torch.bfloat16, one_pass=False)
        assert (plan.rows, plan.columns, plan.mode) == (21, 2048, "recompute")
        found = stats_gradients(ll, x, AMPLE, "cpu")
    assert set(check_head(x, found)) == {"logp", "entropy", "d_hidden", "d_weight"}
    value = found[spoil].detach().clone()
    # Of one row, or one column: a product dropped, or the wrong tile.
    where = x.columns()[0] if spoil == "d_weight" else x.rows()[-1]
    wrong = float("nan") if how == "nan" else value[where] + value.abs().max()
    value[where] = wrong
    with pytest.raises(AssertionError, match=f"{spoil} is off by"):
        check_head(x, {**found, spoil: value})


def test_wrong_rows_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu.contact_steps.checks import check_rows

    assert check_rows("cpu", "cpu", 3, 4097, torch.bfloat16, "chain", 0) < 1
    right = ll.token_stats

    def wrong(logits: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        return right(logits * 1.01, *arguments, **options)

    monkeypatch.setattr(ll, "token_stats", wrong)
    with pytest.raises(AssertionError, match="is off by"):
        check_rows("cpu", "cpu", 3, 4097, torch.bfloat16, "chain", 0)
