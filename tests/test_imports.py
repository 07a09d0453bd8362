"""Who may import whom, read from the sources: an import inside a function counts too."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "python" / "logitless"

# A room of python/logitless, what it is for, and the rooms that it may import beside itself. A room
# is a folder or a file; "ops" are the files of that folder itself, a public function each. "public"
# is what `logitless` exports.
ROOMS = """
_core           stubs of the compiled core
_version        the version, read by the build
tables          tables of names as text and Markdown, for commands and pages
reference       the oracle: NumPy float64, no tricks
kernels         Triton kernels
inputs          what a call is given, checked once
backends        one record per device: numbers of the machine, groups of kernels
                _core kernels inputs
loss            policy losses
loss.spec       a policy loss as data: axes, presets, controllers
                inputs tables
loss.evaluate   a policy loss over the tokens of a call
                inputs backends loss.spec
ops.torch_op    registers an op with torch.library from typed arguments
                backends
ops.symbols     sizes that torch.compile leaves open
ops.sharding    a vocabulary that is spread over ranks
                inputs backends ops.symbols
ops.rows        given logits: the torch op and its results
                inputs backends ops.torch_op ops.sharding
ops.losses      the torch op of a policy loss
                inputs backends loss.spec loss.evaluate ops.torch_op ops.symbols
ops.head        hidden x weight: plan, tiles, products, torch ops
                inputs backends loss.evaluate ops.torch_op ops.symbols ops.sharding ops.rows
                ops.losses
ops.sampling    tokens drawn while tiles of logits stream by
                inputs backends ops.torch_op ops.symbols ops.sharding ops.rows ops.head
ops.teacher     a student's distributions beside a teacher's, of given logits or of two heads
                inputs backends ops.torch_op ops.symbols ops.sharding ops.rows ops.head
ops             the public functions: parse, plan, run
                _core inputs backends loss.spec loss.evaluate
                ops.torch_op ops.sharding ops.rows ops.losses ops.head ops.sampling ops.teacher
diagnostics     programs over the public functions: check a head, warm up a device
                inputs ops ops.head
entropy         covariance and the entropy law
                inputs backends loss.evaluate
advantages      from rewards to advantages: pure functions, and their table
                inputs backends tables
preference      from log-probs to preference losses: pure functions, and their table
                inputs backends tables advantages
__init__        the public names, loaded on first use
                _version inputs backends loss.spec loss.evaluate ops ops.rows ops.head ops.sharding
                ops.teacher
                entropy advantages preference
                diagnostics integrations.transformers
integrations    other people's trainers
                public
integrations.transformers  the head of a Hugging Face model, as a weight and options
                inputs diagnostics
integrations.head_arrays  weight and bias of a model's head as they are now
                public integrations.transformers
integrations.trl  TRL's trainers with this library's head, and a GRPO trainer with its losses
                public integrations.head_arrays integrations.transformers
integrations.verl  verl with this library's losses, head and batch-exact selection
                public integrations.head_arrays integrations.transformers
integrations.verl_plugin  what verl loads by itself
                integrations.verl
rl              the trainer
rl.recipe       what a run depends on: its schema, read from YAML, and its losses
                public tables
rl.tracking     what a run records and says: its folder, metrics, times, checkpoints, progress
                _version
rl.policy       the causal LM that is trained: body, head, tokenizer
                public integrations.transformers rl.recipe rl.tracking
rl.rollout      sampled answers as data, and the sampler
                public rl.policy rl.tracking
rl.model_pair   a model beside its reference: log-probs of the same answers under both
                public rl.policy rl.rollout
rl.tasks        where prompts come from, and the reward of an answer
                public rl.recipe rl.model_pair
rl.engine       trains a policy on the machine at hand, and alone knows devices and ranks
                public rl.recipe rl.policy rl.rollout rl.tracking
rl.update       how rollouts and examples change the weights
                public rl.recipe rl.policy rl.rollout rl.engine rl.tracking
rl.answers      answers to prompts: sampled and scored
                rl.recipe rl.tasks rl.policy rl.rollout rl.engine rl.tracking
rl.experience   the answers that a step trains on, and their worth
                public rl.recipe rl.tasks rl.policy rl.rollout rl.engine rl.update rl.answers
                rl.tracking
rl.answer_rows  the lines that a step's answers leave
                rl.experience rl.tracking
