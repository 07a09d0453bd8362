"""What ./dev gpu measures, and what it writes of it: failures, rehearsals, reports, comparisons."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from benchmarks.cases.contenders.plain import EAGER, plain_rows
from benchmarks.cases.registry import BY_NAME as OPS
from benchmarks.cases.targets import check_targets
from benchmarks.gpu import ratios, report
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.runner import LOG
from benchmarks.gpu.stage_process import AGAIN, Leave, Work
from benchmarks.gpu.stage_table import BY_NAME
from benchmarks.gpu.stages import measure, measurements, plots
from benchmarks.gpu.stages.profiling import parse
from benchmarks.gpu.store import REHEARSAL, Store
from benchmarks.harness.case import Case, Implementation
from benchmarks.harness.comparison import Comparison, Measured, compare
from benchmarks.harness.timing import Timer, Times
from tests.support.paths import ROOT, TESTS


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
    at = Case(rows=8192, vocab=vocab, dtype="bfloat16", device="cuda")
    return measure.entry(
        Comparison(OPS[key_op], at, lines, {"TRL": "trl is not installed"}), False,
        rows_of_sizes=OPS[key_op].sizes,
    )  # fmt: skip


# ---- measuring


def test_the_registry_decides_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    new = replace(OPS["policy loss"], name="brand new", group="a group of its own")
    monkeypatch.setattr("benchmarks.gpu.stages.measurements.OPS", [*OPS.values(), new])
    for rehearse in (False, True):
        assert any(case.op is new for case in measurements.of("others", rehearse))
    planned = [each for stage in measurements.STAGES for each in measurements.of(stage, False)]
    everywhere = {each.op.name for each in planned}
    assert everywhere == {*OPS, "brand new"}


def test_the_promised_sizes_are_measured_the_telling_ones_first() -> None:
    found = [case for case in measurements.of("sizes", False) if not case.compiled]
    shapes = {(c.op.name, c.case.rows, c.case.vocab, c.case.dtype) for c in found}
    assert len(shapes) == len(found) == 3 * 3 * 4 * 2
    assert (found[0].case.vocab, found[0].case.dtype) == (151_936, "bfloat16")
    first = measurements.of("headline", False)[0]
    assert first.key == "forward, 8192 x 151936 bfloat16"
    assert first.key in {case.key for case in found}


def test_nobody_waits_for_a_compiler() -> None:
    """Those cases come after all others of their stage, and have a name of their own."""
    for stage in measurements.STAGES:
        found = measurements.of(stage, False)
        assert [c.compiled for c in found] == sorted(c.compiled for c in found)
        assert len({case.key for case in found}) == len(found)
    assert any(c.compiled for c in measurements.of("headline", False))


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


def small_comparison(*more: Implementation) -> Comparison:
    wrong = Implementation("logitless cuda", "ours", {"rows": lambda: plain_rows})
    case = Case(rows=4, vocab=500)
    return compare(OPS["forward"], case, [wrong, EAGER, *more], 2, Timer("cpu"), strict=False)


def test_absent_peers_are_named() -> None:
    absent = Implementation(
        "Nobody", "peer", {"rows": lambda: plain_rows}, package="no-such-package"
    )
    fields = measure.entry(small_comparison(absent), rehearse=False)
    fields["seconds"] = 1.0
    text = report.report(results({"headline": {"a case": fields}}))
    assert "Nobody: no-such-package is not installed" in text and "a case" in text


def test_our_failure_is_told_and_is_trouble() -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("illegal memory access")

    broken_triton = Implementation("logitless triton", "ours", {"rows": lambda: broken})
    fields = measure.entry(small_comparison(broken_triton), rehearse=False)
    assert fields["status"] == "done" and "illegal memory access" in fields["reason"]
    data = results({"headline": {"a case": fields}})
    assert report.troubles(data) == [
        "headline, a case: logitless triton: RuntimeError: illegal memory access"
    ]
    good = measure.entry(small_comparison(), rehearse=False)
    assert not report.troubles(results({"headline": {"a case": good}}))


def test_who_loses_the_device_is_left_out_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    culprit = Implementation("logitless cuda", "ours", {"rows": lambda: broken})
    good = Implementation("logitless triton", "ours", {"rows": lambda: plain_rows})
    monkeypatch.setattr(measure, "implementations", lambda case: [culprit, good, EAGER])
    monkeypatch.setattr("benchmarks.harness.comparison.is_lost", lambda device: True)
    store = Store(tmp_path)
    work = Work(BY_NAME["sizes"], tmp_path, True, math.inf, store)
    case = measurements.of("sizes", True)[0]

    def stage() -> None:
        work.each([(case.key, lambda: measure.Measurer(work)(case))])

    with pytest.raises(SystemExit) as exit_status:
        stage()
    assert exit_status.value.code == AGAIN and not store.cases("sizes")
    stage()
    found = store.cases("sizes")[case.key]
    assert "logitless triton" in {m["name"] for m in found["measured"]}
    assert "illegal memory access" in found["skipped"]["logitless cuda"]
    assert "illegal memory access" in report.troubles(store.read())[0]


def test_what_a_backend_does_not_have_yet_is_trouble_for_rows_alone() -> None:
    def refuse(*_: Any) -> Any:
        raise NotImplementedError("not on CUDA yet")

    functions = {"rows": lambda: refuse, "sample": lambda: refuse}
    mine = Implementation("logitless cuda", "ours", functions)
    case = Case(rows=4, vocab=500, width=8)
    for op, status in (("forward", "failed"), ("head sample", "done")):
        comparison = compare(OPS[op], case, [mine, EAGER], 2, Timer("cpu"), strict=False)
        fields = measure.entry(comparison, rehearse=False)
        assert fields["status"] == status and "not on CUDA yet" in str(fields["skipped"])
        assert bool(report.troubles(results({"others": {"a": fields}}))) == (status == "failed")


def test_a_rehearsal_keeps_no_times() -> None:
    fields = measure.entry(small_comparison(), rehearse=True)
    assert fields["measured"] and not set(measure.TIMES) & set(fields["measured"][0])
    data = {**results({"headline": {"a case": fields}}), "rehearsal": True, "device": REHEARSAL}
    text = report.report(data)
    assert text.startswith(f"# {REHEARSAL}") and not re.search(r"\d ms|GB/s|median", text)
    with pytest.raises(ValueError, match="rehearsal"):
        ratios.table(data, data, ("A", "B"))


def test_what_does_not_fit_is_left_out_by_name(tmp_path: Path) -> None:
    measurer = measure.Measurer(Work(BY_NAME["sizes"], tmp_path, True, 0.0, Store(tmp_path)))
    measurer.free = 8 << 30
    big = next(c for c in measurements.of("sizes", False) if c.logits_bytes > 30 << 30)
    with pytest.raises(Leave, match=r"needs \d+ GiB, 8 free"):
        measurer(big)


def test_gpu_targets_are_judged_on_a_gpu() -> None:
    lines = (
        Measured("max read", "floor", Times((6e-4,))),
        Measured("logitless cuda", "ours", Times((9e-4,))),
    )
    at = Case(rows=8192, dtype="bfloat16", device="cuda")
    (line,) = check_targets([Comparison(OPS["forward"], at, lines, {})])
    assert line.startswith("MISSED") and "0.90" in line and "H100" in line
    assert not check_targets([Comparison(OPS["forward"], replace(at, device="cpu"), lines, {})])


# ---- what is written


def test_at_most_eight_files_with_plain_names(tmp_path: Path) -> None:
    found = {f"forward, {v}": fake_case("forward", v) for v in (1000, 2000)}
    data = results({"headline": found, "others": found})
    store = Store(tmp_path)
    with store.edit() as stored:
        stored.update(data)
    (tmp_path / LOG).write_text("")
    (tmp_path / report.NAME).write_text(report.report(data))
    plots.run(Work(BY_NAME["plots"], tmp_path, False, math.inf, store))
    names = {path.name for path in tmp_path.iterdir()}
    pictures = {"headline.png", "others.png", "sizes.png"}
    assert names == {"results.json", "results.md", "log.txt", *pictures}
    assert len(names) <= 8 and all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_the_report_has_the_numbers() -> None:
    text = report.report(results({"headline": {"forward, 1000": fake_case("forward", 1000)}}))
    line = next(line for line in text.splitlines() if line.startswith("| **logitless cuda**"))
    assert "0.650" in line and "84.6%" in line and "1.0e-06" in line
    assert "| 8192 | 1000 | bfloat16 | 0.550, 100% | 0.650, 85% | 6.500, 8% |" in text


def test_a_line_of_sizes_has_the_compiled_case_beside_the_other() -> None:
    case = fake_case("forward", 1000)
    compiled = {**case, "measured": [dict(m) for m in case["measured"]]}
    compiled["measured"][1]["median_ms"] = 99.0
    compiled["measured"][2]["name"] = "torch.compile"
    text = report.sizes(results({"sizes": {"a": case, "a, compiled": compiled}}))
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


# ---- the stage `tests`


def test_a_file_that_does_not_import_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a warning is no failure, though pyproject makes it one here."""
    (tmp_path / "test_broken.py").write_text("import no_such_package\n")
    (tmp_path / "test_good.py").write_text(
        "import warnings\nimport pytest\n\n"
        "@pytest.mark.gpu\ndef test_warns():\n    warnings.warn('old', DeprecationWarning)\n"
    )
    files = tuple(tmp_path / f"test_{name}.py" for name in ("broken", "good"))
    program = (
        "import math, sys; from pathlib import Path; from benchmarks.gpu.stages import gpu_tests;"
        "from benchmarks.gpu.stage_process import Work;"
        "from benchmarks.gpu.stage_table import BY_NAME;"
        "from benchmarks.gpu.store import Store; out = Path(sys.argv[1]);"
        f"gpu_tests.FILES = {tuple(map(str, files))!r};"
        "gpu_tests.run(Work(BY_NAME['tests'], out, True, math.inf, Store(out)))"
    )
    # pytest within pytest would share its plugins: a process of its own. The mark comes from ours.
    config = "-c", str(ROOT / "pyproject.toml")
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True,
        env={**os.environ, "PYTEST_ADDOPTS": f"{' '.join(config)} --rootdir {tmp_path}"},
        cwd=ROOT,
    )  # fmt: skip
    cases = Store(tmp_path).cases("tests")
    assert cases.pop("count")["counts"] == {"passed": 1, "failed": 0, "skipped": 0}
    (reason,) = (case["reason"] for case in cases.values())
    assert "no_such_package" in reason


def test_every_file_of_gpu_tests_is_named() -> None:
    from benchmarks.gpu.stages.gpu_tests import FILES

    marked = {
        path
        for path in TESTS.rglob("test_*.py")
        if "pytest.mark.gpu" in path.read_text() or "device: Device" in path.read_text()
    }
    assert marked - {Path(__file__)} == set(FILES)


# ---- inputs


def test_what_is_drawn_is_drawn_where_the_generator_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses a CUDA generator for a CPU tensor; without a device it makes one of the CPU."""

    def checked(original: Any) -> Any:
        def call(*args: Any, generator: Any, device: Any = None, **options: Any) -> Any:
            assert device is not None and torch.device(device) == generator.device
            return original(*args, generator=generator, device=device, **options)

        return call

    for name in ("rand", "randn", "randint", "randperm"):
        monkeypatch.setattr(torch, name, checked(getattr(torch, name)))
    case = Case(rows=8, vocab=300, width=16, dtype="bfloat16")
    makers = {op.inputs for op in OPS.values()}
    for make in makers:
        getattr(make, "cache_clear", lambda: None)()
        make(case)
