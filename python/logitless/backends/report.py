"""What serves what on this machine, op by op: what `logitless doctor` prints."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from logitless import _core
from logitless.backends.registry import ON_DEVICE, cuda_build, why_not

# Op -> the backends that have it. The [N] vectors of the last row come to the CPU from anywhere.
_EVERYWHERE = (*ON_DEVICE, "cpu", "torch")
OPS = {
    "token_stats": _EVERYWHERE,
    "linear_token_stats": _EVERYWHERE,
    "linear_policy_loss": _EVERYWHERE,
    "linear_sample": ("cpu",),
    "policy_loss, batch_stats, covariance": ("cpu",),
}
_COPIED = "policy_loss, batch_stats, covariance"


def report() -> Iterator[tuple[str, str]]:
    """Lines of (label, text): each device, the backends of each op there, and why not others."""
    yield "cuda kernels", _cuda_kernels()
    yield "CPU", "of tensors and NumPy arrays; the first is what backend='auto' takes"
    yield from _served("cpu")
    gpus = _gpus()
    for device, name in gpus.items():
        yield device, name
        yield from _served(device)
    if not gpus:
        yield "GPU", f"none: {_no_gpu()}"


def _served(device: str) -> Iterator[tuple[str, str]]:
    reasons = {name: why_not(name, device) for name in _EVERYWHERE}
    # On the CPU a stand-in of a device's kernels can only be named: "auto" is the core.
    first = ("cpu", *_EVERYWHERE) if device == "cpu" else _EVERYWHERE
    order = list(dict.fromkeys(first))
    for op, backends in OPS.items():
        able = [name for name in order if name in backends and not reasons[name]]
        if not able:
            able = ["cpu, on copies of its inputs" if op == _COPIED else "nothing"]
        yield f"  {op}", ", ".join(able)
    for name, reason in reasons.items():
        if reason and not (name == "cpu" and device != "cpu"):
            yield f"  not {name}", reason
    if device != "cpu":
        yield "  float64", "torch"


def _cuda_kernels() -> str:
    build = cuda_build()
    if build["emulated"]:
        return "emulated on the CPU, for tests"
    if not build["compiled"]:
        return f"not compiled: {build['reason']}"
    return f"for {build['architectures']} by CUDA {build['toolkit']}"


def _gpus() -> dict[str, str]:
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