rl.diversity    how varied answers are, and what they have lost and gained since the start
rl.evaluation   how good a policy is on prompts that it is not trained on
                rl.diversity rl.recipe rl.tasks rl.policy rl.engine rl.answers rl.experience
                rl.tracking
rl.ask_policy   answers of a policy to one prompt, as its run asks for them
                rl.policy rl.recipe rl.rollout rl.tracking
rl.train        the loop of one method, top to bottom
                public rl.recipe rl.tasks rl.policy rl.engine rl.experience rl.answer_rows
                rl.evaluation rl.update rl.tracking
rl.report       what a run leaves to read
                public rl.tracking
rl.demo         several methods from one start, and full logits beside them
                public rl.recipe rl.tasks rl.policy rl.rollout rl.engine rl.answers rl.experience
                rl.evaluation rl.update rl.tracking rl.train rl.report
cli_arguments   what the command line takes
                _version
cli             the command line
                _core _version backends ops public integrations.transformers cli_arguments
                rl.recipe rl.policy rl.ask_policy rl.evaluation rl.tracking rl.demo
__main__        python -m logitless
                cli
"""


def rooms(table: str) -> dict[str, tuple[str, set[str]]]:
    """Room -> (purpose, the rooms that it may import)."""
    room, found = "", dict[str, tuple[str, set[str]]]()
    for line in table.strip().splitlines():
        if line.startswith(" "):
            found[room][1].update(line.split())
        else:
            room, purpose = line.split(maxsplit=1)
            found[room] = (purpose, set())
    return found


MAY_IMPORT = {room: allowed for room, (_, allowed) in rooms(ROOMS).items()}
# The layers that must stay free of other people's packages, and what they may have.
THIRD_PARTY = {
    "__init__": set(),
    "_core": set(),
    "_version": set(),
    "advantages": {"numpy", "torch"},
    "backends": {"numpy", "torch"},
    "cli": set(),
    "diagnostics": {"torch"},
    "entropy": {"numpy", "torch"},
    "inputs": {"numpy", "torch"},
    "kernels": {"torch", "triton"},
    "loss": {"numpy", "torch"},
    "ops": {"numpy", "torch"},
    "preference": {"numpy", "torch"},
    "reference": {"numpy"},
}


def layer_of(path: Path) -> str:
    """The room of a file."""
    if path.is_relative_to(ROOT / "kernels"):
        return "kernels"
    return room_of(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(parts: tuple[str, ...]) -> str:
    """("ops", "head", "plan") -> "ops.head"; what lies in no folder of ops is "ops"."""
    if parts == ():
        return "public"
    inner = ".".join(parts[:2])
    return inner if inner in MAY_IMPORT else parts[0]


def package_of(path: Path) -> str:
    """The dotted package a file lies in, which is what its relative imports start from."""
    of_package = path.is_relative_to(PACKAGE)
    folder = path.relative_to(PACKAGE if of_package else ROOT).parent.parts
    return ".".join(("logitless", *folder))


def modules(source: str, package: str) -> Iterator[str]:
    """Every absolute dotted name that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            # `from logitless import x` may name a layer as well as a public name.
            if module == "logitless":
                yield from (f"logitless.{name.name}" for name in node.names)
            else:
                yield module


def imported_layer(module: str) -> str:
    """`logitless.ops.head.sparse` -> ops.head; `logitless` and its exported names -> public."""
    room = room_of(tuple(module.split(".")[1:]))
    return room if room in MAY_IMPORT else "public"


SOURCES = sorted(
    [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi"), *(ROOT / "kernels").rglob("*.py")]
)
ids = [str(path.relative_to(ROOT)) for path in SOURCES]


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    layer = layer_of(path)
    assert layer in MAY_IMPORT, f"{layer}: say in MAY_IMPORT what this new layer may import"
    for module in modules(path.read_text(), package_of(path)):
        top = module.split(".")[0]
        if top == "logitless":
            target = imported_layer(module)
            allowed = target == layer or target in MAY_IMPORT[layer]
            assert allowed, f"{layer} may import {sorted(MAY_IMPORT[layer])}, not {module}"
        elif top not in sys.stdlib_module_names and layer.split(".")[0] in THIRD_PARTY:
            assert top in THIRD_PARTY[layer.split(".")[0]], f"{layer} may not import {module}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import logitless.rl.train", ["logitless.rl.train"]),
        ("def f():\n    from logitless import cli, plan", ["logitless.cli", "logitless.plan"]),
        ("from ..rl import step", ["logitless.rl"]),
        ("from .. import rl", ["logitless.rl"]),
        ("from .plan import Plan", ["logitless.ops.plan"]),
        ("if TYPE_CHECKING:\n    import torch.nn as nn", ["torch.nn"]),
    ],
)
def test_every_way_of_importing_is_seen(source: str, expected: list[str]) -> None:
    assert list(modules(source, "logitless.ops")) == expected


