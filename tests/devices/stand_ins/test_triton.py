"""Triton kernels without a GPU: values in Triton's interpreter, code compiled for real devices."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.device.ttir import narrow_offsets
from tests.support.paths import ROOT, TESTS
from tests.support.versions import why_no_interpreter

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from benchmarks.compiled import triton_builds
from benchmarks.compiled.kernel_resources import half, split, stale
from benchmarks.compiled.resources import Measured, Resources, objections
from benchmarks.compiled.selection_builds import call_selection
from benchmarks.compiled.token_builds import call_tokens
from benchmarks.compiled.triton_builds import (
    TARGETS,
    call,
    call_draw,
    call_pair,
    call_sets,
    call_topk,
    compiling,
)
from logitless.kernels import launch

KERNELS = ROOT / "kernels"


@pytest.mark.skipif(bool(why_no_interpreter()), reason=why_no_interpreter())
def test_values_in_the_interpreter() -> None:
    """tests/interpreter, in a process of its own: the interpreter is on before triton is there."""
    file = TESTS / "interpreter" / "check_rows.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert re.search(r"^\d+ passed in", run.stdout.splitlines()[-1]), run.stdout[-2000:]


# ---- code for devices this machine does not have


@pytest.fixture(scope="module", params=TARGETS)
def builds(request: pytest.FixtureRequest) -> list[triton_builds.Build]:
    return triton_builds.builds(request.param)


def test_every_kernel_is_built_in_every_configuration(builds: list[triton_builds.Build]) -> None:
    sources = {path.stem: path.read_text() for path in KERNELS.rglob("*.py")}
    kernels = {name: source for name, source in sources.items() if "_kernel(" in source}
    assert {build.kernel for build in builds} == set(kernels)
    pieces = {build.configuration for build in builds if build.kernel == "pieces"}
    of_one_side = [x for x in triton_builds.CONFIGURATIONS.values() if "noise" not in x]
    assert len(pieces) == len(triton_builds.DTYPES) * len(of_one_side)
    noisy = {build.kernel for build in builds if build.configuration.endswith("noise")}
    assert noisy == {name for name, source in kernels.items() if " noise: Noise | None" in source}


def test_no_spills_and_no_more_shared_memory_than_there_is(
    builds: list[triton_builds.Build],
) -> None:
    target = builds[0].target
    measured = [
        Measured(b.kernel, b.configuration, target, triton_builds.resources(b)) for b in builds
    ]
    assert objections(measured) == []
    assert all(m.resources.registers not in ("0", "0+0") for m in measured)


def test_a_spill_and_too_much_shared_memory_are_objected_to() -> None:
    spill = Measured("fold", "plain", "sm_80", Resources("255", 8, 0))
    large = Measured("fold", "plain", "gfx942", Resources("9+9", 0, 65537))
    assert objections([spill]) == ["fold (plain) on sm_80 spills 8 bytes of registers"]
    assert "65537 bytes of shared memory of 65536" in objections([large])[0]


def test_aligned_rows_are_read_and_written_as_wide_as_the_hardware_can(
    builds: list[triton_builds.Build],
) -> None:
    wide = {"sm_100": r"\.v[48]\.b(?:32|64)"}.get(builds[0].target, r"\.v4\.b32|dwordx4")
    for build in builds:
        wide_ones = ("pieces", "backward", "moments", "mix", "gradient")
        if build.kernel in wide_ones and "odd" not in build.configuration:
            asm = build.code.asm.get("ptx") or build.code.asm["amdgcn"]
            accesses = [
                line
                for line in asm.splitlines()
                if re.search(rf"(ld\.global|st\.global|global_load|buffer_load).*({wide})", line)
                or re.search(r"(global_load|buffer_load|global_store|buffer_store)_dwordx4", line)
            ]
            assert accesses, f"{build.kernel}, {build.configuration}: no wide access"


def test_offsets_are_64_bits_wide(builds: list[triton_builds.Build]) -> None:
    for build in builds:
        ttir = build.code.asm["ttir"]
        assert "tt.addptr" in ttir
        assert narrow_offsets(ttir) == [], f"{build.kernel}, {build.configuration}"


def test_ids_times_strides_are_64_bits_wide(builds: list[triton_builds.Build]) -> None:
    """An id that memory holds is 32 bits wide, and a row of weight lies id * stride behind the
    first: 2^31 elements at 262,144 ids of 8,192."""
    of_ids = [build for build in builds if build.kernel in ("set_logits", "sparse_multiply")]
    assert len({build.kernel for build in of_ids}) == 2
    for build in of_ids:
        narrow = re.findall(r"arith\.muli .*i32.*", build.code.asm["ttir"])
        assert narrow == [], f"{build.kernel}, {build.configuration}"


def fused(build: triton_builds.Build) -> bool:
    """Whether a float64 multiplication and an addition round once. Divisions, roots and logs are
    made of such: PTX has a word for the first two, the others' code is not looked at."""
    if build.target.startswith("sm_"):
        return "fma.rn.f64" in build.code.asm["ptx"]
    made_of = re.search(r"fdiv|sqrt|__ocml_log", build.code.asm["llir"])
    return made_of is None and re.search(r"v_fmac?_f64", build.code.asm["amdgcn"]) is not None


