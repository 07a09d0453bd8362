"""Every Triton kernel in every configuration, compiled for devices this machine need not have.

The public object of the kernels is called on small CPU tensors while a stand-in for the driver
names the target, so what is compiled is what a real launch would compile: argument types,
specialisation and options come from the launchers, not from a list kept beside them.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.compiled.resources import Measured, Resources
from benchmarks.compiled.selection_builds import call_selection
from benchmarks.compiled.token_builds import token_calls
from logitless.inputs.options import STATISTICS

# Backend, architecture, warp size.
TARGETS: dict[str, tuple[Any, ...]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What a call may have beside its logits. "odd": no row but the first starts at 16 bytes; "noise":
# on the logits of a teacher.
CONFIGURATIONS: dict[str, frozenset[str]] = {
    "plain": frozenset(),
    "extras": frozenset({"extras"}),
    "all": frozenset({"extras", "chain", "mask", "batched", "later"}),
    "odd": frozenset({"odd"}),
    "odd, all": frozenset({"odd", "extras", "chain", "mask", "batched", "later"}),
    "noise": frozenset({"noise"}),
    "noise, all": frozenset({"noise", "extras", "chain", "mask", "batched", "later"}),
}


@dataclass(frozen=True)
class Build:
    kernel: str
    configuration: str
    target: str
    code: Any  # triton's CompiledKernel


class _Driver:
    """As much of a driver as compiling asks for."""

    def __init__(self, target: str) -> None:
        from triton.backends.compiler import GPUTarget

        self.target, self.name = GPUTarget(*TARGETS[target]), target

    def get_current_target(self) -> Any:
        return self.target

    # Kernels keep their compiled code by device; so each target is one.
    def get_current_device(self) -> str:
        return self.name

    def get_current_stream(self, device: str) -> int:
        return 0


@contextmanager
def compiling(
    target: str, package: str = "logitless.kernels", only: tuple[str, ...] = ()
) -> Iterator[list[tuple[str, Any]]]:
    """Launches inside compile for `target` and run nothing; yields (kernel, code) of each.

    `package`: where the kernels are; `only`: names of kernels, the others are passed over.
    """
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    arrays = import_module(f"{package}.arrays")
    launched: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, warmup: bool, **kwargs: Any) -> None:
        name = self.__name__.removesuffix("_kernel")
        if not only or name in only:
            launched.append((name, run(self, *args, warmup=True, **kwargs)))

    with (
        mock.patch.object(driver, "_active", _Driver(target)),
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(arrays, "runs_on", return_value=True),
    ):
        yield launched


def tile(n: int, vocab: int, dtype: torch.dtype, options: frozenset[str]) -> torch.Tensor:
    """Logits [n, width], or rows of batches that do not follow one another: two strides."""
    width = vocab + 3 if "odd" in options else vocab
    if "batched" in options:
        return torch.empty(2, 2, n // 2, width, dtype=dtype)[:, 0]
    return torch.empty(n, width, dtype=dtype)


def call(
    n: int,
    vocab: int,
    dtype: torch.dtype,
    options: frozenset[str] = frozenset(),
    *,
    package: str = "logitless.kernels",
    start: int = 0,
    **chain: float,
) -> None:
    """A forward, a finish and a backward in place, as the ops call them."""
    TritonRows = import_module(f"{package}.rows").TritonRows
    logits = tile(n, vocab, dtype, options)
    width = logits.shape[-1]
    given: dict[str, Any] = dict(chain)
    if "mask" in options:
        given["mask"] = torch.ones(n, dtype=torch.bool)
    if "chain" in options:
        given = {"bias": torch.zeros(start + width), "softcap": 15.0, "pre": 0.5} | given
        given["row_scale"] = torch.ones(n, dtype=torch.float64)
    rows = TritonRows(n, targets=torch.zeros(n, dtype=torch.int64), **given)
    state = torch.empty(n, 8, dtype=torch.float64)
    extras = "extras" in options
    rows.forward(logits, state, start=start, first="later" not in options, extras=extras)
    names = ["logp", "entropy", "lse"]
    names += STATISTICS if extras else []
    outputs = {name: torch.empty(n) for name in names}
    if extras:
        outputs["argmax"] = torch.empty(n, dtype=torch.int64)
    row_ids = torch.arange(n) if "mask" in options else None
    error = torch.tensor([2**63 - 1])
    rows.finalize(state, start + width, error, row_ids=row_ids, **outputs)
    upstream = {"g_logp": torch.ones(n), "g_entropy": torch.ones(n)}
    if "chain" in options:
        upstream |= {"g_lse": torch.ones(n, dtype=torch.float64)}
    rows.gradient(logits, state, logits, start=start, **upstream)


def call_pair(
    n: int,
    vocab: int,
    dtype: torch.dtype,
    options: frozenset[str] = frozenset(),
    *,
    package: str = "logitless.kernels",
    start: int = 0,
    kinds: tuple[str, ...] = ("reverse_kl", "forward_kl", "jsd"),
) -> None:
    """The same beside a teacher's float32 logits: a mix, and a backward of each kind."""
    TritonPair = import_module(f"{package}.divergence.pair").TritonPair
    logits, other = (tile(n, vocab, of, options) for of in (dtype, torch.float32))
    width = logits.shape[-1]
    side: dict[str, Any] = {"n": n}
    if "chain" in options:
        side |= {"bias": torch.zeros(start + width), "softcap": 15.0, "pre": 0.5}
        side["row_scale"] = torch.ones(n, dtype=torch.float64)
    mask = {"mask": torch.ones(n, dtype=torch.bool)} if "mask" in options else {}
    noise = noise_on(n, start) if "noise" in options else None
    pair = TritonPair({**side, **mask}, side, logits.device, noise)
    state, sums = torch.empty(n, 8, dtype=torch.float64), torch.empty(n, 2, dtype=torch.float64)
    where = {"start": start, "first": "later" not in options}
    pair.forward(logits, other, state, **where)
    pair.mix(logits, other, state, sums, beta=0.3, **where)
    names = ("entropy", "teacher_entropy", "reverse_kl", "forward_kl")
    row_ids = torch.arange(n) if "mask" in options else None
    outputs = {name: torch.empty(n) for name in names}
    pair.finalize(state, error=torch.tensor([2**63 - 1]), row_ids=row_ids, **outputs)
    for kind in kinds:
        pair.gradient(
            logits, other, state, logits, kind=kind, beta=0.3 if kind == "jsd" else 0.5,
            sums=sums if kind == "jsd" else None, g_divergence=torch.ones(n),
            g_entropy=torch.ones(n, dtype=torch.float64), start=start,
        )  # fmt: skip