def test_a_public_name_is_told_from_a_layer() -> None:
    assert imported_layer("logitless.token_stats") == imported_layer("logitless") == "public"
    assert imported_layer("logitless.rl.train") == "rl.train"


# Room of csrc -> the rooms whose headers it may include beside its own. A room is a folder of csrc,
# or of csrc/cpu and csrc/cuda, which have rooms of the same names.
DEVICE_ROOMS = {
    "runtime": set(),
    "rows": {"runtime"},
    "topk": {"runtime", "rows"},
    "sampling": {"runtime", "rows", "topk"},
    "divergence": {"runtime", "rows"},
    "tokens": {"runtime", "rows"},
}
ALL_ROOMS = {f"{device}/{room}" for device in ("cpu", "cuda") for room in DEVICE_ROOMS}
MAY_INCLUDE = {
    "core": set(),
    # absent.cpp stands in for every room
    "cuda": {"core"} | {room for room in ALL_ROOMS if room.startswith("cuda/")},
    "bindings": {"core", *ALL_ROOMS},
    **{
        f"{device}/{room}": {"core"} | {f"{device}/{other}" for other in others}
        for device in ("cpu", "cuda")
        for room, others in DEVICE_ROOMS.items()
    },
}
CSRC = sorted(p for p in (ROOT / "csrc").rglob("*.*") if p.is_file())


def csrc_room(path: Path) -> str:
    top, *folders = path.relative_to(ROOT / "csrc").parent.parts
    return "/".join((top, *folders[:1])) if top in ("cpu", "cuda") else top


@pytest.mark.parametrize("path", CSRC, ids=[str(path.relative_to(ROOT)) for path in CSRC])
def test_a_cpp_file_includes_only_what_its_room_may(path: Path) -> None:
    room = csrc_room(path)
    for kind, header in re.findall(
        r'^\s*#\s*include\s*([<"])([^>"]+)', path.read_text(), re.MULTILINE
    ):
        ours = path.parent / header if kind == '"' else ROOT / "csrc" / header
        if ours.exists():
            target = csrc_room(ours.resolve())
            allowed = target == room or target in MAY_INCLUDE[room]
            assert allowed, f"csrc/{room} may include {sorted(MAY_INCLUDE[room])}, not {header}"
        else:
            assert kind == "<", f"{header} is not there"
        if room != "bindings":
            assert not re.match(r"Python\.h|pybind11|torch|ATen|c10", header), header
        if room == "core":
            assert header not in ("iostream", "fstream", "cstdio"), "the core does no I/O"


def run_python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_importing_the_package_leaves_torch_alone() -> None:
    heavy = "{'torch', 'triton', 'transformers', 'matplotlib'}"
    assert run_python(f"import sys, logitless; print({heavy} & set(sys.modules))") == "set()"


def test_calls_on_numpy_arrays_leave_torch_alone() -> None:
    """A process that forks after them may start torch's threads in its children."""
    code = """
import sys
import numpy as np
import logitless as ll
logp, advantages, mask = -np.ones(4), np.arange(4.0), np.ones(4, bool)
more = {"token_ids": np.arange(4), "seed": 0, "step": 0}
ll.token_stats(np.zeros((3, 5)), np.zeros(3, np.int64))
ll.linear_token_stats(np.zeros((3, 5)), np.zeros((7, 5)), np.zeros(3, np.int64))
for name in ("ppo", "kl_cov", "gspo"):
    spec = ll.presets[name]
    batch = ll.batch_stats(logp, advantages, mask, spec, old_logp=logp,
                           cu_seqlens=np.array([0, 2, 4], np.int32), **more)
    ll.policy_loss(logp, logp, advantages, mask, spec, token_ids=more["token_ids"], batch=batch,
                   cu_seqlens=np.array([0, 2, 4], np.int32))
ll.covariance(logp, advantages, mask)
ll.rollout_weights(logp, logp, mask, ll.corrections["tis"])
ll.advantages.grpo(advantages, np.array([7, 7, 3, 3]))
ll.advantages.gae(logp[None], logp[None], mask[None])
half = (np.zeros((3, 5), np.float16), np.zeros((7, 5), np.float16))
ll.linear_token_stats(*half, np.zeros(3, np.int64))
ll.linear_divergence(*half, *half)
ll.plan(10, 8, 100)
print("torch" in sys.modules)
"""
    assert run_python(code) == "False"


