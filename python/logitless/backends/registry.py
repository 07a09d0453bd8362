"""Which backend serves a call: what each one needs, and the reason where it cannot serve.

cpu     the compiled core, tensors and NumPy arrays on the CPU
cuda    the core's CUDA kernels, where they were compiled and the device has code in them
triton  logitless.kernels, wherever Triton runs
torch   plain torch with full logits, everywhere; the reference

Devices and dtypes are strings here ("cuda:0", "float32"): nothing imports torch.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from logitless import _core
from logitless.inputs.checks import choice, shown

if TYPE_CHECKING:
    import torch

BACKENDS = ("auto", "cpu", "cuda", "triton", "torch")
# What "auto" tries on a CUDA tensor, best first.
ON_DEVICE = ("cuda", "triton")

# Kernels of both are float32 inside, which float64 logits are not served by.
_DEVICE_DTYPES = ("float32", "bfloat16", "float16")


def choose_backend(backend: str, device: str, dtype: str) -> str:
    """The backend that serves tensors of this dtype on this device: "cpu", "cuda", ...

    `backend` is the caller's argument; "auto" defers to LOGITLESS_BACKEND and then to the device.
    Raises ValueError for an unknown name, and NotImplementedError with the reasons where the named
    backend, or with "auto" every one with kernels, cannot serve.
    """
    source = "backend"
    if isinstance(backend, str) and backend == "auto":
        source, backend = "LOGITLESS_BACKEND", os.environ.get("LOGITLESS_BACKEND") or "auto"
    choice(source, backend, BACKENDS)
    if backend != "auto":
        reason = why_not(backend, device, dtype)
        if reason:
            raise _refusal(f"{source}={backend!r} cannot serve", device, dtype, reason)
        return backend
    if _kind(device) == "cpu":
        return "cpu"
    # No kernel computes in float64 on a device.
    if _kind(device) == "cuda" and dtype == "float64":
        return "torch"
    reasons = {name: why_not(name, device, dtype) for name in ON_DEVICE}
    for name, reason in reasons.items():
        if not reason:
            return name
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise _refusal("no kernels serve", device, dtype, why)


def _refusal(start: str, device: str, dtype: str, reason: str) -> NotImplementedError:
    return NotImplementedError(
        f"{start} {dtype} tensors on {device} ({reason}); backend='torch' computes there with full "
        "logits in plain torch, and `logitless doctor` lists what serves what"
    )


def check_numpy_backend(op: str, backend: str) -> None:
    """NumPy arrays have one backend; LOGITLESS_BACKEND is about tensors."""
    choice("backend", backend, BACKENDS)
    if backend not in ("auto", "cpu"):
        raise ValueError(
            f"{op}: backend must be 'auto' or 'cpu' for NumPy arrays, got {shown(backend)}; "
            "the others take torch tensors"
        )


def why_not(backend: str, device: str, dtype: str = "float32") -> str:
    """Why `backend` cannot serve such tensors on that device; "" if it can."""
    return _WHY_NOT[backend](device, dtype)


def _why_not_cpu(device: str, dtype: str) -> str:
    return "" if _kind(device) == "cpu" else "it serves CPU tensors"


def _why_not_cuda(device: str, dtype: str) -> str:
    build = cuda_build()
    if not build["compiled"] and not build["emulated"]:
        return f"the core was built without CUDA: {build['reason']}"
    if build["emulated"] and _kind(device) != "cpu":
        return "this build of the core emulates CUDA on the CPU, for tests"
    if not build["emulated"] and _kind(device) != "cuda":
        return "it serves CUDA tensors"
    return _wrong_dtype(dtype) or ("" if build["emulated"] else _device_reason(_index(device)))


def _why_not_triton(device: str, dtype: str) -> str:
    if _why_not_torch(device, dtype):
        return _why_not_torch(device, dtype)
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'logitless[triton]'"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if _kind(device) != "cuda" and not (interpreted and _kind(device) == "cpu"):
        return "it serves CUDA tensors, and CPU ones in Triton's interpreter (TRITON_INTERPRET=1)"
    return _wrong_dtype(dtype)


def _why_not_torch(device: str, dtype: str) -> str:
    missing = importlib.util.find_spec("torch") is None
    return "torch is not installed: pip install 'logitless[torch]'" if missing else ""


def _wrong_dtype(dtype: str) -> str:
    return "" if dtype in _DEVICE_DTYPES else f"its kernels take {', '.join(_DEVICE_DTYPES)}"


_WHY_NOT: dict[str, Callable[[str, str], str]] = {
    "cpu": _why_not_cpu,
    "cuda": _why_not_cuda,
    "triton": _why_not_triton,
    "torch": _why_not_torch,
}


@functools.cache
def cuda_build() -> dict[str, Any]:
    """What the core says of its CUDA kernels: compiled, architectures, emulated, reason, ..."""
    build: dict[str, Any] = _core.runtime.build_info()["cuda"]
    return build


# Asking the driver takes longer than a launch, and the answer does not change.
@functools.cache
def _device_reason(index: int) -> str:
    return _core.runtime.cuda_device_reason(index)


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a CUDA device torch's current one: streams, captures and DLPack go by that."""
    if device.type != "cuda":
        return nullcontext()
    import torch

    return torch.cuda.device(device)


def _kind(device: str) -> str:
    return device.split(":")[0]


def _index(device: str) -> int:
    return int(device.partition(":")[2] or 0)
