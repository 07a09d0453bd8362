"""Loads the kernels of a device before something that may not wait for them: a CUDA graph."""

from __future__ import annotations

import itertools
from typing import Any

from logitless.inputs.checks import shown, whole
from logitless.inputs.naming import public
from logitless.inputs.options import ROW_EXTRAS

# Two rows: of one, strides are not those of a real call.
_ROWS = 2


@public
def warm(device: Any, dtype: Any, *, vocab: int = 4096, backend: str = "auto") -> int:
    """Load every kernel that serves logits of this dtype on this device; how many calls that took.

    The first call of a kernel loads it, and with Triton compiles it, which a CUDA graph under
    capture does not allow, and which a first step pays for. This makes those calls: with and
    without a mask, temperatures per row, bias and softcap, and extras, forward and backward. Triton
    also tells apart whether the width of the logits is a multiple of 16: pass your `vocab`. It
    waits for the device. `divergence` and the losses have kernels of their own: what a graph is to
    capture of them, call once before.

    Raises what `token_stats` raises where `backend` cannot serve `dtype` there.
    """
    import torch

    from logitless.ops.token_stats import token_stats

    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be a torch device, got {shown(device)}") from None
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating torch dtype, got {shown(dtype)}")
    vocab = whole("vocab", vocab, least=1)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(_ROWS, vocab, generator=generator).to(device, dtype).requires_grad_()
    targets = torch.zeros(_ROWS, dtype=torch.int64, device=device)
    per_row: dict[str, Any] = {"temperature": torch.ones(_ROWS, device=device)}
    chain = {"bias": torch.zeros(vocab, dtype=torch.float32, device=device), "softcap": 30.0}
    choices: list[tuple[dict[str, Any], ...]] = [
        ({}, {"mask": torch.ones_like(targets, dtype=torch.bool)}),
        ({}, per_row),
        ({}, {"bias": chain["bias"]}, {"softcap": chain["softcap"]}, chain),
        ({}, {"extras": ROW_EXTRAS}),
    ]
    calls = 0
    for chosen in itertools.product(*choices):
        options = {name: value for part in chosen for name, value in part.items()}
        stats = token_stats(logits, targets, backend=backend, **options)
        # Each result alone, and all of them.
        losses = [x.sum() for x in stats[:3]]
        for loss in (*losses[:2], sum(losses)):
            torch.autograd.grad(loss, logits, retain_graph=True)
        calls += 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return calls
