"""What peers hold, what kernels take; and that no files of benchmarks/ import in a circle."""

from __future__ import annotations

import ast
import graphlib
import os
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
