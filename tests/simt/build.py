"""Builds the CUDA kernels for the SIMT machine of this folder, where they run on CPU arrays.

    python tests/simt/build.py OUT

puts an importable `logitless` into OUT: the Python files as links and a `_core` whose CUDA kernels
are emulated. `PYTHONPATH=OUT python ...` then uses it, whatever else is installed. `rows_module`
builds the kernels and their bindings alone, from any source tree: for the tests of the kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import functools
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SIMT = Path(__file__).resolve().parent
ROOT = SIMT.parents[1]
CACHE = ROOT / "build" / "simt"
# About four versions of the kernels and their planted bugs, 100 MB.
KEPT_OBJECTS = 300
# Of csrc/cuda; and what the bindings of the kernels take of bindings/arrays.
ROOMS = ("rows", "topk", "sampling", "divergence", "tokens")
ARRAYS = ("dlpack", "overlap", "row_arrays", "topk_arrays")
COMPILER = os.environ.get("CXX", "g++")
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
# An editable install finds its own logitless before PYTHONPATH is looked at; this goes first.
SITE = """\
import sys
from importlib.machinery import PathFinder


class Emulated:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "logitless":
            return PathFinder.find_spec(name, path or [{out!r}])
        return None


sys.meta_path.insert(0, Emulated)
"""


def package(out: Path) -> None:
    """An importable logitless in `out`, of links: only C++ needs building again after an edit."""
    build = CACHE / f"cmake-{sys.implementation.cache_tag}"
    switches = {
        "CMAKE_BUILD_TYPE": "Release",
        # or a changed file would cost the code of all others again
        "CMAKE_INTERPROCEDURAL_OPTIMIZATION": "OFF",
        "LOGITLESS_SIMT": "ON",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11().get_cmake_dir(),
    }
    flags = [f"-D{name}={value}" for name, value in switches.items()]
    run(["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *flags])
    run(["cmake", "--build", str(build), "--target", "_core"])
    (core,) = build.glob("_core*.so")
    link_package(core, out)


def link_package(core: Path, out: Path) -> None:
    """An importable logitless in `out`: the Python files as links, and this compiled core."""
    folder = out / "logitless"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for source in [*(ROOT / "python" / "logitless").iterdir(), ROOT / "kernels", core]:
        # A core installed in place by somebody must not hide the one built here.
        if source == core or source.suffix != ".so":
            (folder / source.name).symlink_to(source.resolve())
    (out / "sitecustomize.py").write_text(SITE.format(out=str(out.resolve())))


def rows_module(out: Path, *, tree: Path = ROOT, rooms: tuple[str, ...] = ROOMS) -> Path:
    """Module `simt_rows` of the kernels and their bindings alone, under ASan and UBSan, into `out`.

    The kernels are those of tree/csrc/cuda, a copy where little is changed; those of other rooms
    are ROOT's. Objects are kept by what the preprocessor made of them, so a changed line costs its
    own files.
    """
    copies = _changed(tree, rooms)
    # Of what is inline the linker keeps the first: that of the tree.
    sources = [*copies.values(), *(file for file in _sources() if file not in copies)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(_object, sources))
    module = out / f"simt_rows{sysconfig.get_config_var('EXT_SUFFIX')}"
    out.mkdir(parents=True, exist_ok=True)
    run([COMPILER, "-shared", *SANITIZE, *map(str, objects), "-o", str(module)])
    _forget()
    return module


def self_test(out: Path) -> Path:
    """The machine with its own small kernels, as a program."""
    objects = [_object(SIMT / name) for name in ("simt.cpp", "selftest.cpp")]
    out.mkdir(parents=True, exist_ok=True)
    run([COMPILER, *SANITIZE, *map(str, objects), "-o", str(out / "selftest")])
    return out / "selftest"


def no_sanitizer() -> str:
    """Why nothing can be built here under the sanitizers, or ''."""
    if sys.platform != "linux" or shutil.which(COMPILER) is None:
        return f"needs Linux and {COMPILER}"
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "empty.cpp"), Path(folder, "empty")
        source.write_text("int main() { return 0; }\n")
        run = subprocess.run(
            [COMPILER, *SANITIZE, str(source), "-o", str(program)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if run.returncode or subprocess.run([str(program)], check=False).returncode:
            return f"{COMPILER} has no address sanitizer: {run.stderr[:200]}"
    return ""


def sanitizer_environment(**more: str) -> dict[str, str]:
    """What a Python needs around it to load a sanitised module."""
    # The sanitizer looks for the C++ library's throw when it starts, which Python alone lacks.
    libraries = [
        subprocess.run(
            [COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    asan = "detect_leaks=0"
    return {**os.environ, "LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": asan, **more}


def _sources() -> list[Path]:
    bindings = ROOT / "csrc" / "bindings"
    return [
        *(file for room in ROOMS for file in (ROOT / "csrc" / "cuda" / room).glob("*.cu")),
        *(bindings / "cuda").glob("*.cpp"),
        bindings / "loss_params.cpp",
        *(bindings / "arrays" / f"{name}.cpp" for name in ARRAYS),
        *(ROOT / "csrc" / "cpu" / "runtime" / name for name in ("errors.cpp", "mapping.cpp")),
        *(SIMT / name for name in ("simt.cpp", "runtime.cpp", "module.cpp")),
    ]


def _changed(tree: Path, rooms: tuple[str, ...]) -> dict[Path, Path]:
    """Kernels of these rooms that include another file in `tree`: ROOT's source, and the tree's."""
    if tree == ROOT:
        return {}
    kernels = [file for file in _sources() if file.suffix == ".cu" and file.parent.name in rooms]
    return {
        source: tree / source.relative_to(ROOT)
        for source in kernels
        if not all(
            filecmp.cmp(file, tree / file.relative_to(ROOT)) for file in _compiled(source)[1]
        )
    }


@functools.cache
def _compiled(source: Path) -> tuple[Path, list[Path]]:
    """The object of `source`, and the files of csrc that it is made of; the headers of its own tree
    go before this one's."""
    tree = next(folder for folder in source.parents if folder.name in ("csrc", "simt"))
    options = [COMPILER, "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
    # Kernels are compiled more often than they run. What wraps them for Python is slow to compile,
    # and not what is looked at here.
    wraps = "bindings" in source.parts or source.name == "module.cpp"
    options += ["-O1" if source.parent == SIMT else "-O0", *([] if wraps else ["-g1", *SANITIZE])]
    options += ["-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    include = [SIMT, tree, ROOT / "csrc", pybind11().get_include()]
    include.append(sysconfig.get_path("include"))
    command = [*options, *(f"-I{folder}" for folder in include), "-x", "c++", str(source)]
    text = subprocess.run([*command, "-E"], capture_output=True, check=False).stdout
    # The same file of another tree is the same object.
    key_text = text.replace(str(tree).encode(), b"")
    key = hashlib.sha256(" ".join(options).encode() + key_text).hexdigest()[:24]
    target = CACHE / "objects" / f"{source.stem}-{key}.o"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}")
        run([*command, "-c", "-o", str(part)])
        part.replace(target)
    target.touch()
    names = set(re.findall(rb'^# \d+ "([^"<]+)"', text, re.MULTILINE))
    files = [Path(name.decode()) for name in names]
    return target, [file for file in files if ROOT / "csrc" in file.parents]


def _object(source: Path) -> Path:
    return _compiled(source)[0]


def _forget() -> None:
    """Of the objects, those that nobody asked for longest go; another test run may do the same."""
    with contextlib.suppress(FileNotFoundError):
        kept = sorted((CACHE / "objects").glob("*.o"), key=lambda file: -file.stat().st_mtime)
        for file in kept[KEPT_OBJECTS:]:
            file.unlink()


def pybind11() -> Any:
    return importlib.import_module("pybind11")


def run(command: list[str], *, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    package(parser.parse_args().out)
