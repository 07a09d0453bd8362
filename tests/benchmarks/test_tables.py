"""What peers hold, what kernels take; and that no files of benchmarks/ import in a circle."""

from __future__ import annotations

import ast
import graphlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in sorted((ROOT / "benchmarks").rglob("*.py"))}


def imported(path: Path) -> Iterator[str]:
    """Modules, also those that a function imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            for each in node.names:
                inner = f"{node.module}.{each.name}"
                yield inner if inner in FILES else str(node.module)


IMPORTS = {name: set(imported(path)) for name, path in FILES.items()}


def test_there_is_no_circle() -> None:
    inside = {name: (found & FILES.keys()) - {name} for name, found in IMPORTS.items()}
    assert len(list(graphlib.TopologicalSorter(inside).static_order())) == len(FILES)


def test_what_peers_hold_is_printed_beside_ours(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    from benchmarks.cases import peer_memory
    from tests.support.plans import products_of_16_bits

    sizes = "--tokens 1024 --hidden 1024 --vocab 151936 --budget 64MiB"
    with products_of_16_bits():
        peer_memory.main(sizes.split())
    lines = capsys.readouterr().out.splitlines()
    for name in ("Liger 0.8.5", "verl 0.9.1", "TRL 1.16", "cut-cross-entropy", "plain torch 2.13"):
        assert any(name in line for line in lines)
    assert any(line.split()[:3] == ["64.0", "MiB", "logitless:"] for line in lines)
    # Logits, log-softmax and the gradient of each, of two bytes.
    assert f"{4 * 2 * 1024 * 151936 / 2**20:.1f} MiB" in "\n".join(lines)
    assert [float(line.split()[0]) for line in lines] == sorted(
        float(line.split()[0]) for line in lines
    )


PTXAS = """\
ptxas info    : Compiling entry function '{}' for 'sm_90'
ptxas info    : Function properties for {}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used {} registers, used 0 barriers, 1024 bytes smem
"""


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt")
def test_every_variant_of_a_kernel_has_its_row() -> None:
    """By the names of its template's arguments, an enum's among them."""
    from benchmarks.compiled.nvcc_builds import parse

    mangled = {
        "_ZN9logitless4cuda10mix_kernelILNS0_5StepsE0EEEvNS0_7MixArgsE": "mix<none>",
        "_ZN9logitless4cuda10mix_kernelILNS0_5StepsE2EEEvNS0_7MixArgsE":
            "mix<transform_and_noise>",
        "_ZN9logitless4cuda20pair_gradient_kernelILNS_10DivergenceE1ELNS0_5StepsE1EEEv"
        "NS0_16PairGradientArgsE": "pair_gradient<forward_kl, transform>",
        "_ZN9logitless4cuda15partials_kernelINS_4bf16ELb1ELb0EEEvNS0_12PartialsArgsE":
            "partials<bf16, true, false>",
        "_ZN9logitless4cuda10exp_kernelENS0_7ExpArgsE": "exp",
    }  # fmt: skip
    said = [PTXAS.format(name, name, 30 + i) for i, name in enumerate(mangled)]
    found = parse("".join(said))
    assert [m.kernel for m in found] == list(mangled.values())
    assert [m.resources.registers for m in found] == ["30", "31", "32", "33", "34"]
    with pytest.raises(RuntimeError, match=r"share a row of the table: \[\('exp', 'sm_90'\)\]"):
        parse("".join([*said, said[-1]]))


@pytest.mark.parametrize(
    ("name", "value"), [("LOGITLESS_CUDA", "OFF"), ("LOGITLESS_CUDA_ARCHITECTURES", "90")]
)
def test_a_table_of_kernels_without_all_of_them_is_refused(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Where there is an nvcc: here one that only knows its version."""
    pytest.importorskip("triton")
    from benchmarks.compiled import kernel_resources

    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("LOGITLESS_CUDA", "ON")
    monkeypatch.setenv(name, value)
    before = kernel_resources.TABLE.read_bytes()
    assert kernel_resources.main([]) == 2
    assert f"{name}={value} leaves out CUDA kernels" in capsys.readouterr().err
    assert kernel_resources.TABLE.read_bytes() == before
