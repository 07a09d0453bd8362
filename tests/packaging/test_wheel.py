"""What a user gets: the files of the wheel, and an sdist that builds into the same wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

pytest.importorskip("build")
pytestmark = pytest.mark.slow


def build(source: Path, out: Path, kind: str) -> Path:
    """`python -m build` with the tools already installed, in a build folder of its own."""
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(out)]
    flags = [f"-Cbuild-dir={out}/cmake"] if kind == "wheel" else []
    # the wheel has the same files with kernels for CUDA, which take minutes to compile
    run = subprocess.run(
        [*command, *flags, str(source)],
        env={**os.environ, "LOGITLESS_CUDA": "OFF"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    (archive,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return archive


# Where `./dev build` has just put both, a wheel made of the sdist alone: else they are built here.
BUILT = os.environ.get("LOGITLESS_DIST")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if BUILT:
        (archive,) = Path(BUILT).glob("*.tar.gz")
        return archive
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="module")
def wheel_files(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of the wheel, built from the sdist alone: what the sdist forgets is missed here."""
    if BUILT:
        (built,) = Path(BUILT).glob("*.whl")
        with zipfile.ZipFile(built) as archive:
            return set(archive.namelist())
    folder = tmp_path_factory.mktemp("wheel")
    # of Python 3.12, and of late patch releases before
    careful: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(sdist) as sources:
        sources.extractall(folder, **careful)
    (source,) = folder.iterdir()
    with zipfile.ZipFile(build(source, folder / "dist", "wheel")) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_python_kernels_core_and_types(wheel_files: set[str]) -> None:
    package, kernels = ROOT / "python" / "logitless", ROOT / "kernels"
    kinds = (".py", ".pyi", ".typed", ".yaml", ".j2", ".css", ".js")
    data = [p for p in package.rglob("*") if p.suffix in kinds]
    expected = {f"logitless/{p.relative_to(package)}" for p in data}
    expected |= {f"logitless/kernels/{p.relative_to(kernels)}" for p in kernels.rglob("*.py")}
    assert expected - wheel_files == set()
    stub = "logitless/_core/__init__.pyi"
    for needed in ("logitless/py.typed", stub, "logitless/kernels/rows.py"):
        assert needed in expected
    assert [f for f in wheel_files if f.startswith("logitless/_core.") and f.endswith(".so")]


def test_the_wheel_holds_nothing_else(wheel_files: set[str]) -> None:
    allowed = (".py", ".pyi", ".so", ".yaml", ".j2", ".css", ".js", "py.typed")
    strange = {
        f
        for f in wheel_files
        if not (f.startswith("logitless/") and f.endswith(allowed)) and ".dist-info/" not in f
    }
    assert strange == set()
    assert not [f for f in wheel_files if "test" in f or "__pycache__" in f]


def test_the_wheel_carries_the_licence(wheel_files: set[str]) -> None:
    assert [f for f in wheel_files if f.endswith(".dist-info/licenses/LICENSE")]


def test_the_sdist_holds_the_sources_and_no_build_output(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    needed |= {"CMakeLists.txt", "LICENSE", "kernels/rows.py", "tests/conftest.py"}
    assert needed - names == set()
    assert not [
        n for n in names if n.endswith(".so") or n.startswith(("build/", ".venv/", "runs/"))
    ]
