"""The wiring of device backends where there is no device: who serves what, flags, stand-ins."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import logitless as ll
from logitless.ops import backends, device_errors

TESTS = Path(__file__).parent


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the core says of its CUDA kernels, free to change; its devices have no objection."""
    told = {"compiled": True, "emulated": False, "reason": "", "architectures": "90"}
    monkeypatch.setattr(backends, "cuda_build", lambda: told)
    monkeypatch.setattr(backends, "_device_reason", lambda index: "")
    monkeypatch.delenv("LOGITLESS_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return told


def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "triton" else found(name)
    )


def test_auto_takes_the_best_that_serves(
    build: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = backends.choose_backend
    assert choose("auto", "cpu", "float64") == "cpu"
    assert choose("auto", "cuda:1", "bfloat16") == "cuda"
    assert choose("auto", "cuda:1", "float64") == "torch"
    monkeypatch.setattr(backends, "_device_reason", lambda index: f"no code for device {index}")
    assert choose("auto", "cuda:1", "bfloat16") == "triton"
    without_triton(monkeypatch)
    with pytest.raises(
        NotImplementedError,
        match=r"bfloat16 tensors on cuda:1 \(cuda: no code for device 1; triton: triton is not "
        r"installed.*\); backend='torch'",
    ):
        choose("auto", "cuda:1", "bfloat16")
    with pytest.raises(NotImplementedError, match="no kernels serve float32 tensors on mps"):
        choose("auto", "mps", "float32")


@pytest.mark.parametrize(
    ("backend", "device", "dtype", "reason"),
    [
        ("cpu", "cuda:0", "float32", "it serves CPU tensors"),
        ("cuda", "cpu", "float32", "it serves CUDA tensors"),
        ("cuda", "cuda:0", "float64", "its kernels take float32, bfloat16, float16"),
        ("triton", "cpu", "float32", "TRITON_INTERPRET=1"),
        ("triton", "cuda:0", "float64", "its kernels take float32, bfloat16, float16"),
    ],
)
def test_a_named_backend_that_cannot_serve_says_why(
    build: dict[str, Any], backend: str, device: str, dtype: str, reason: str
) -> None:
    with pytest.raises(NotImplementedError) as error:
        backends.choose_backend(backend, device, dtype)
    assert f"backend={backend!r} cannot serve {dtype} tensors on {device}" in str(error.value)
    assert reason in str(error.value)
    assert "backend='torch'" in str(error.value)


def test_the_environment_names_a_backend(
    build: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGITLESS_BACKEND", "torch")
    assert backends.choose_backend("auto", "cpu", "float32") == "torch"
    assert backends.choose_backend("cpu", "cpu", "float32") == "cpu"
    monkeypatch.setenv("LOGITLESS_BACKEND", "cuda")
    with pytest.raises(NotImplementedError, match="LOGITLESS_BACKEND='cuda' cannot serve"):
        ll.token_stats(torch.randn(2, 5), torch.tensor([0, 1]))
    monkeypatch.setenv("LOGITLESS_BACKEND", "gpu")
    with pytest.raises(ValueError, match="LOGITLESS_BACKEND must be one of"):
        ll.token_stats(torch.randn(2, 5), torch.tensor([0, 1]))


def test_emulators_serve_cpu_tensors_only(
    build: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    build["emulated"] = True
    assert backends.choose_backend("cuda", "cpu", "float32") == "cuda"
    assert "emulates CUDA" in backends.why_not("cuda", "cuda:0")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.choose_backend("triton", "cpu", "float32") == "triton"
    build |= {"emulated": False, "compiled": False, "reason": "no nvcc"}
    assert backends.why_not("cuda", "cuda:0") == "the core was built without CUDA: no nvcc"


def test_numpy_arrays_have_one_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    z, t = np.zeros((2, 5), np.float32), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="token_stats: backend must be 'auto' or 'cpu' for NumPy"):
        ll.token_stats(z, t, backend="triton")
    with pytest.raises(ValueError, match="linear_token_stats: backend must be 'auto' or 'cpu'"):
        ll.linear_token_stats(z, z, t, backend="torch")
    monkeypatch.setenv("LOGITLESS_BACKEND", "triton")
    assert ll.token_stats(z, t).logp == pytest.approx(-np.log(5))


def test_ops_keep_to_the_device_of_their_inputs(build: dict[str, Any]) -> None:
    """What torch.compile sees of CUDA tensors, without one: fake tensors through every fake op."""
    with FakeTensorMode():
        h, w = (torch.empty(n, 8, device="cuda:0") for n in (4, 50))
        t = torch.zeros(4, dtype=torch.int64, device="cuda:0")
        for stats in (
            ll.token_stats(h @ w.T, t, extras=("argmax",)),
            ll.linear_token_stats(h, w, t, temperature=torch.ones(4, device="cuda:0")),
        ):
            for value in (*stats[:3], *stats.extras.values()):
                assert value.device == torch.device("cuda:0")
                assert value.shape == (4,)
        # autograd's own thread for a device does not start without one: the backward op itself.
        chain = (t, None, None, None, 1.0, 1.0, 0.0, "cuda")
        state = torch.empty(4, 8, dtype=torch.float64, device="cuda:0")
        gradient = torch.ops.logitless.row_stats_backward(
            h @ w.T, *chain, state, stats.logp.double(), None, None
        )
        assert gradient.device == torch.device("cuda:0")


def test_the_first_bad_row_of_all_calls_is_kept() -> None:
    flag = torch.full((1,), device_errors.CLEAR)
    nan = float("nan")
    scale = torch.tensor([1.0, nan, 1.0, nan], dtype=torch.float64)
    device_errors.flag_temperatures(flag, scale[:1], None, None)
    assert flag.item() == device_errors.CLEAR
    device_errors.flag_temperatures(flag, scale, torch.tensor([True, False, True, True]), None)
    assert device_errors.describe(int(flag), 9).startswith("row 3: its temperature")
    device_errors.flag_temperatures(flag, scale, None, torch.tensor([7, 2, 5, 1]))
    assert device_errors.describe(int(flag), 9).startswith("row 1: ")
    assert device_errors.describe(8 * 6 + 4, 9) == "row 6: its target is outside [0, 9)"


def run_tests(place: str, **environment: str) -> str:
    """The tests of the fixture `place` in a process of their own, on stand-ins of this backend."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(str(TESTS / f"test_gpu_{name}.py") for name in ("rows", "linear"))],
        env={**os.environ, "LOGITLESS_TEST_PLACE": place, **environment},
        cwd=TESTS.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_kernels_in_the_interpreter() -> None:
    assert " passed" in run_tests("triton", TRITON_INTERPRET="1")


@pytest.mark.slow
def test_cuda_kernels_in_the_emulator(tmp_path: Path) -> None:
    pytest.importorskip("pybind11")
    build = [sys.executable, str(TESTS / "simt" / "build.py"), str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in run_tests("cuda", PYTHONPATH=str(tmp_path))
