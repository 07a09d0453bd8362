"""Triton kernels without a GPU: values in Triton's interpreter, code compiled for real devices."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitless import reference

triton = pytest.importorskip("triton", reason="Triton has no wheel for this platform")

SHAPES = {
    "no-rows": (0, 127),
    "one-word-vocabulary": (3, 1),
    "below-one-tile": (33, 127),
    "odd": (1, 1025),
    "ragged-second-tile": (5, 4096 + 3),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CHAINS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"temperature": 0.7, "softcap": 30.0, "logit_scale": 0.5, "bias": True},
    "row-temperature": {"temperature": "per row"},
}


def make(n: int, v: int, dtype: torch.dtype, chain: dict[str, Any]) -> dict[str, Any]:
    """Arguments of row_forward: flat and peaked rows, a masked one, NaN padding; in every second
    row all but the last three logits are -inf, so that whole tiles are empty."""
    g = torch.Generator().manual_seed(1000 * n + v)
    logits = torch.randn(n, v + 7, generator=g) * torch.linspace(0.1, 12, n)[:, None]
    last = max(v - 3, 0)
    logits[::2, :last] = -torch.inf
    logits[:, v:] = torch.nan
    mask = torch.ones(n, dtype=torch.bool)
    if n > 1:
        mask[1] = False
        logits[1] = torch.nan
    chain = dict(chain)
    if chain.get("bias"):
        chain["bias"] = torch.randn(v, generator=g).to(dtype)
    if chain.get("temperature") == "per row":
        chain["temperature"] = torch.rand(n, generator=g) + 0.5
    targets = torch.randint(v, (n,), generator=g)
    targets[::2].clamp_(min=last)
    return {"logits": logits.to(dtype), "targets": targets, "vocab": v, "mask": mask, **chain}


GRID = {
    f"{shape}-{str(dtype).removeprefix('torch.')}-{chain}": make(
        *SHAPES[shape], dtype, CHAINS[chain]
    )
    for shape in SHAPES
    for dtype in DTYPES
    for chain in CHAINS
}
INF = float("inf")
BAD_ROWS = {
    "nan": [0.0, float("nan"), 1.0],
    "plus-inf": [0.0, INF, 1.0],
    "nothing-finite": [-INF, -INF, -INF],
    "target-too-large": [0.0, 1.0, 2.0],
    "target-negative": [0.0, 1.0, 2.0],
}
BAD_TARGETS = {"target-too-large": 3, "target-negative": -1}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[torch.Tensor]]:
    """Every case of this file through the interpreter, in one process."""
    folder = tmp_path_factory.mktemp("interpreter")
    bad = {
        "logits": torch.tensor([*BAD_ROWS.values(), [0.0, 1.0, 2.0]]),
        "targets": torch.tensor([*(BAD_TARGETS.get(name, 0) for name in BAD_ROWS), 0]),
    }
    far = {"logits": torch.tensor([[1e4, 1e4 - 1.0, -1e4]]), "targets": torch.tensor([1])}
    cases = {**GRID, "bad": bad, "far": far}
    torch.save(list(cases.values()), folder / "arguments.pt")
    script = Path(__file__).with_name("interpret_row_forward.py")
    files = (script, folder / "arguments.pt", folder / "results.pt")
    command = [sys.executable, *map(str, files)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return dict(zip(cases, torch.load(folder / "results.pt"), strict=True))


def as_numpy(value: Any) -> Any:
    return value.double().numpy() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", GRID)
def test_row_forward_matches_the_oracle(name: str, results: dict[str, Any]) -> None:
    case = GRID[name]
    logp, entropy, lse, row_max, log_sum = (t.double().numpy() for t in results[name])
    chain = {
        k: as_numpy(case[k]) for k in ("temperature", "softcap", "logit_scale", "bias") if k in case
    }
    z = case["logits"][:, : case["vocab"]].double().numpy()
    expected = reference.token_stats(z, case["targets"].numpy(), mask=case["mask"].numpy(), **chain)

    # Logits of any dtype are widened exactly, so one float32 budget serves all: 4e-6, and a few
    # roundings of a z as large as this row's (one per step of the chain).
    rows = np.where(case["mask"].numpy()[:, None], z, 0.0)
    rounding = 2.0**-23 * np.abs(
        reference.logits_chain(rows, **chain), where=np.isfinite(rows), out=np.zeros_like(rows)
    ).max(axis=-1, initial=0.0)
    budget = 4e-6 + (2 if len(chain) < 2 else 6) * rounding
    for got, want in ((logp, "logp"), (entropy, "entropy"), (lse, "lse")):
        excess = np.abs(got - expected[want]) - budget
        assert not np.isnan(got).any(), f"{want}: NaN in rows {np.flatnonzero(np.isnan(got))}"
        assert (excess <= 0).all(), (
            f"{want}: row {excess.argmax()} is off by {excess.max():.2e} more than allowed"
        )
    assert (logp <= 0).all()
    assert (entropy >= -4e-6).all()
    assert (entropy <= np.log(case["vocab"]) + 4e-6).all()
    np.testing.assert_allclose(row_max + log_sum, lse, rtol=2e-7)
    assert all((t[~case["mask"]] == 0).all() for t in results[name])


@pytest.mark.parametrize("row", range(len(BAD_ROWS)), ids=list(BAD_ROWS))
def test_a_bad_row_is_nan_and_only_that_row(row: int, results: dict[str, Any]) -> None:
    for name, values in zip(
        ("logp", "entropy", "lse", "row_max", "log_sum"), results["bad"], strict=True
    ):
        assert torch.isnan(values[row]), f"{name}: {values[row]}"
        assert torch.isfinite(values[-1]), f"{name}: the good row beside it became {values[-1]}"


def test_far_from_zero_nothing_is_lost(results: dict[str, Any]) -> None:
    # log_softmax through lse would be off by 5e-4 here.
    logp, entropy, *_ = results["far"]
    expected = reference.token_stats(np.array([[1e4, 1e4 - 1.0, -1e4]]), np.array([1]))
    assert abs(float(logp) - expected["logp"][0]) < 4e-6
    assert abs(float(entropy) - expected["entropy"][0]) < 4e-6


# ---- code for devices this machine does not have

POINTERS = {"targets_ptr": "*i64", "mask_ptr": "*i1", "temperature_ptr": "*fp32"}
OPTIONAL = ("mask_ptr", "bias_ptr", "temperature_ptr")


def compile_for(target: Any, dtype: str, options: bool) -> Any:
    """Ahead of time, with every optional argument or with none, as an aligned launch would be."""
    from logitless.kernels import row_forward as module

    kernel = module.row_forward_kernel
    constants: dict[str, Any] = {"HAS_SOFTCAP": options, "BLOCK_V": module.BLOCK_V}
    constants |= {} if options else dict.fromkeys(OPTIONAL)
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in ("logits_ptr", "bias_ptr"):
            signature[name] = "*" + dtype
        elif name in ("logits_stride", "vocab"):
            signature[name] = "i32"
        else:
            signature[name] = POINTERS.get(name, "*fp32" if name.endswith("_ptr") else "fp32")
    aligned = [i for i, kind in enumerate(signature.values()) if kind[0] == "*" or kind == "i32"]
    source = triton.compiler.ASTSource(
        kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned}
    )
    flags = {"num_warps": module.NUM_WARPS, "enable_fp_fusion": True}
    return triton.compile(source, target=target, options=flags)


@pytest.mark.parametrize("options", [False, True], ids=["bare", "all-options"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiles_for_nvidia_without_spills(
    arch: int, dtype: str, options: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    ptx = compile_for(GPUTarget("cuda", arch, 32), dtype, options).asm["ptx"]
    # Loads as wide as the hardware has: what makes the pass run at memory speed.
    assert "ld.global.v4" in ptx
    (tmp_path / "kernel.ptx").write_text(ptx)
    name = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert name is not None
    command = [get_ptxas(arch).path, "-v", f"--gpu-name={name[1]}", "kernel.ptx", "-o", "out"]
    report = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stderr
    assert re.findall(r"(\d+) bytes spill", report) == ["0", "0"], report


@pytest.mark.parametrize("options", [False, True], ids=["bare", "all-options"])
def test_compiles_for_amd_without_spills(
    options: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    assembly = compile_for(GPUTarget("hip", "gfx942", 64), "bf16", options).asm["amdgcn"]
    assert set(re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", assembly)) == {"0"}