def noise_on(n: int, start: int = 0) -> dict[str, Any]:
    """That of a teacher's rows."""
    sizes, row_ids = torch.ones(n, dtype=torch.float64), torch.arange(n)
    return {"seed": 2**63 + 1, "step": 3, "row_ids": row_ids, "sizes": sizes, "start": start}


def call_draw(
    n: int,
    vocab: int,
    dtype: torch.dtype,
    options: frozenset[str] = frozenset(),
    *,
    package: str = "logitless.kernels",
) -> None:
    """A draw, of the first tile or of a later one."""
    TritonRows = import_module(f"{package}.rows").TritonRows
    logits = tile(n, vocab, dtype, options)
    given: dict[str, Any] = {}
    if "chain" in options:
        given = {"bias": torch.zeros(logits.shape[-1]), "softcap": 15.0, "pre": 0.5}
        given["row_scale"] = torch.ones(n, dtype=torch.float64)
    rows = TritonRows(n, targets=torch.zeros(n, dtype=torch.int64), **given)
    state, best = (torch.empty(n, k, dtype=torch.float64) for k in (8, 2))
    rows.draw(
        logits, state, best, start=0, first="later" not in options, row_ids=torch.arange(n),
        seed=2**63 + 1, step=3,
    )  # fmt: skip


def call_sets(
    n: int,
    vocab: int,
    dtype: torch.dtype,
    options: frozenset[str] = frozenset(),
    *,
    package: str = "logitless.kernels",
    kinds: tuple[str, ...] = ("reverse_kl", "forward_kl", "jsd"),
) -> None:
    """Rows over sets of `vocab` ids: of a head both ways, of given logits, and beside a teacher."""
    kernel = _kernels(f"{package}.sets")
    side: dict[str, Any] = {"n": n}
    if "chain" in options:
        side |= {"softcap": 15.0, "pre": 0.5, "row_scale": torch.ones(n, dtype=torch.float64)}
    mask = {"mask": torch.ones(n, dtype=torch.bool)} if "mask" in options else {}
    columns, width = torch.zeros(n, dtype=torch.int32), 1027 if "odd" in options else 1024
    csr = torch.arange(n + 1), columns, torch.zeros(n)
    head = torch.empty(vocab, width, dtype=dtype)
    kernel("set_logits")(*csr, hidden=head[:n], weight=head)
    for add in (False, True):
        kernel("sparse_multiply")(*csr, names=columns, dense=head, out=head[:n], add=add)
    for read in (False, True):
        of_head = tile(n, vocab, dtype, options - {"batched"})
        kernel("set_tile")(*csr, tile=of_head, start=0, read=read)
    targets = torch.zeros(n, dtype=torch.int64)
    rows = import_module(f"{package}.rows").TritonRows(targets=targets, **side, **mask)
    entries = import_module(f"{package}.sets.entries").Entries(*csr)
    state, sums = (torch.empty(n, k, dtype=torch.float64) for k in (8, 2))
    kernel("set_forward")(rows, targets, entries, state, extras="extras" in options)
    kernel("set_gradient")(rows, targets, entries, state, torch.empty(n), g_logp=torch.ones(n))
    noise = noise_on(n) if "noise" in options else None
    pair = import_module(f"{package}.divergence.pair").TritonPair(
        {**side, **mask}, side, state.device, noise
    )
    both = pair.student, pair.teacher, pair.noise, entries, torch.zeros(n)
    kernel("set_pair")(*both, state)
    kernel("set_pair_mix")(*both, state, sums, beta=0.3)
    for kind in kinds:
        kernel("set_pair_gradient")(
            *both, state, torch.empty(n), kind=kind, beta=0.3, sums=sums,
            g_divergence=torch.ones(n), g_entropy=None,
        )  # fmt: skip


