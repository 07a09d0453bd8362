"""The benchmark harness: inputs of the asked entropy, a gate that refuses, and a run end to end."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import run  # noqa: E402
from benchmarks.cases import targets  # noqa: E402
from benchmarks.cases.contenders import peers  # noqa: E402
from benchmarks.cases.contenders.ours import OURS  # noqa: E402
from benchmarks.cases.contenders.plain import EAGER, plain_rows  # noqa: E402
from benchmarks.cases.inputs import head_inputs, row_inputs, token_inputs  # noqa: E402
from benchmarks.cases.peaks import peak_of  # noqa: E402
from benchmarks.cases.registry import BY_NAME, OPS  # noqa: E402
from benchmarks.harness import comparison  # noqa: E402
from benchmarks.harness.case import Call, Case, Implementation  # noqa: E402
from benchmarks.harness.timing import Run, Timer, Times, interleave  # noqa: E402
from logitless import reference  # noqa: E402

SMALL = Case(rows=16, vocab=1000, width=32)


def compare(
    name: str, implementations: list[Implementation], case: Case = SMALL
) -> comparison.Comparison:
    return comparison.compare(BY_NAME[name], case, implementations, 2, Timer("cpu"))


@pytest.mark.parametrize("entropy", [0.3, 0.8, 3.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peaked_logits_have_the_asked_mean_entropy(entropy: float, dtype: str) -> None:
    x = row_inputs(Case(rows=256, vocab=2000, dtype=dtype, logits=str(entropy)))
    stats = reference.token_stats(x.logits.double().numpy(), x.targets.numpy())
    assert stats["entropy"].mean() == pytest.approx(entropy, rel=0.02)
    # Drawn from the policy: on average as surprising as its entropy says.
    assert -stats["logp"].mean() == pytest.approx(entropy, rel=0.5)
    # Unequal rows: some sure, some forks.
    assert stats["entropy"].std() > 0.3 * entropy


def test_peaked_head_has_the_asked_mean_entropy() -> None:
    x = head_inputs(Case(rows=64, vocab=2000, width=64, logits="0.8"))
    stats = reference.linear_token_stats(x.hidden.numpy(), x.weight.numpy(), x.targets.numpy())
    assert stats["entropy"].mean() == pytest.approx(0.8, rel=0.02)
    np.testing.assert_allclose(x.tokens.logp.numpy(), stats["logp"], atol=1e-4)


def test_an_entropy_out_of_reach_is_an_error() -> None:
    # log 8 = 2.08 nats is the most that 8 tokens can have.
    with pytest.raises(ValueError, match=r"mean entropy of 3\.0"):
        row_inputs(Case(rows=4, vocab=8, logits="3.0"))


def test_no_log_ratio_is_near_the_clip() -> None:
    x = token_inputs(Case(rows=1000))
    ratio = (x.logp - x.old_logp).exp()
    assert float((ratio - 0.8).abs().min()) > 0.05 and float((ratio - 1.2).abs().min()) > 0.05
    assert bool((ratio > 1.2).any()) and bool((ratio < 0.8).any())


@pytest.mark.parametrize("op", [op.name for op in OPS])
def test_every_op_runs_and_is_right(op: str) -> None:
    found = compare(op, [OURS, EAGER])
    assert not found.skipped
    assert {"logitless", "torch eager"} <= {m.name for m in found.measured}
    assert found.floor.kind == "floor"
    assert all(len(m.times.runs) == 2 and min(m.times.runs) > 0 for m in found.measured)
    assert all(m.errors for m in found.measured if m.kind != "floor")
    json.dumps(found.as_json())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["ours", "peer"])
def test_what_is_wrong_is_not_timed(kind: str, dtype: str) -> None:
    def wrong(logits: Any, targets: Any) -> Any:
        results = plain_rows(logits, targets)
        return {**results, "entropy": results["entropy"] * 1.5}

    found = compare(
        "forward",
        [EAGER, Implementation("wrong", kind, {"rows": lambda: wrong})],
        replace(SMALL, dtype=dtype),
    )
    assert "wrong" not in found
    assert "entropy is off" in found.skipped["wrong"]


@pytest.mark.parametrize(("row", "words"), [(13, "on all rows"), (15, "logp is off")])
def test_an_error_in_any_row_is_found(row: int, words: str) -> None:
    """The last row of the timed run is among those judged by the oracle, row 13 is not."""

    def wrong(logits: Any, targets: Any) -> Any:
        results = plain_rows(logits, targets)
        results["logp"][row] -= 5.0
        return results

    found = compare("forward", [EAGER, Implementation("wrong", "peer", {"rows": lambda: wrong})])
    assert words in found.skipped["wrong"]


def test_nan_is_not_right() -> None:
    def wrong(logits: Any, targets: Any) -> Any:
        return {"logp": torch.full((len(logits),), float("nan"))}

    found = compare("forward", [EAGER, Implementation("wrong", "peer", {"rows": lambda: wrong})])
    assert "logp is off by nan" in found.skipped["wrong"]


def test_an_absent_peer_is_skipped_by_name() -> None:
    absent = Implementation(
        "Nobody", "peer", {"rows": lambda: plain_rows}, package="no-such-package"
    )
    assert "--install-peers" in compare("forward", [EAGER, absent]).skipped["Nobody"]


def test_a_peer_that_raises_is_skipped_in_its_own_words() -> None:
    def broken(logits: Any, targets: Any) -> Any:
        raise RuntimeError("no kernel for this device")

    found = compare("forward", [EAGER, Implementation("Broken", "peer", {"rows": lambda: broken})])
    assert "no kernel for this device" in found.skipped["Broken"]


def test_our_own_failure_is_raised() -> None:
    def broken(logits: Any, targets: Any) -> Any:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        compare("forward", [EAGER, Implementation("logitless", "ours", {"rows": lambda: broken})])


def test_log_probs_alone_are_judged_by_their_own_gradient() -> None:
    def only_logp(hidden: Any, weight: Any, targets: Any) -> Any:
        return {"logp": plain_rows(hidden @ weight.t(), targets)["logp"]}

    alone = Implementation("alone", "peer", {"head": lambda: only_logp})
    found = compare("head forward+backward", [EAGER, alone])
    assert not found.skipped
    assert found["alone"].errors["dhidden"] < 1e-5


def test_turns_rotate_and_the_slow_run_less_often() -> None:
    order: list[str] = []

    def call(name: str) -> Call:
        return Call(lambda _: {}, lambda: order.append(name))

    interleave({name: call(name) for name in "abc"}, 3, Timer("cpu"))
    assert "".join(order) == "abcacbcab"

    class Slow(Timer):
        def __call__(self, call: Call) -> Any:
            call()
            return Run(2.0, 2.0)

    assert len(interleave({"a": call("a")}, 9, Slow("cpu"), enough=2.0)["a"].runs) == 3


def test_quotients_compare_runs_of_the_same_round() -> None:
    """Three rounds of four at a third of the speed: the quotient stays what it was."""
    speed = (1.0, 3.0, 3.0, 3.0)
    floor = Times(tuple(2.0 * x for x in speed), rounds=(0, 1, 2, 3))
    fast = Times((3.0, 9.0, 9.0), rounds=(0, 2, 3))
    assert fast.over(floor) == 1.5
    seldom = Times((3.0, 9.0), rounds=(0, 1))
    assert seldom.over(floor) == seldom.median / floor.median


def test_preparation_is_not_timed() -> None:
    call = Call(lambda _: {}, lambda: time.sleep(0.2))
    assert Timer("cpu")(call).seconds < 0.1


def test_targets_are_judged_where_they_are_promised() -> None:
    def measured(name: str, seconds: float, kind: str) -> comparison.Measured:
        return comparison.Measured(name, kind, Times((seconds,)))

    lines = (measured("max read", 1.0, "floor"), measured("logitless", 1.4, "ours"))
    at = Case(rows=targets.ROWS, vocab=targets.VOCAB)
    missed = comparison.Comparison(BY_NAME["forward"], at, lines, {})
    (line,) = targets.check_targets([missed])
    assert line.startswith("MISSED") and "1.40" in line
    assert not targets.check_targets([replace(missed, case=SMALL)])


@pytest.mark.slow
def test_plain_torch_takes_memory_that_in_place_does_not() -> None:
    case = Case(rows=64, vocab=50_000)
    logits = 64 * 50_000 * 4
    assert peak_of("forward+backward", case, "torch eager") > 2 * logits
    assert peak_of("forward+backward", case, "logitless, in place") < logits // 4


@pytest.mark.slow
def test_one_command_writes_table_json_and_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, picture = tmp_path / "deep" / "a.json", tmp_path / "a.png"
    arguments = (
        "rows --op forward --rows 8 --sizes 500,900 --dtypes bfloat16 --repeats 2 --peaks none"
    )
    files = ["--json", str(data), "--plot", str(picture)]
    monkeypatch.setattr(sys, "argv", ["run", *arguments.split(), *files])
    monkeypatch.setattr(run, "implementations", lambda _: [OURS, EAGER])
    run.main()
    content = json.loads(data.read_text())
    assert [m["setting"]["vocab"] for m in content["matches"]] == [500, 900]
    assert content["machine"]["threads"] == torch.get_num_threads()
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "forward  [8, 900] bfloat16" in printed and "logitless on float32" in printed


def test_every_peer_says_what_must_be_installed() -> None:
    lists = [Path(run.__file__).parent / name for name in ("peers.txt", "peers-no-deps.txt")]
    pinned = "\n".join(path.read_text() for path in lists)
    assert all(f"{peer.package}==" in pinned for peer in peers.PEERS)
