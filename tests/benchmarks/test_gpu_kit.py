"""./dev gpu with stages that hang, crash and lie: what was found before must still be there."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from benchmarks.gpu import build_paths, orchestrate, report
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.runner import LOG, Job, child_environment, run_stage
from benchmarks.gpu.stage_process import MODULES, Work
from benchmarks.gpu.stage_table import BY_NAME, STAGES, Stage, objection
from benchmarks.gpu.stages import build, environment
from benchmarks.gpu.store import Store

FAKE = Stage("fake", "a stage of these tests", 10, core=False)
# A stage process: the cases of `cases` in order, each a line of Python.
CHILD = """
import os, sys, time
from pathlib import Path
from benchmarks.gpu.stage_process import Work
from benchmarks.gpu.stage_table import Stage
from benchmarks.gpu.store import Store
out = Path(sys.argv[1])
stage = Stage("fake", "", 10, case_seconds=int(sys.argv[2]))
work = Work(stage, out, False, time.monotonic() + 60, Store(out))
def case(code):
    return lambda: exec(code) or {"value": 1}
work.each([(code, case(code)) for code in sys.argv[3:]])
"""


def run_fake(out: Path, *lines: str, seconds: int = 10, case_seconds: int = 0) -> Store:
    """The stage whose cases are these lines of Python, under the real runner."""
    command = [sys.executable, "-c", CHILD, str(out), str(case_seconds), *lines]
    store = Store(out)
    stage = replace(FAKE, seconds=seconds)
    run_stage(stage, Job(out), store, time.monotonic() + 60, lambda *_: command)
    return store


def statuses(store: Store) -> dict[str, str]:
    return {key: case["status"] for key, case in store.cases("fake").items()}


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stage_that_hangs_is_ended_with_all_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    start = "import subprocess; p = subprocess.Popen(['sleep', '60'])"
    hang = f"{start}; Path({str(pid)!r}).write_text(str(p.pid)); p.wait()"
    store = run_fake(tmp_path, "1 + 1", hang, "2 + 2", seconds=3)
    assert statuses(store) == {"1 + 1": "done", hang: "failed"}
    assert store.cases("fake")["1 + 1"]["value"] == 1
    assert store.stage("fake")["status"] == "timed out"
    assert store.stage("fake")["planned"] == ["1 + 1", hang, "2 + 2"]
    assert not is_alive(int(pid.read_text()))


def test_a_crash_costs_its_own_case_alone(tmp_path: Path) -> None:
    crash = "print('last words', flush=True); os._exit(9)"
    store = run_fake(tmp_path, "1", crash, "2", crash.replace("9", "8"), "3")
    expected = ["done", "failed", "done", "failed", "done"]
    assert list(statuses(store).values()) == expected
    reason = store.cases("fake")[crash]["reason"]
    assert "status 9" in reason and "last words" in reason
    assert store.stage("fake")["status"] == "done"
    assert "last words" in (tmp_path / LOG).read_text()


def test_a_case_that_hangs_makes_room_for_the_next(tmp_path: Path) -> None:
    store = run_fake(tmp_path, "1", "time.sleep(60)", "2", case_seconds=1)
    assert list(statuses(store).values()) == ["done", "failed", "done"]
    # Where it hung is said.
    assert "Timeout" in store.cases("fake")["time.sleep(60)"]["reason"]


def test_an_exception_is_a_result(tmp_path: Path) -> None:
    store = run_fake(tmp_path, "1 / 0", "2")
    assert list(statuses(store).values()) == ["failed", "done"]
    assert store.cases("fake")["1 / 0"]["reason"] == "ZeroDivisionError: division by zero"


def test_a_process_that_dies_at_once_is_not_begun_for_ever(tmp_path: Path) -> None:
    store = Store(tmp_path)
    marks = tmp_path / "marks"
    code = f"open({str(marks)!r}, 'a').write('x'); raise SystemExit(7)"
    command = [sys.executable, "-c", code]
    run_stage(FAKE, Job(tmp_path), store, time.monotonic() + 60, lambda *_: command)
    assert store.stage("fake")["status"] == "failed"
    assert "status 7" in store.stage("fake")["reason"]
    assert marks.read_text() == "x"


def test_finished_cases_are_not_run_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    work = Work(FAKE, tmp_path, False, math.inf, store)
    ran: list[str] = []

    def case(name: str) -> Any:
        def run() -> dict[str, Any]:
            ran.append(name)
            return {}

        return name, run

    work.each([case("a")])
    work.each([case("a"), case("b")])
    assert ran == ["a", "b"]
    late = replace(work, deadline=time.monotonic())
    late.each([case("a"), case("b"), case("c")])
    assert ran == ["a", "b"] and store.stage("fake")["planned"] == ["a", "b", "c"]


def test_a_process_may_ask_to_be_begun_again(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    seen = f"Path({str(mark)!r})"
    ask = "from benchmarks.gpu.stage_process import Again; raise Again('please')"
    line = f"{seen}.exists() or ({seen}.touch(), exec({ask!r}))"
    store = run_fake(tmp_path, "1", line, "2")
    assert list(statuses(store).values()) == ["done"] * 3
    assert store.stage("fake")["status"] == "done"


# ---- the run as a whole


def run_kit(out: Path, names: list[str], outcome: str = "done", **options: Any) -> list[str]:
    """Which of the stages ran."""
    ran: list[str] = []

    def run_one(stage: Stage, job: Job, store: Store, deadline: float) -> None:
        ran.append(stage.name)
        store.set_case(stage.name, "case", "done")
        store.set_stage(stage.name, status=outcome, reason="", seconds=1.0)

    options = {"objection": lambda stage, rehearse: None, **options}
    # no clock: a machine that stands still for a minute runs the same stages
    seconds = options.pop("seconds", math.inf)
    job = Job(out, rehearse=True)
    orchestrate.run(job, orchestrate.chosen(names, []), seconds, run_one=run_one, **options)
    return ran


def test_a_second_run_does_what_is_left(tmp_path: Path) -> None:
    assert run_kit(tmp_path, ["smoke"]) == ["smoke"]
    assert run_kit(tmp_path, ["headline"], outcome="timed out") == ["headline"]
    assert run_kit(tmp_path, ["smoke", "headline", "sizes"]) == ["headline", "sizes"]
    assert run_kit(tmp_path, ["smoke"], fresh=True) == ["smoke"]
    assert run_kit(tmp_path, ["headline", "sizes"]) == []


def test_results_of_other_sources_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_kit(tmp_path, ["smoke"])
    monkeypatch.setattr(orchestrate, "sources_hash", lambda: "another")
    with pytest.raises(ValueError, match="--fresh"):
        run_kit(tmp_path, ["smoke"])
    assert run_kit(tmp_path, ["smoke"], fresh=True) == ["smoke"]
    assert Store(tmp_path).read()["sources"] == "another"


def test_the_hash_is_of_the_contents(tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    file = tmp_path / "csrc" / "a.cu"
    file.write_text("one")
    first = build_paths.sources_hash(("csrc",), tmp_path)
    (tmp_path / "csrc" / "a.o").write_text("not a source")
    assert build_paths.sources_hash(("csrc",), tmp_path) == first
    file.write_text("two")
    assert build_paths.sources_hash(("csrc",), tmp_path) != first


def test_stages_are_chosen_by_name_and_keep_their_order() -> None:
    assert [s.name for s in orchestrate.chosen(["sizes", "smoke"], [])] == ["smoke", "sizes"]
    left = [s.name for s in orchestrate.chosen([], ["tests", "profile"])]
    assert left == [s.name for s in STAGES if s.name not in ("tests", "profile")]
    with pytest.raises(ValueError, match=r"no stage 'size'.*sizes"):
        orchestrate.chosen(["size"], [])
    assert main(["--only", "nothing"]) == 2
    # Each has its module, and the most valuable come first.
    assert set(MODULES) == set(BY_NAME)
    assert [s.name for s in STAGES[:4]] == ["environment", "build", "smoke", "headline"]


def test_what_is_missing_skips_what_needs_it() -> None:
    stage = Stage("s", "", 1, ("torch", "triton"), ("ninja",), core=False)
    here = objection(stage, False, lambda name: name != "triton", lambda name: False)
    assert here == "missing: triton, ninja"
    assert objection(replace(stage, gpu_only=True), True) == "needs a GPU"
    assert objection(replace(stage, modules=(), programs=()), False) is None


def test_stages_without_time_or_tools_are_named(tmp_path: Path) -> None:
    assert run_kit(tmp_path, ["smoke"], seconds=0) == []
    assert run_kit(tmp_path, ["sizes"], objection=lambda stage, _: "missing: triton") == []
    text = (tmp_path / report.NAME).read_text()
    assert "| smoke | skipped |" in text and "no time left" in text
    assert "missing: triton" in text


def test_nothing_is_asked_of_the_network(tmp_path: Path) -> None:
    command = build.pip_command({"LOGITLESS_CUDA": "ON"})
    assert {"--no-index", "--no-deps", "--no-build-isolation"} <= set(command)
    environment = child_environment(Job(tmp_path))
    assert environment["PIP_NO_INDEX"] == "1" and environment["HF_HUB_OFFLINE"] == "1"


def test_the_gpu_at_hand_is_the_only_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "gpus", lambda: [{"compute_cap": "9.0"}, {"compute_cap": "9.0"}])
    assert build.architectures() == "90"
    monkeypatch.setattr(build, "gpus", lambda: [{"compute_cap": "[N/A]"}])
    assert build.architectures() == ""


def test_a_driver_that_knows_less_still_names_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(command: list[str]) -> str | None:
        return None if "clocks" in command[1] else "NVIDIA Test, 1.0, 8.0, 10 MiB, 1 MiB, 9 MiB"

    monkeypatch.setattr(environment, "said", said)
    (gpu,) = environment.gpus()
    assert gpu["name"] == "NVIDIA Test" and gpu["compute_cap"] == "8.0"
    assert build.architectures() == "80"


@pytest.mark.parametrize("broken", [("ON",), ("ON", "OFF")])
def test_without_cuda_there_is_still_triton(
    monkeypatch: pytest.MonkeyPatch, broken: tuple[str, ...]
) -> None:
    def install(switches: dict[str, str]) -> dict[str, Any]:
        if switches["LOGITLESS_CUDA"] in broken:
            raise RuntimeError("error: no such kernel")
        return {"build_info": {}}

    monkeypatch.setattr(build, "install", install)
    monkeypatch.setattr(build, "architectures", lambda: "90")
    monkeypatch.setattr("benchmarks.gpu.stages.build.shutil.which", lambda name: f"/bin/{name}")
    if broken == ("ON",):
        assert "no such kernel" in build.build()["reason"]
    else:
        with pytest.raises(RuntimeError, match="no such kernel"):
            build.build()


def test_pictures_have_time_kept_for_them(tmp_path: Path) -> None:
    deadlines: dict[str, float] = {}

    def run_one(stage: Stage, job: Job, store: Store, deadline: float) -> None:
        deadlines[stage.name] = deadline - started
        store.set_stage(stage.name, status="done", reason="")

    started = time.monotonic()
    job, stages = Job(tmp_path, rehearse=True), orchestrate.chosen(["smoke", "plots"], [])
    orchestrate.run(job, stages, 1e6, run_one=run_one, objection=lambda *_: None)
    kept = BY_NAME["plots"].kept_seconds
    assert kept > 0 and deadlines["plots"] - deadlines["smoke"] == pytest.approx(kept)


def test_without_a_gpu_the_rehearsal_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(orchestrate, "device_name", lambda rehearse: orchestrate.NO_GPU)
    assert main(["--out", str(tmp_path)]) == 2
    assert "--rehearse" in capsys.readouterr().err
