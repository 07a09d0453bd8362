"""Where the package is built to, and from which sources it was."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build" / "gpu"
SOURCES = ("csrc", "python", "kernels", "benchmarks", "tests", "CMakeLists.txt", "pyproject.toml")
# Of these the package itself is made.
PACKAGE = ("csrc", "python", "kernels", "CMakeLists.txt", "pyproject.toml")
SUFFIXES = (".py", ".h", ".cpp", ".inl", ".cu", ".cuh", ".cmake", ".txt", ".toml")


def sources_hash(names: tuple[str, ...] = SOURCES, root: Path = ROOT) -> str:
    """Of the contents: the machine with the GPU may have neither git nor the history."""
    digest = hashlib.sha256()
    for name in names:
        top = root / name
        files = sorted(top.rglob("*")) if top.is_dir() else [top]
        for path in (p for p in files if p.suffix in SUFFIXES and p.is_file()):
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def stamp(rehearse: bool) -> Path:
    return BUILT / ("rehearsal.stamp" if rehearse else "package.stamp")


def set_built(rehearse: bool, folder: Path) -> None:
    stamp(rehearse).parent.mkdir(parents=True, exist_ok=True)
    # Relative where it may be: the tree may travel to the machine with the GPU.
    place = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    stamp(rehearse).write_text(f"{sources_hash(PACKAGE)}\n{place}\n")


def built(rehearse: bool) -> Path | str:
    """The folder to import the package from, or why there is none."""
    if not stamp(rehearse).exists():
        return "the package is not built: the build stage has not succeeded"
    sources, folder = stamp(rehearse).read_text().splitlines()
    if sources != sources_hash(PACKAGE):
        return "the package was built from other sources: run the build stage"
    return ROOT / folder
