"""Which backend serves a call, and the reason where none does.

Devices and dtypes are strings here ("cuda:0", "float32"): nothing imports torch.
"""

from __future__ import annotations

import os
from typing import Any

from logitless.backends import cpu, cuda, eager, triton
from logitless.backends.base import TOKENS, Backend
from logitless.backends.token_kernels.protocol import TokenKernels
from logitless.inputs.checks import choice, is_tensor, shown

# By the name that `backend=` takes. A backend is added, or replaced, by an entry. The first that
# serves a device is what "auto" takes there, and the first that `logitless doctor` lists.
BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (cpu.BACKEND, cuda.BACKEND, triton.BACKEND, eager.BACKEND)
}
# What "auto" tries on a CUDA tensor, best first.
ON_DEVICE = ("cuda", "triton")


def get(name: str) -> Backend:
    """The backend of this name, which `choose` has found."""
    return BACKENDS[name]


def names() -> tuple[str, ...]:
    """What `backend=` takes."""
    return ("auto", *BACKENDS)


def choose(backend: str, device: str, dtype: str) -> str:
    """The backend that serves tensors of this dtype on this device: "cpu", "cuda", ...

    `backend` is the caller's argument; "auto" defers to LOGITLESS_BACKEND and then to the device.
    Raises ValueError for an unknown name, and NotImplementedError with the reasons where the named
    backend, or with "auto" every one with kernels, cannot serve.
    """
    source = "backend"
    if isinstance(backend, str) and backend == "auto":
        source, backend = "LOGITLESS_BACKEND", os.environ.get("LOGITLESS_BACKEND") or "auto"
    choice(source, backend, names())
    if backend != "auto":
        reason = why_not(backend, device, dtype)
        if reason:
            raise _refusal(f"{source}={backend!r} cannot serve", device, dtype, reason)
        return backend
    kind = device.split(":")[0]
    if kind == "cpu":
        return "cpu"
    # No kernel computes in float64 on a device.
    if kind == "cuda" and dtype == "float64":
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


def first_with(need: str, device: str, dtype: str = "float32") -> Backend | None:
    """The first backend that has what an op needs, see `base.REQUIRES`, and serves such tensors."""
    for backend in BACKENDS.values():
        if backend.supports(need, device, dtype).ok:
            return backend
    return None


def choose_with(need: str, device: str, dtype: str) -> str:
    """Its name. Raises NotImplementedError with the reasons where there is none."""
    found = first_with(need, device, dtype)
    if found is None:
        able = [b for b in BACKENDS.values() if not b.why_not(device, dtype)]
        reasons = [f"{b.name}: {b.has(need).reason}" for b in able]
        why = "; ".join(reasons) or "no backend serves them"
        raise NotImplementedError(f"{need} of {dtype} tensors on {device} is not built ({why})")
    return found.name


def token_kernels(device: str) -> TokenKernels:
    """Those of the first backend that serves a device: the compiled ones, else Triton's, else
    torch's operations; `eager.tokens_of` has what works on copies."""
    found = first_with(TOKENS, device)
    assert found is not None and found.tokens is not None, device
    return found.tokens(device)


def token_kernels_of(like: Any, *, custom: bool = False) -> TokenKernels:
    """Those that work where an array is. NumPy arrays are the CPU's, and so is a loss with `custom`
    parts, which are the user's own NumPy code."""
    on_cpu = custom or not is_tensor(like) or like.is_cpu
    return token_kernels("cpu" if on_cpu else str(like.device))


def check_numpy_backend(op: str, backend: str) -> None:
    """NumPy arrays have one backend; LOGITLESS_BACKEND is about tensors."""
    choice("backend", backend, names())
    if backend not in ("auto", "cpu"):
        raise ValueError(
            f"{op}: backend must be 'auto' or 'cpu' for NumPy arrays, got {shown(backend)}; "
            "the others take torch tensors"
        )


def why_not(backend: str, device: str, dtype: str = "float32") -> str:
    """Why `backend` cannot serve such tensors on that device; "" if it can."""
    return get(backend).why_not(device, dtype)
