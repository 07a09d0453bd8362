"""The CUDA half of the compiled core, with or without a GPU: how it is built, what it refuses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitless import _core
from tests.support.device.fake_cuda import FakeCuda
from tests.support.paths import ROOT, TESTS

CUDA = ROOT / "csrc" / "cuda"
BUILD = _core.runtime.build_info()["cuda"]
N, V = 3, 64

real_only = pytest.mark.skipif(
    not BUILD["compiled"] or BUILD["emulated"],
    reason=f"this core has no CUDA kernels: {BUILD['reason'] or 'they are emulated'}",
)


def test_the_build_says_what_it_holds() -> None:
    assert set(BUILD) == {"compiled", "emulated", "architectures", "toolkit", "reason"}
    # A build that lacks the kernels says why, and one that has them has nothing to say.
    assert bool(BUILD["reason"]) == (not BUILD["compiled"])
    if BUILD["compiled"] and not BUILD["emulated"]:
        assert re.fullmatch(r"\d+(,\d+)*", BUILD["architectures"])
        assert re.fullmatch(r"\d+\.\d+", BUILD["toolkit"])


def test_an_impossible_device_has_a_reason() -> None:
    for device in (-1, 10_000):
        assert _core.runtime.cuda_device_reason(device)


@pytest.mark.skipif(BUILD["compiled"], reason="this core has CUDA kernels")
def test_a_build_without_kernels_says_so() -> None:
    assert _core.runtime.cuda_device_reason(0) == f"built without CUDA: {BUILD['reason']}"
    with pytest.raises(RuntimeError, match="built without CUDA"):
        _core.rows.CudaRows(N)


def test_workspace_is_what_the_pieces_need() -> None:
    size = _core.rows.CudaRows.workspace_bytes
    # 32 bytes a piece of 2048 columns, which is the narrowest
    assert size(8192, 151936, 2) == 8192 * 75 * 32
    assert size(0, 151936, 4) == size(5, 0, 4) == 0
    assert size(2**31, 2**31, 2) == 2**31 * 2**20 * 32
    for arguments, words in (
        ((-1, 1, 2), "n must be from 0 to"),
        ((1, -1, 2), "columns must be from 0 to"),
        ((1, 1, 8), "itemsize must be 2 or 4, got 8"),
    ):
        with pytest.raises(ValueError, match=words):
            size(*arguments)


def test_workspace_of_a_pair() -> None:
    size = _core.divergence.CudaPair.workspace_bytes
    # 48 bytes a row, and 32 a split of 1024 columns
    assert size(8192, 151936) == 8192 * (48 + 149 * 32)
    assert size(0, 151936) == 0 and size(5, 0) == 5 * 48
    for arguments, words in (
        ((-1, 1), "n must be from 0 to"),
        ((1, -1), "columns must be from 0 to"),
        ((2**40, 2**40), "is larger than any memory"),
    ):
        with pytest.raises(ValueError, match=words):
            size(*arguments)


# ---- what is refused before a kernel starts


def device(*shape: int, dtype: Any = np.float32, where: tuple[int, int] = (2, 0)) -> FakeCuda:
    return FakeCuda(np.zeros(shape, dtype), where)


def forward(rows: Any = None, **changed: Any) -> None:
    rows = rows or _core.rows.CudaRows(N, targets=device(N, dtype=np.int64))
    workspace = device(_core.rows.CudaRows.workspace_bytes(N, V, 4), dtype=np.uint8)
    arguments = {"logits": device(N, V), "state": device(N, 8, dtype=np.float64)}
    rows.forward(**{**arguments, "workspace": workspace, **changed})


def backward(**changed: Any) -> None:
    rows = _core.rows.CudaRows(N, targets=device(N, dtype=np.int64))
    arguments = {
        "logits": device(N, V), "state": device(N, 8, dtype=np.float64), "gradient": device(N, V),
        "g_logp": device(N),
    }  # fmt: skip
    rows.gradient(**{**arguments, **changed})


def finish(**changed: Any) -> None:
    rows = _core.rows.CudaRows(N, targets=device(N, dtype=np.int64))
    arguments = {name: device(N) for name in ("logp", "entropy", "lse")}
    arguments["state"] = device(N, 8, dtype=np.float64)
    arguments["error"] = device(1, dtype=np.int64)
    rows.finalize(vocab=V, **{**arguments, **changed})


@real_only
@pytest.mark.parametrize(
    "call, changed, words",
    [
        (forward, {"logits": np.zeros((N, V), np.float32)},
         "logits must be on CUDA device 0, got one on the CPU"),
        (forward, {"state": device(N, 8, dtype=np.float64, where=(2, 1))},
         "state must be on CUDA device 0, got one on CUDA device 1"),
        (forward, {"logits": device(N, V, where=(10, 0))},
         "got one on a device of DLPack's type 10"),
        (forward, {"logits": device(N, V, dtype=np.float64)},
         "logits must be float32, bfloat16 or float16 on CUDA, got float64"),
        (forward, {"logits": device(N + 1, V)}, "logits must have 3 rows, got 4"),
        (forward, {"logits": device(N * V)}, r"logits must be \[N, V\] or \[B, T, V\]"),
        (forward, {"logits": FakeCuda(np.zeros((V, N), np.float32).T)},
         "logits must have contiguous rows"),
        (forward, {"state": device(N, 8)}, "state must be float64, got float32"),
        (forward, {"state": device(N, 7, dtype=np.float64)}, "state must hold 24 elements, got 21"),
        (forward, {"workspace": device(8)}, "workspace must be 96 bytes aligned to 16, got 32"),
        (forward, {"rows": _core.rows.CudaRows(N) if BUILD["compiled"] else None},
         "targets must be given"),
        (finish, {"logp": device(N, dtype=np.float64)}, "logp must be float32, got float64"),
        (finish, {"argmax": device(N)}, "argmax must be int64, got float32"),
        (finish, {"error": device(2, dtype=np.int64)}, "error must hold 1 elements, got 2"),
        (backward, {"gradient": device(N, V, dtype=np.float16)},
         "gradient must have the dtype of logits, float32, got float16"),
        (backward, {"gradient": device(N, V - 1)},
         "gradient must have the columns of logits, 64, got 63"),
        (backward, {"g_logp": device(N, dtype=np.int32)},
         "g_logp must be float32 or float64, got int32"),
    ],
)  # fmt: skip
def test_wrong_arrays_are_named(call: Any, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(**changed)


@real_only
def test_the_rows_own_arrays_are_named() -> None:
    with pytest.raises(ValueError, match="targets must be on CUDA device 0, got one on the CPU"):
        _core.rows.CudaRows(N, targets=np.zeros(N, np.int64))
    with pytest.raises(ValueError, match="mask must be on CUDA device 1, got one on CUDA device 0"):
        _core.rows.CudaRows(N, mask=device(N, dtype=bool), device=1)
    with pytest.raises(ValueError, match="bias must be float32, got float64"):
        forward(_core.rows.CudaRows(
            N, targets=device(N, dtype=np.int64), bias=device(V, dtype=np.float64)
        ))  # fmt: skip
    with pytest.raises(TypeError, match="bias must be an array with __dlpack__"):
        _core.rows.CudaRows(N, bias=[0.0] * V)


@real_only
@pytest.mark.parametrize("stream", [0, 1, 7_000])
def test_nobody_waits_for_the_stream_of_a_call(stream: int) -> None:
    """Told of a stream, torch makes events for every array that comes from another one."""
    targets, logits = device(N, dtype=np.int64), device(N, V)
    rows = _core.rows.CudaRows(N, targets=targets)
    # Refused for its state, so no kernel starts on these arrays, not even where there is a GPU.
    with pytest.raises(ValueError, match="state must be float64"):
        forward(rows, logits=logits, state=device(N, 8), stream=stream)
    assert logits.streams == targets.streams == [-1]


@real_only
def test_a_launch_without_a_driver_is_an_error() -> None:
    reason = _core.runtime.cuda_device_reason(0)
    if not reason:
        pytest.skip("there is a GPU, which would be given arrays of the CPU")
    assert reason.startswith("CUDA says: ")
    for call in (forward, finish, backward):
        with pytest.raises(RuntimeError, match=re.escape(reason.removeprefix("CUDA says: "))):
            call()


# ---- how it is built


def symbols(source: Path, *flags: str, compiler: str = "c++") -> set[str]:
    """What the headers of csrc/cuda declare and this object defines, demangled."""
    target = source.parent / f"{source.stem}-{os.getpid()}.o"
    command = [compiler, "-std=c++17", *flags, f"-I{ROOT / 'csrc'}", "-c", "-o", str(target)]
    try:
        subprocess.run([*command, str(source)], check=True, capture_output=True, text=True)
        listing = subprocess.run(
            ["nm", "-C", "--defined-only", str(target)], check=True, capture_output=True, text=True
        )
    finally:
        target.unlink(missing_ok=True)
    # templates are weak, and so are functions of a class
    found = re.findall(r" (?:T|W void) (logitless::cuda::\w+[<(].*)", listing.stdout)
    own = ("_kernel", "anonymous", "::launch<")
    return {name for name in found if not any(word in name for word in own)}


def test_absent_has_the_symbols_of_the_kernels(tmp_path: Path) -> None:
    """Of the kernels as the emulator compiles them, in seconds, and of the runtime as nvcc does."""
    if shutil.which("nvcc") is None or shutil.which("nm") is None:
        pytest.skip("nvcc or nm is not on PATH")
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    cuda = tmp_path / "csrc" / "cuda"
    absent = symbols(cuda / "absent.cpp", '-DLOGITLESS_CUDA_REASON="none"')
    flags = ("-arch=sm_90", '-DLOGITLESS_CUDA_ARCHITECTURES="90"', '-DLOGITLESS_CUDA_TOOLKIT="0"')
    present = symbols(cuda / "runtime" / "runtime.cu", *flags, compiler="nvcc")
    emulated = (f"-I{TESTS / 'simt'}", "-Wno-unknown-pragmas", "-x", "c++")
    # those of storage types define what others of their room call
    rooms = [file for file in cuda.glob("*/*.cu") if file.parent.name != "runtime"]
    for file in rooms:
        if not file.stem.endswith(("f32", "f16")):
            present |= symbols(file, *emulated)
    assert {name for name in absent if "rows_forward" in name}
    assert {name for name in absent if "token_loss" in name}
    assert absent - present == set()
    # beside templates, which any file that needs one makes
    plain = {name for name in present if re.match(r"logitless::cuda::\w+\(", name)}
    assert plain - absent == set()


def configure(tmp_path: Path, cuda: str) -> subprocess.CompletedProcess[str]:
    """Only sources.cmake, in a project of its own, told of an nvcc that is not there."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not on PATH")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(probe LANGUAGES CXX)\n"
        f"set(LOGITLESS_CUDA {cuda})\nset(LOGITLESS_CUDA_ARCHITECTURES 100,80)\n"
        f'include("{CUDA / "sources.cmake"}")\n'
        'message(STATUS "sources ${LOGITLESS_CUDA_SOURCES}; ${LOGITLESS_CUDA_SUMMARY}")\n'
    )
    return subprocess.run(
        ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build")],
        env={**os.environ, "CUDACXX": str(tmp_path / "nvcc")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_without_nvcc_auto_builds_the_rest(tmp_path: Path) -> None:
    run = configure(tmp_path, "AUTO")
    assert run.returncode == 0, run.stderr
    assert "sources csrc/cuda/absent.cpp; no CUDA: no working CUDA compiler (nvcc)" in run.stdout


def test_without_nvcc_on_is_an_error(tmp_path: Path) -> None:
    run = configure(tmp_path, "ON")
    assert run.returncode != 0
    words = " ".join(run.stderr.split())
    assert "LOGITLESS_CUDA=ON, but no working CUDA compiler was found" in words


def test_off_and_nonsense(tmp_path: Path) -> None:
    run = configure(tmp_path, "OFF")
    assert "sources csrc/cuda/absent.cpp; no CUDA: LOGITLESS_CUDA=OFF" in run.stdout
    run = configure(tmp_path, "maybe")
    assert "LOGITLESS_CUDA must be AUTO, ON or OFF, got maybe" in run.stderr