def call_topk(
    n: int,
    vocab: int,
    dtype: torch.dtype,
    options: frozenset[str] = frozenset(),
    *,
    package: str = "logitless.kernels",
    entries: tuple[int, ...] = (64, 512, 1024),
) -> None:
    """Entries of a tile and of whole rows, few and as many as a row may keep; their gradients."""
    kernel = _kernels(f"{package}.topk")
    logits = tile(n, vocab, dtype, options)
    given: dict[str, Any] = {}
    if "mask" in options:
        given["mask"] = torch.ones(n, dtype=torch.bool)
    if "chain" in options:
        given |= {"bias": torch.zeros(logits.shape[-1]), "softcap": 15.0, "pre": 0.5}
        given["row_scale"] = torch.ones(n, dtype=torch.float64)
    targets = torch.zeros(n, dtype=torch.int64)
    rows = import_module(f"{package}.rows").TritonRows(n, targets=targets, **given)
    state, (mass, entropy) = torch.empty(n, 8, dtype=torch.float64), torch.zeros(2, n).double()
    economy = import_module(f"{package}.topk.measure_kept").Economy(64, 512, 1e-3, 1e-5)
    columns = torch.zeros(n, dtype=torch.int32)
    for keep in entries:
        ids = torch.empty(n, 2 * keep, dtype=torch.int32)
        kept = import_module(f"{package}.topk.kept").Kept(ids.double(), ids, mass, targets, 9.0)
        rows.forward(logits, state, first="later" not in options, topk=kept)
        rows.recapture(logits, state, kept, start=0, first="later" not in options)
        kernel("sort_kept")(rows, state, kept)
        kernel("measure_kept")(
            rows, state, kept, economy, dropped_mass=mass, dropped_entropy=entropy,
            wider=torch.ones(n, dtype=torch.bool),
        )  # fmt: skip
    lse = {"g_lse": mass} if "chain" in options else {}
    kernel("kept_gradient")(
        rows, state, kept, index=targets, offsets=torch.arange(n + 1), columns=columns,
        values=torch.zeros(n), g_logp=mass, g_entropy=mass, **lse,
    )  # fmt: skip
    kernel("row_sums")(torch.arange(n + 1), torch.zeros(n), names=columns, out=torch.zeros(n))


def _kernels(room: str) -> Callable[[str], Callable[..., None]]:
    """The launcher of a file of a room."""
    return lambda name: getattr(import_module(f"{room}.{name}"), name)


# The others see no logits, or float32 ones alone.
BY_DTYPE = (
    "pieces", "fold", "backward", "moments", "mix", "gradient", "block_sums", "draw",
    "set_logits", "set_tile", "sparse_multiply", "capture",
)  # fmt: skip


def builds(target: str) -> list[Build]:
    """Every kernel and configuration, each code once, named after its first use."""
    found: dict[str, Build] = {}
    for dtype in DTYPES:
        for configuration, options in CONFIGURATIONS.items():
            with compiling(target) as launched:
                # statistics beside the logp are of one side alone, and noise is of a teacher's
                beside, noisy = "extras" not in options or "chain" in options, "noise" in options
                given = 4, 8192, DTYPES[dtype], options
                if not noisy:
                    call(*given)
                    call_selection(*given)
                if beside:
                    call_pair(*given)
                if beside and not noisy:
                    call_draw(*given)
                    call_topk(*given)
                call_sets(*given)
            for kernel, code in launched:
                name = f"{dtype}, {configuration}" if kernel in BY_DTYPE else configuration
                found.setdefault(code.hash, Build(kernel, name, target, code))
    for name, run in token_calls().items():
        with compiling(target) as launched:
            run()
        for kernel, code in launched:
            found.setdefault(code.hash, Build(kernel, name, target, code))
    return sorted(found.values(), key=lambda build: build.kernel)


def measure(target: str) -> list[Measured]:
    return [Measured(b.kernel, b.configuration, target, resources(b)) for b in builds(target)]


def resources(build: Build) -> Resources:
    read = _of_cubin if build.target.startswith("sm_") else _of_amdgcn
    return read(build.code)


def _of_cubin(code: Any) -> Resources:
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(code.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    value = {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", text)}
    # The kernels have no local arrays, so all of a thread's stack is spilled registers.
    # Triton asks for shared memory at launch: the file knows nothing of it.
    return Resources(str(value["REG"]), value["STACK"] + value["LOCAL"], code.metadata.shared)


def _of_amdgcn(code: Any) -> Resources:
    def value(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s*(\d+)", code.asm["amdgcn"])[-1])

    spilled = value("vgpr_spill_count") + value("sgpr_spill_count")
    spilled += value("private_segment_fixed_size")
    registers = f"{value('vgpr_count')}+{value('sgpr_count')}"
    return Resources(
        registers, spilled, max(value("group_segment_fixed_size"), code.metadata.shared)
    )
