"""Which backend serves which tensors, and that device kernels get their device; without one."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import logitless as ll
from logitless import _core
from logitless.backends import cuda
from logitless.backends import registry as backends
from logitless.backends.base import TOKENS
from logitless.backends.eager import tokens_of
from logitless.backends.row_kernels import cuda_topk
from logitless.backends.row_kernels.device import current
from logitless.backends.token_kernels.cpu import CPU_TOKENS
from logitless.backends.token_kernels.torch_tokens import torch_tokens
from tests.support.device.devices import register
from tests.support.device.fakes import FakeCurrent, FakeRows


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the core says of its CUDA kernels, free to change; its devices have no objection."""
    told = {"compiled": True, "emulated": False, "reason": "", "architectures": "90"}
    monkeypatch.setitem(backends.BACKENDS, "cuda", cuda.backend(lambda: told, lambda index: ""))
    monkeypatch.delenv("LOGITLESS_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return told


def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "triton" else found(name)
    )


def test_losses_have_kernels_wherever_float64_is(
    build: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled ones, else Triton's, else torch's operations; the CPU's, on copies, where none
    of them computes."""

    def served() -> str:
        found = backends.first_with(TOKENS, "cuda:1")
        assert found is not None
        return found.name

    assert served() == "cuda"
    refusing = cuda.backend(lambda: build, lambda index: "no code for it")
    monkeypatch.setitem(backends.BACKENDS, "cuda", refusing)
    for name in ("triton", "torch"):
        assert served() == name
        tokens = backends.get(name).tokens
        assert tokens is not None and backends.token_kernels("cuda:1") is tokens("cuda:1")
        assert (tokens is tokens_of) == (name == "torch")
        without_triton(monkeypatch)
    assert not torch_tokens("cuda:1").on_host
    for device in ("cpu", "mps"):
        assert backends.token_kernels(device) is CPU_TOKENS


def test_auto_takes_the_best_that_serves(
    build: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = backends.choose
    assert choose("auto", "cpu", "float64") == "cpu"
    assert choose("auto", "cuda:1", "bfloat16") == "cuda"
    assert choose("auto", "cuda:1", "float64") == "torch"
    refusing = cuda.backend(lambda: build, lambda index: f"no code for device {index}")
    monkeypatch.setitem(backends.BACKENDS, "cuda", refusing)
    assert choose("auto", "cuda:1", "bfloat16") == "triton"
    without_triton(monkeypatch)
    with pytest.raises(
        NotImplementedError,
        match=r"bfloat16 tensors on cuda:1 \(cuda: no code for device 1; triton: triton is not "
        r"installed.*\); backend='torch'",
    ):
        choose("auto", "cuda:1", "bfloat16")
    with pytest.raises(NotImplementedError, match="no kernels serve float32 tensors on mps"):
        choose("auto", "mps", "float32")


@pytest.mark.parametrize(
    ("backend", "where", "dtype", "reason"),
    [
        ("cpu", "cuda:0", "float32", "it serves CPU tensors"),
        ("cuda", "cpu", "float32", "it serves CUDA tensors"),
        ("cuda", "cuda:0", "float64", "its kernels take float32, bfloat16, float16"),
        ("triton", "cpu", "float32", "TRITON_INTERPRET=1"),
        ("triton", "cuda:0", "float64", "its kernels take float32, bfloat16, float16"),
    ],
)
def test_a_named_backend_that_cannot_serve_says_why(
    build: dict[str, Any], backend: str, where: str, dtype: str, reason: str
) -> None:
    with pytest.raises(NotImplementedError) as error:
        backends.choose(backend, where, dtype)
    assert f"backend={backend!r} cannot serve {dtype} tensors on {where}" in str(error.value)
    assert reason in str(error.value)
    assert "backend='torch'" in str(error.value)


def test_what_no_backend_of_a_device_has_is_refused_by_its_sentence(
    build: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backends.choose_with("linear_sample", "cpu", "float32") == "cpu"
    for op in ("token_stats", "linear_sample"):
        assert backends.choose_with(op, "cuda:0", "bfloat16") == "cuda"
    refusing = cuda.backend(lambda: build, lambda index: f"no code for device {index}")
    monkeypatch.setitem(backends.BACKENDS, "cuda", refusing)
    assert backends.choose_with("linear_sample", "cuda:0", "float32") == "triton"
    assert backends.choose_with("tail_mass", "cuda:0", "float32") == "triton"
    keeping_none = replace(
        backends.get("triton"), topk=None, absent={"topk": "it keeps no entries"}
    )
    monkeypatch.setitem(backends.BACKENDS, "triton", keeping_none)
    with pytest.raises(NotImplementedError) as error:
        backends.choose_with("tail_mass", "cuda:0", "float32")
    start = "tail_mass of float32 tensors on cuda:0 is not built (triton: it keeps no entries"
    assert str(error.value).startswith(start)


def test_the_environment_names_a_backend(
    build: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGITLESS_BACKEND", "torch")
    assert backends.choose("auto", "cpu", "float32") == "torch"
    assert backends.choose("cpu", "cpu", "float32") == "cpu"
    monkeypatch.setenv("LOGITLESS_BACKEND", "cuda")
    with pytest.raises(NotImplementedError, match="LOGITLESS_BACKEND='cuda' cannot serve"):
        ll.token_stats(torch.randn(2, 5), torch.tensor([0, 1]))
    monkeypatch.setenv("LOGITLESS_BACKEND", "gpu")
    with pytest.raises(ValueError, match="LOGITLESS_BACKEND must be one of"):
        ll.token_stats(torch.randn(2, 5), torch.tensor([0, 1]))


def test_emulators_serve_cpu_tensors_only(
    build: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    build["emulated"] = True
    assert backends.choose("cuda", "cpu", "float32") == "cuda"
    assert "emulates CUDA" in backends.why_not("cuda", "cuda:0")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.choose("triton", "cpu", "float32") == "triton"
    build |= {"emulated": False, "compiled": False, "reason": "no nvcc"}
    assert backends.why_not("cuda", "cuda:0") == "the core was built without CUDA: no nvcc"


def test_numpy_arrays_have_one_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    z, t = np.zeros((2, 5), np.float32), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="token_stats: backend must be 'auto' or 'cpu' for NumPy"):
        ll.token_stats(z, t, backend="triton")
    with pytest.raises(ValueError, match="linear_token_stats: backend must be 'auto' or 'cpu'"):
        ll.linear_token_stats(z, z, t, backend="torch")
    monkeypatch.setenv("LOGITLESS_BACKEND", "triton")
    assert ll.token_stats(z, t).logp == pytest.approx(-np.log(5))


def test_ops_keep_to_the_device_of_their_inputs(build: dict[str, Any]) -> None:
    """What torch.compile sees of CUDA tensors, without one: fake tensors through every fake op."""
    with FakeTensorMode():
        h, w = (torch.empty(n, 8, device="cuda:0") for n in (4, 50))
        t = torch.zeros(4, dtype=torch.int64, device="cuda:0")
        for stats in (
            ll.token_stats(h @ w.T, t, extras=("argmax",)),
            ll.linear_token_stats(h, w, t, temperature=torch.ones(4, device="cuda:0")),
        ):
            for value in (*stats[:3], *stats.extras.values()):
                assert value.device == torch.device("cuda:0")
                assert value.shape == (4,)
        # autograd's own thread for a device does not start without one: the backward op itself.
        rows = (t, None, None, None, 1.0, 1.0, 0.0, "cuda")
        state = torch.empty(4, 8, dtype=torch.float64, device="cuda:0")
        gradient = torch.ops.logitless.row_stats_backward(
            h @ w.T, *rows, state, stats.logp.double(), None, None
        )
        assert gradient.device == torch.device("cuda:0")


def test_the_loss_keeps_to_the_device_of_its_inputs() -> None:
    with FakeTensorMode():
        logp, old = (torch.empty(4, device="cuda:0") for _ in range(2))
        mask, spec = torch.ones(4, dtype=torch.bool, device="cuda:0"), ll.presets["ppo"]
        out = ll.policy_loss(logp, old, old, mask, spec, entropy=logp)
        for value in (out.loss, *out.metrics.values()):
            assert value.device == torch.device("cuda:0") and value.shape == ()


def test_the_cuda_core_is_called_with_its_device_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch hands out DLPack capsules of the current device only."""
    fake, seen = FakeCurrent(monkeypatch), []

    class FakeCudaRows:
        workspace_bytes = staticmethod(lambda *_: 8)

        def __init__(self, **_: Any) -> None:
            seen.append(("rows", fake.now))

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **options: seen.append((name, fake.now))

    monkeypatch.setattr(torch, "empty", lambda *_, **options: options["device"])
    there = SimpleNamespace(device=torch.device("cuda:1"), shape=(2, 5), element_size=lambda: 2)
    core = cuda.CudaCore(
        SimpleNamespace(n=2, targets=there, shared={"n": 2}),  # type: ignore[arg-type]
        FakeCudaRows,
    )
    core.forward(there, None)
    core.finalize(None, 5, error=None)
    core.gradient(there, None, there)
    assert seen == [(name, 1) for name in ("rows", "forward", "finalize", "gradient")]
    assert fake.now == 0
    with current(torch.device("cpu")):
        assert fake.entered == 4


def test_kept_entries_are_bound_with_their_device_current(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, seen = FakeCurrent(monkeypatch), []
    monkeypatch.setattr(_core.topk, "CudaTopK", lambda **_: seen.append(fake.now))
    values = SimpleNamespace(device=torch.device("cuda:1"))
    cuda_topk.CudaTopK().bind(SimpleNamespace(arrays={}, values=values))  # type: ignore[arg-type]
    assert seen == [1] and fake.now == 0


def test_warm_calls_every_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way a kernel of the CUDA core is instantiated, and both sides of every argument."""
    ran: list[tuple[str, bool, bool, bool, bool]] = []

    class Recording(FakeRows):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            both = {"forward": self.core.forward, "gradient": self.core.gradient}
            for name, method in both.items():
                setattr(self, name, functools.partial(self.call, name, method, given))

        def call(
            self, name: str, method: Any, given: dict[str, Any], *args: Any, **options: Any
        ) -> None:
            there = (given[key] is not None for key in ("mask", "row_scale", "bias"))
            ran.append((name, *there, bool(options.get("extras", given["softcap"]))))
            method(*args, **options)

    register(monkeypatch, Recording)
    assert ll.warm("cpu", torch.bfloat16, vocab=40, backend="triton") == 32
    # mask, temperature, bias, and extras forward or softcap backward: each with each.
    assert len(set(ran)) == 2 * 2**4
    with pytest.raises(NotImplementedError, match="cannot serve"):
        ll.warm("cpu", torch.float64, backend="cuda")