def test_tokens_have_no_fused_operations(builds: list[triton_builds.Build]) -> None:
    """Their bits are the CPU's: a multiplication rounds, and an addition behind it as well."""
    target, names = builds[0].target, {path.stem for path in (KERNELS / "tokens").rglob("*.py")}
    found = {(build.kernel, build.configuration) for build in builds if build.kernel in names}
    assert {"token_loss", "exact_sums", "exact_means"} <= {kernel for kernel, _ in found}
    seen = {(x.kernel, x.configuration) for x in builds if x.kernel in names and fused(x)}
    # a log, of which the CPU's bits decide nothing
    logs = {("token_loss", f"trust_mask, {kind}") for kind in (2, 3)}
    assert logs <= found and seen == (logs if target.startswith("sm_") else set())


@pytest.mark.parametrize("target", TARGETS)
def test_a_fused_operation_is_seen(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logitless.kernels.tokens.loss.token_loss.UNFUSED", launch.OPTIONS)
    with compiling(target, only=("token_loss",)) as launched:
        call_tokens(4, 0, torch.float32)
    assert [fused(triton_builds.Build(name, "", target, code)) for name, code in launched] == [True]


CASTS = [
    (path.relative_to(KERNELS).with_suffix("").as_posix(), i)
    for path in sorted(KERNELS.rglob("*.py"))
    for i, line in enumerate(path.read_text().splitlines())
    if ".to(tl.int64)" in line and "store" not in line
]
USERS = {"jit": ("pieces", "backward"), "shared": ("exact_sums", "token_loss")}
RUNS: dict[str, Any] = {
    "divergence": call_pair,
    "sampling": call_draw,
    "sets": call_sets,
    "tokens/loss": call_tokens,
    "tokens/shared": call_tokens,
    "tokens/sums": call_tokens,
    "tokens/selection": call_selection,
    "topk": call_topk,
}


@pytest.mark.parametrize(("module", "line"), CASTS, ids=lambda x: str(x))
def test_a_missing_cast_to_64_bits_is_seen(
    module: str, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the kernels without one of the casts fails the check above."""
    package = f"without_{module.replace('/', '_')}_{line}"
    for path in KERNELS.rglob("*.py"):
        lines = path.read_text().replace("logitless.kernels", package).splitlines()
        if path == KERNELS / f"{module}.py":
            lines[line] = lines[line].replace(".to(tl.int64)", "")
        copy = tmp_path / package / path.relative_to(KERNELS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    room, _, kernel = module.rpartition("/")
    with compiling("sm_90", package, only=USERS.get(kernel, (kernel,))) as launched:
        for name in ("plain", "all") if module == "jit" else ("all",):
            options = triton_builds.CONFIGURATIONS[name]
            run = RUNS.get(module, RUNS.get(room, call))
            run(4, 8192, torch.bfloat16, options, package=package)
    assert any(narrow_offsets(code.asm["ttir"]) for _, code in launched)


def variants(*calls: dict[str, Any], run: Any = call) -> dict[str, int]:
    """How often each kernel is compiled for these calls."""
    with compiling("sm_90") as launched:
        for options in calls:
            run(**{"n": 4, "vocab": 8192, "dtype": torch.bfloat16, **options})
    found: dict[str, set[str]] = {}
    for kernel, code in launched:
        found.setdefault(kernel, set()).add(code.hash)
    return {kernel: len(codes) for kernel, codes in found.items()}


ONCE = dict.fromkeys(("pieces", "fold", "finish", "coefficients", "backward"), 1)


def test_values_do_not_recompile() -> None:
    values = [{"scale": 1.0}, {"scale": 0.3}, {"scale": 1e-3}, {"n": 2}, {"n": 64}, {"n": 1}]
    widths = [{"vocab": width} for width in (16, 1024, 4096, 151936)]
    assert variants(*values, *widths) == ONCE
    chain = frozenset({"chain", "batched", "mask"})
    caps = [{"softcap": cap, "pre": pre} for cap, pre in ((15.0, 1.0), (30.0, 0.5), (1.0, 2.0))]
    starts = [{"start": start} for start in (0, 16, 4096)]
    assert variants(*({"options": chain, **values} for values in caps + starts)) == ONCE


def test_only_alignment_recompiles() -> None:
    """Rows that do not divide by 16 get narrow loads: one more variant, whatever the widths."""
    widths = [{"vocab": width} for width in (4096, 8192, 8191, 4097, 151937, 3)]
    assert variants(*widths) == {**ONCE, "pieces": 2, "backward": 2}


def test_neither_do_those_of_a_pair() -> None:
    names = ("moments", "combine", "terms", "mix", "mix_sums", "values", "gradient")
    once = dict.fromkeys(names, 1)
    # a mix has terms of its own, without gradients
    once["terms"] = 2
    few: dict[str, Any] = {"kinds": ("jsd",)}
    widths = [{**few, "vocab": width} for width in (16, 4096, 151936)]
    counts = [{**few, "n": n} for n in (1, 2, 64)]
    assert variants(*widths, *counts, run=call_pair) == once
    odd = [{**few, "vocab": width} for width in (4096, 8191, 4097, 3)]
    narrow = {**once, "moments": 2, "mix": 2, "gradient": 2}
    assert variants(*odd, run=call_pair) == narrow
    # a rank's tokens may start anywhere
    noisy: dict[str, Any] = {**few, "options": frozenset({"noise"})}
    assert variants(*({**noisy, "start": x} for x in (0, 16, 18_992)), run=call_pair) == once
    assert variants(*({**noisy, "start": x} for x in (0, 5, 77)), run=call_pair) == narrow


def test_neither_do_those_of_a_selection() -> None:
    """Of few tokens and many, each of its launches is one variant."""
    once = variants({"n": 4}, run=call_selection)
    assert variants(*({"n": n} for n in (0, 1, 2, 16, 70_000)), run=call_selection) == once


def test_a_selection_rounds_each_operation(builds: list[triton_builds.Build]) -> None:
    """What decides between tokens has the bits of the CPU: no product fuses with a sum."""
    selecting = {path.stem for path in (KERNELS / "tokens" / "selection").glob("*.py")}
    of_it = [build for build in builds if build.kernel in selecting]
    assert {"covariance_scores", "radix_level"} < {build.kernel for build in of_it}
    for build in of_it:
        assert build.code.metadata.enable_fp_fusion is False, build.kernel
        ptx = build.code.asm.get("ptx", "")
        fusing = re.findall(r"\bfma\.\S*f64|\b(?:add|sub|mul)\.f64", ptx)
        assert fusing == [], f"{build.kernel}, {build.configuration}"


def test_a_stale_table_is_told_from_one_of_another_compiler() -> None:
    fold = Measured("fold", "plain", "sm_80", Resources("41", 0, 0))
    text = half("Triton 3.9.0", [fold])
    assert split("introduction\n\n" + text) == {"Triton 3.9.0": text}
    assert stale({"Triton 3.9.0": text}, {"Triton 3.9.0": text}) == ([], [])
    wrong, unknown = stale({"Triton 3.9.0": text.replace("41", "40")}, {"Triton 3.9.0": text})
    assert wrong[0].endswith("is stale: run ./dev kernels")
    assert wrong[1:] == [
        "  - | `fold` | plain | 40 / 0 / 0 |",
        "  + | `fold` | plain | 41 / 0 / 0 |",
    ]
    assert unknown == []
    other, cuda = {"Triton 3.6.0": text}, {"CUDA, nvcc 13.0.88": text}
    assert stale({"Triton 3.9.0": text}, other) == (
        [], ["not compared: the table has another version than Triton 3.6.0"]
    )  # fmt: skip
    assert stale({"Triton 3.9.0": text, **cuda}, {"Triton 3.9.0": text}) == (
        [], ["not compared: no compiler here for the half of CUDA, nvcc 13.0.88"]
    )  # fmt: skip
    missing, _ = stale({}, cuda)
    assert missing == ["kernel_resources.md has no half of CUDA, nvcc 13.0.88: run ./dev kernels"]
