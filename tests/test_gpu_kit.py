"""./dev gpu with stages that hang, crash and lie: what was found before must still be there."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from benchmarks.case import Contender, Setting  # noqa: E402
from benchmarks.contenders import EAGER, plain_rows  # noqa: E402
from benchmarks.gpu import build, cases, compare, environment, kit, markdown, measure, plots  # noqa: E402
from benchmarks.gpu import built as built_module  # noqa: E402
from benchmarks.gpu.__main__ import main  # noqa: E402
from benchmarks.gpu.child import AGAIN, MODULES, Leave, Work  # noqa: E402
from benchmarks.gpu.profiling import parse  # noqa: E402
from benchmarks.gpu.runner import LOG, Job, child_environment, run_stage  # noqa: E402
from benchmarks.gpu.stages import BY_NAME, STAGES, Stage, objection  # noqa: E402
from benchmarks.gpu.store import REHEARSAL, Store  # noqa: E402
from benchmarks.match import Match, Measured, play  # noqa: E402
from benchmarks.registry import BY_NAME as OPS  # noqa: E402
from benchmarks.targets import verdicts  # noqa: E402
from benchmarks.timing import Timer, Times  # noqa: E402

FAKE = Stage("fake", "a stage of these tests", 10, core=False)
# A stage process: the cases of `cases` in order, each a line of Python.
CHILD = """
import os, sys, time
from pathlib import Path
from benchmarks.gpu.child import Work
from benchmarks.gpu.stages import Stage
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
    work = Work(FAKE, tmp_path, False, time.monotonic() + 60, store)
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


# ---- the run as a whole


def run_kit(out: Path, names: list[str], outcome: str = "done", **options: Any) -> list[str]:
    """Which of the stages ran."""
    ran: list[str] = []

    def run_one(stage: Stage, job: Job, store: Store, deadline: float) -> None:
        ran.append(stage.name)
        store.set_case(stage.name, "case", "done")
        store.set_stage(stage.name, status=outcome, reason="", seconds=1.0)

    options = {"objection": lambda stage, rehearse: None, **options}
    seconds = options.pop("seconds", 60)
    job = Job(out, rehearse=True)
    kit.run(job, kit.chosen(names, []), seconds, run_one=run_one, **options)
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
    monkeypatch.setattr(kit, "sources_hash", lambda: "another")
    with pytest.raises(ValueError, match="--fresh"):
        run_kit(tmp_path, ["smoke"])
    assert run_kit(tmp_path, ["smoke"], fresh=True) == ["smoke"]
    assert Store(tmp_path).read()["sources"] == "another"