def test_every_public_name_is_there() -> None:
    code = "import logitless as l; print([n for n in l.__all__ if not hasattr(l, n)])"
    assert run_python(code) == "[]"


# The rooms of benchmarks/ and of tests/, in the form of ROOMS.
TREES = {
    "benchmarks": """
harness    times, peaks and correctness of given calls: knows no op
cases      what is timed, of ours and of others
           harness
studies    programs that answer one question each
           harness cases
trainers   ./dev bench trainers: TRL's and verl's, as they are and with this library
           harness
gpu        ./dev gpu: builds, tests and measures on a GPU
           harness cases
compiled   registers and spills of compiled kernels
run        ./dev bench
           harness cases
""",
    "tests": """
support            what rooms share: cases, tolerances, plans, recipes, ranks, devices, fakes
simt               the emulator that runs CUDA kernels as C++
fuzz               seeded calls of every function of the core
                   simt
interpreter        Triton kernels in the interpreter, run by devices
                   support
reference          the oracle against finite differences
                   support
inputs             what a call refuses, and how it says so
                   support
backends           kernels of the CPU, memory, threads
                   support
bindings           the compiled core as Python sees it
                   support fuzz
cross              the row kernels on 64-bit Arm
rows               statistics of given logits
                   support
losses             policy losses: specs, formulas, selection, splits
                   support
head               hidden x weight: plans, tiles, one-pass, sparse rows
                   support
sampling           tokens drawn while tiles of logits stream by
                   support
teacher            a student beside its teacher
                   support
sharding           several ranks
                   support
entropy            covariance and the entropy law
                   support
advantages         from rewards to advantages
                   support
preference         losses of pairs and of single answers
                   support
torch_integration  autograd, autocast, compile, checkpointing
                   support
devices            kernels of a GPU: there, emulated, and their wiring
                   support simt
golden             numbers of verl and TRL
                   support
rl                 the trainer
                   support
integrations       other people's models and trainers
                   support
plugins            trainers that we plug into, in an environment of their own
                   support integrations
cli                the command line
                   support
benchmarks         benchmarks/
                   support
packaging          wheel and sdist
                   support
conftest           fixtures of all tests
                   support
test_imports       this file
                   support
""",
}
# benchmarks/ is checked from the day that it has rooms.
IN_ROOMS = {
    "benchmarks": (ROOT / "benchmarks" / "harness").is_dir(),
    "tests": True,
}
FILES = [
    path
    for tree in TREES
    if IN_ROOMS[tree]
    for path in sorted((ROOT / tree).rglob("*.py"))
    if path.parent != ROOT / tree or path.name != "__init__.py"
]


def imported(source: str, package: str) -> Iterator[str]:
    """Modules, and what is taken from them, which may be modules as well."""
    yield from modules(source, package)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = node.module or package
            yield from (f"{base}.{name.name}" for name in node.names)


def room_in(tree: str, module: str) -> str:
    """The room of `tests.head.test_plan` in "tests" is head; "" where the tree is another."""
    top, *inner = module.split(".")
    return inner[0] if top == tree and inner else ""


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_benchmarks_and_tests_import_only_what_their_rooms_may(path: Path) -> None:
    tree, *inner = path.relative_to(ROOT).with_suffix("").parts
    table = rooms(TREES[tree])
    room = inner[0]
    assert room in table, f"{tree}/{room}: say in TREES what this new room may import"
    for module in imported(path.read_text(), ".".join([tree, *inner[:-1]])):
        target = room_in(tree, module)
        assert target in {"", room, *table[room][1]}, f"{tree}/{room} may not import {module}"
        assert not re.match(r"tests\.(\w+\.)*test_", module), f"{module} is of a test module"
        assert (room, module.split(".")[0]) != ("harness", "logitless"), "harness knows no op"


@pytest.mark.parametrize("tree", TREES)
def test_rooms_form_no_circle(tree: str) -> None:
    table = rooms(TREES[tree])
    inner = {room: allowed for room, (_, allowed) in table.items()}
    assert set().union(*inner.values()) <= inner.keys()
    assert len(list(graphlib.TopologicalSorter(inner).static_order())) == len(inner)
