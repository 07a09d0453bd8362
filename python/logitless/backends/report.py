"""What serves what on this machine, by op and by option: what `logitless doctor` prints."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from logitless import _core
from logitless.backends import registry
from logitless.backends.base import REQUIRES, TOKENS, Backend
from logitless.backends.cuda import cuda_build

# What the same kernels serve.
_ALIKE = {TOKENS: f"{TOKENS}, batch_stats, covariance, rollout_weights"}


def report(gpus: dict[str, str] | None = None) -> Iterator[tuple[str, str]]:
    """Lines of (label, text): each device, the backends of each op and option there, and why not
    others.

    gpus: device -> its name; None: those of this machine.
    """
    yield "cuda kernels", registry.get("cuda").described()
    yield "CPU", "of tensors and NumPy arrays; the first is what backend='auto' takes"
    yield from _served("cpu")
    if importlib.util.find_spec("torch") is not None:
        yield from _widened()
    gpus = found_gpus() if gpus is None else gpus
    for device, name in gpus.items():
        yield device, name
        yield from _served(device)
    if not gpus:
        yield "GPU", f"none: {_no_gpu()}"


def _served(device: str) -> Iterator[tuple[str, str]]:
    backends = list(registry.BACKENDS.values())
    reasons = {backend.name: backend.why_not(device, "float32") for backend in backends}
    able = [backend for backend in backends if not reasons[backend.name]]
    for need in REQUIRES:
        served = [backend.name for backend in able if backend.has(need).ok]
        yield f"  {_named(need)}", ", ".join(served or ["nothing"])
    for backend in able:
        for reason, needs in _absent(backend).items():
            yield f"  not {backend.name}", f"{', '.join(map(_named, needs))}: {reason}"
    for name, reason in reasons.items():
        if reason and not (name == "cpu" and device != "cpu"):
            yield f"  not {name}", reason
    if device != "cpu":
        yield "  float64", "torch"


def _widened() -> Iterator[tuple[str, str]]:
    """What this CPU has no products for."""
    names = " and ".join(sorted(registry.get("cpu").machine("cpu").widened()))
    if names:
        yield f"  {names}", "multiplied in float32, as logits are unless asked otherwise"


def _named(need: str) -> str:
    return _ALIKE.get(need, need)


def _absent(backend: Backend) -> dict[str, list[str]]:
    """Sentence -> the ops, and options of ops, that a backend lacks for this reason."""
    found: dict[str, list[str]] = {}
    for need in REQUIRES:
        support = backend.has(need)
        if not support.ok:
            found.setdefault(support.reason, []).append(need)
    return found


def found_gpus() -> dict[str, str]:
    """Device -> its name and architecture, as torch sees them."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    if not torch.cuda.is_available():
        return {}
    return {
        f"cuda:{i}": f"{torch.cuda.get_device_name(i)}, sm_{major}{minor}"
        for i in range(torch.cuda.device_count())
        for major, minor in [torch.cuda.get_device_capability(i)]
    }


def _no_gpu() -> str:
    if importlib.util.find_spec("torch") is None:
        return "torch, which would bring its tensors, is not installed"
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built for the CPU"
    reason = _core.runtime.cuda_device_reason(0) if cuda_build()["compiled"] else ""
    return f"torch {torch.__version__} sees none" + (f" ({reason})" if reason else "")