def test_the_hash_is_of_the_contents(tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    file = tmp_path / "csrc" / "a.cu"
    file.write_text("one")
    first = built_module.sources_hash(("csrc",), tmp_path)
    (tmp_path / "csrc" / "a.o").write_text("not a source")
    assert built_module.sources_hash(("csrc",), tmp_path) == first
    file.write_text("two")
    assert built_module.sources_hash(("csrc",), tmp_path) != first


def test_stages_are_chosen_by_name_and_keep_their_order() -> None:
    assert [s.name for s in kit.chosen(["sizes", "smoke"], [])] == ["smoke", "sizes"]
    left = [s.name for s in kit.chosen([], ["tests", "profile"])]
    assert left == [s.name for s in STAGES if s.name not in ("tests", "profile")]
    with pytest.raises(ValueError, match=r"no stage 'size'.*sizes"):
        kit.chosen(["size"], [])
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
    text = (tmp_path / markdown.NAME).read_text()
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
    monkeypatch.setattr("benchmarks.gpu.build.shutil.which", lambda name: f"/bin/{name}")
    if broken == ("ON",):
        assert "no such kernel" in build.build()["reason"]
    else:
        with pytest.raises(RuntimeError, match="no such kernel"):
            build.build()


# ---- measuring


def test_the_registry_decides_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    new = replace(OPS["policy loss"], name="brand new", group="a group of its own")
    monkeypatch.setattr("benchmarks.gpu.cases.OPS", [*OPS.values(), new])
    for rehearse in (False, True):
        assert any(case.op is new for case in cases.of("others", rehearse))
    everywhere = {case.op.name for stage in cases.STAGES for case in cases.of(stage, False)}
    assert everywhere == {*OPS, "brand new"}


def test_the_promised_sizes_are_measured_the_telling_ones_first() -> None:
    found = [case for case in cases.of("sizes", False) if not case.compiled]
    shapes = {(c.op.name, c.setting.rows, c.setting.vocab, c.setting.dtype) for c in found}
    assert len(shapes) == len(found) == 3 * 3 * 4 * 2
    assert (found[0].setting.vocab, found[0].setting.dtype) == (151_936, "bfloat16")
    first = cases.of("headline", False)[0]
    assert first.key == "forward, 8192 x 151936 bfloat16"
    assert first.key in {case.key for case in found}


def test_nobody_waits_for_a_compiler() -> None:
    """Those cases come after all others of their stage, and have a name of their own."""
    for stage in cases.STAGES:
        found = cases.of(stage, False)
        assert [c.compiled for c in found] == sorted(c.compiled for c in found)
        assert len({case.key for case in found}) == len(found)
    assert any(c.compiled for c in cases.of("headline", False))


def test_backends_are_forced_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOGITLESS_BACKEND", raising=False)
    seen: list[Any] = []

    def look() -> dict[str, Any]:
        seen.append(os.environ["LOGITLESS_BACKEND"])
        return {}

    run = measure.with_backend(look, "cuda")
    run()
    assert seen == ["cuda"] and "LOGITLESS_BACKEND" not in os.environ
    monkeypatch.setenv("LOGITLESS_BACKEND", "torch")
    run()
    assert seen == ["cuda", "cuda"] and os.environ["LOGITLESS_BACKEND"] == "torch"


def small_match(*more: Contender) -> Match:
    wrong = Contender("logitless cuda", "ours", {"rows": lambda: plain_rows})
    setting = Setting(rows=4, vocab=500)
    return play(OPS["forward"], setting, [wrong, EAGER, *more], 2, Timer("cpu"), strict=False)


def test_absent_peers_are_named() -> None:
    absent = Contender("Nobody", "peer", {"rows": lambda: plain_rows}, package="no-such-package")
    fields = measure.entry(small_match(absent), rehearse=False)
    fields["seconds"] = 1.0
    text = markdown.report(results({"headline": {"a case": fields}}))
    assert "Nobody: no-such-package is not installed" in text and "a case" in text


def test_our_failure_is_told_and_is_trouble() -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("illegal memory access")

    broken_triton = Contender("logitless triton", "ours", {"rows": lambda: broken})
    fields = measure.entry(small_match(broken_triton), rehearse=False)
    assert fields["status"] == "done" and "illegal memory access" in fields["reason"]
    data = results({"headline": {"a case": fields}})
    assert markdown.troubles(data) == [
        "headline, a case: logitless triton: RuntimeError: illegal memory access"
    ]
    good = measure.entry(small_match(), rehearse=False)
    assert not markdown.troubles(results({"headline": {"a case": good}}))


def test_who_loses_the_device_is_left_out_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    culprit = Contender("logitless cuda", "ours", {"rows": lambda: broken})
    good = Contender("logitless triton", "ours", {"rows": lambda: plain_rows})
    monkeypatch.setattr(measure, "contenders", lambda case: [culprit, good, EAGER])
    monkeypatch.setattr("benchmarks.match.is_lost", lambda device: True)
    store = Store(tmp_path)
    work = Work(replace(FAKE, name="sizes"), tmp_path, True, time.monotonic() + 60, store)
    case = cases.of("sizes", True)[0]

    def stage() -> None:
        work.each([(case.key, lambda: measure.Measurer(work)(case))])

    with pytest.raises(SystemExit) as exit_status:
        stage()
    assert exit_status.value.code == AGAIN and not store.cases("sizes")
    stage()
    found = store.cases("sizes")[case.key]
    assert "logitless triton" in {m["name"] for m in found["measured"]}
    assert "illegal memory access" in found["skipped"]["logitless cuda"]
    assert "illegal memory access" in markdown.troubles(store.read())[0]


def test_a_process_may_ask_to_be_begun_again(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    seen = f"Path({str(mark)!r})"
    ask = "from benchmarks.gpu.child import Again; raise Again('please')"
    line = f"{seen}.exists() or ({seen}.touch(), exec({ask!r}))"
    store = run_fake(tmp_path, "1", line, "2")
    assert list(statuses(store).values()) == ["done"] * 3
    assert store.stage("fake")["status"] == "done"


def test_pictures_have_time_kept_for_them(tmp_path: Path) -> None:
    deadlines: dict[str, float] = {}

    def run_one(stage: Stage, job: Job, store: Store, deadline: float) -> None:
        deadlines[stage.name] = deadline - started
        store.set_stage(stage.name, status="done", reason="")

    started = time.monotonic()
    job, stages = Job(tmp_path, rehearse=True), kit.chosen(["smoke", "plots"], [])
    kit.run(job, stages, 100, run_one=run_one, objection=lambda *_: None)
    kept = BY_NAME["plots"].kept_seconds
    assert kept > 0 and deadlines["plots"] - deadlines["smoke"] == pytest.approx(kept)


def test_without_a_gpu_the_rehearsal_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kit, "device_name", lambda rehearse: kit.NO_GPU)
    assert main(["--out", str(tmp_path)]) == 2
    assert "--rehearse" in capsys.readouterr().err


def test_what_a_backend_does_not_have_yet_is_trouble_for_rows_alone() -> None:
    def refuse(*_: Any) -> Any:
        raise NotImplementedError("not on CUDA yet")

    functions = {"rows": lambda: refuse, "sample": lambda: refuse}
    mine = Contender("logitless cuda", "ours", functions)
    setting = Setting(rows=4, vocab=500, width=8)
    for op, status in (("forward", "failed"), ("head sample", "done")):
        match = play(OPS[op], setting, [mine, EAGER], 2, Timer("cpu"), strict=False)
        fields = measure.entry(match, rehearse=False)
        assert fields["status"] == status and "not on CUDA yet" in str(fields["skipped"])
        assert bool(markdown.troubles(results({"others": {"a": fields}}))) == (status == "failed")


def test_a_rehearsal_keeps_no_times() -> None:
    fields = measure.entry(small_match(), rehearse=True)
    assert fields["measured"] and not set(measure.TIMES) & set(fields["measured"][0])
    data = {**results({"headline": {"a case": fields}}), "rehearsal": True, "device": REHEARSAL}
    text = markdown.report(data)
    assert text.startswith(f"# {REHEARSAL}") and not re.search(r"\d ms|GB/s|median", text)
    with pytest.raises(ValueError, match="rehearsal"):
        compare.table(data, data, ("A", "B"))


def test_what_does_not_fit_is_left_out_by_name(tmp_path: Path) -> None:
    measurer = measure.Measurer(Work(BY_NAME["sizes"], tmp_path, True, 0.0, Store(tmp_path)))
    measurer.free = 8 << 30
    big = next(c for c in cases.of("sizes", False) if c.logits_bytes > 30 << 30)
    with pytest.raises(Leave, match=r"needs \d+ GiB, 8 free"):
        measurer(big)


def test_gpu_targets_are_judged_on_a_gpu() -> None:
    lines = (
        Measured("max read", "floor", Times((6e-4,))),
        Measured("logitless cuda", "ours", Times((9e-4,))),
    )
    at = Setting(rows=8192, dtype="bfloat16", device="cuda")
    (line,) = verdicts([Match(OPS["forward"], at, lines, {})])
    assert line.startswith("MISSED") and "0.90" in line and "H100" in line
    assert not verdicts([Match(OPS["forward"], replace(at, device="cpu"), lines, {})])


# ---- what is written


def results(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    stages = {name: {"status": "done", "cases": cases} for name, cases in found.items()}
    about = {"format": 1, "device": "NVIDIA Test", "rehearsal": False, "sources": "abc"}
    return {**about, "started": "2030-01-01", "stages": stages}


def fake_case(key_op: str, vocab: int, faster: float = 1.0) -> dict[str, Any]:
    """A case as stored, of a GPU nobody has."""
    lines = (
        Measured("max read", "floor", Times((5e-4, 6e-4))),
        Measured("logitless cuda", "ours", Times((6e-4 / faster, 7e-4)), {"logp": 1e-6}, 1 << 20),
        Measured("torch eager", "torch", Times((6e-3, 7e-3)), {"logp": 2e-6}, 1 << 30),
    )
    at = Setting(rows=8192, vocab=vocab, dtype="bfloat16", device="cuda")
    return measure.entry(
        Match(OPS[key_op], at, lines, {"TRL": "trl is not installed"}), False,
        rows_of_sizes=OPS[key_op].sizes,
    )  # fmt: skip


def test_at_most_eight_files_with_plain_names(tmp_path: Path) -> None:
    found = {f"forward, {v}": fake_case("forward", v) for v in (1000, 2000)}
    data = results({"headline": found, "others": found})
    store = Store(tmp_path)
    with store.edit() as stored:
        stored.update(data)
    (tmp_path / LOG).write_text("")
    (tmp_path / markdown.NAME).write_text(markdown.report(data))
    plots.run(Work(BY_NAME["plots"], tmp_path, False, time.monotonic() + 60, store))
    names = {path.name for path in tmp_path.iterdir()}
    pictures = {"headline.png", "others.png", "sizes.png"}
    assert names == {"results.json", "results.md", "log.txt", *pictures}
    assert len(names) <= 8 and all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_the_report_has_the_numbers() -> None:
    text = markdown.report(results({"headline": {"forward, 1000": fake_case("forward", 1000)}}))
    line = next(line for line in text.splitlines() if line.startswith("| **logitless cuda**"))
    assert "0.650" in line and "84.6%" in line and "1.0e-06" in line
    assert "| 8192 | 1000 | bfloat16 | 0.550, 100% | 0.650, 85% | 6.500, 8% |" in text


def test_a_line_of_sizes_has_the_compiled_case_beside_the_other() -> None:
    case = fake_case("forward", 1000)
    compiled = {**case, "measured": [dict(m) for m in case["measured"]]}
    compiled["measured"][1]["median_ms"] = 99.0
    compiled["measured"][2]["name"] = "torch.compile"
    text = markdown.sizes(results({"sizes": {"a": case, "a, compiled": compiled}}))
    (line,) = [line for line in text.splitlines() if "8192" in line]
    assert line.count("6.500") == 2 and "99.0" not in line


def test_compare_has_ratios_and_names_what_only_one_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = results({"headline": {"same": fake_case("forward", 1000), "old": fake_case("forward", 7)}})
    new = fake_case("forward", 1000, faster=2.0)
    new["measured"] = [m for m in new["measured"] if m["name"] != "torch eager"]
    b = results({"headline": {"same": new}})
    for name, data in (("a.json", a), ("b.json", b)):
        (tmp_path / name).write_text(json.dumps(data))
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    text = capsys.readouterr().out
    assert "| same | logitless cuda | 0.650 | 0.500 | 0.769 |" in text
    assert "| same | max read | 0.550 | 0.550 | 1.000 |" in text
    alone = text.split("Only in A:")[1]
    assert "- old: max read" in alone and "- same: torch eager" in alone
    assert "Only in B" not in text
    (tmp_path / "c.json").write_text("{}")
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "c.json")]) == 2
    assert "expected the results.json" in capsys.readouterr().err


def test_the_table_of_ncu_is_read() -> None:
    text = (
        '==PROF== Connected\ndone\n"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","pieces","gpu__time_duration.sum","us","612.3"\n'
        '"0","pieces","launch__registers_per_thread","register/thread","64"\n'
        '"1","fold","gpu__time_duration.sum","us","9.1"\n'
    )
    first, second = parse(text)
    assert first["kernel"] == "pieces" and first["gpu__time_duration.sum"] == "612.3 us"
    assert first["launch__registers_per_thread"] == "64 register/thread"
    assert second == {"kernel": "fold", "gpu__time_duration.sum": "9.1 us"}
    assert parse("no table") == []
