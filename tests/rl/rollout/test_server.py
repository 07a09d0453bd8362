"""Answers of a server that speaks as vLLM's does, and the policy handed over to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import logitless as ll  # noqa: E402
from logitless import cli  # noqa: E402
from logitless.rl.demo.job import run  # noqa: E402
from logitless.rl.policy import make_policy  # noqa: E402
from logitless.rl.recipe import make_spec  # noqa: E402
from logitless.rl.rollout import Server, hidden_states, join_rollouts, sample_remotely  # noqa: E402
from logitless.rl.rollout.server import MASKED  # noqa: E402
from logitless.rl.tracking import metrics  # noqa: E402
from logitless.rl.tracking.stopwatch import Stopwatch  # noqa: E402
from logitless.rl.update.minibatch import old_policy, pack  # noqa: E402
from tests.support.recipes import tiny_file, tiny_recipe  # noqa: E402
from tests.support.rl.vllm_stand_in import VllmStandIn, running  # noqa: E402

OPTIONS = ("compare_repeats=0", "methods={grpo: {preset: grpo}}", "evaluation={every: 4, group: 2}")


@pytest.fixture
def stand_in() -> Iterator[VllmStandIn]:
    with running() as server:
        yield server


def served(stand_in: VllmStandIn, folder: Path) -> tuple[str, ...]:
    return (f"rollout.server={stand_in.address}", f"rollout.server_folder={folder / 'served'}")


def test_a_run_trains_on_what_the_server_draws(stand_in: VllmStandIn, tmp_path: Path) -> None:
    """Of every step the server has the weights: its log-probs are the policy's own."""
    recipe = tiny_recipe(tmp_path, *OPTIONS, *served(stand_in, tmp_path), "update.body_lr=1e-2")
    assert run(recipe, tmp_path / "run") == 0
    rows = metrics.read(tmp_path / "run" / "grpo" / "metrics.jsonl")
    assert len(rows) == 4
    assert max(row["server_logp_gap_max"] for row in rows) < 1e-4
    assert all(row["logp_gap"] < 1e-4 and row["seconds/rollout server"] > 0 for row in rows)
    # the policy has moved, and the server's with it
    assert len({row["entropy"] for row in rows}) == 4
    paths = [path for path, _ in stand_in.seen]
    # before each step, and before both evaluations
    assert paths.count("/collective_rpc") - 1 == paths.count("/reset_prefix_cache") == 4 + 2
    asked = [request for path, request in stand_in.seen if path == "/v1/completions"]
    seeds = [request["seed"] for request in asked if request["n"] == 8]
    assert len(seeds) == len(set(seeds)) == 4 * 4


def test_a_resumed_run_may_have_another_server(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for steps, resume in ((2, False), (4, True)):
        with running() as server:
            recipe = tiny_recipe(tmp_path, *OPTIONS, *served(server, tmp_path), f"steps={steps}")
            assert run(recipe, out, resume=resume) == 0
    rows = metrics.read(out / "grpo" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert max(row["server_logp_gap_max"] for row in rows) < 1e-4


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_rollout_is_the_policys(
    stand_in: VllmStandIn, tmp_path: Path, temperature: float
) -> None:
    policy = make_policy(tiny_recipe(tmp_path).model, seed=0)
    with torch.no_grad():
        policy.weight.mul_(30)
    policy.save(tmp_path / "served")
    server = Server(stand_in.address)
    server.check()
    server.reload(tmp_path / "served")
    prompts = policy.encode(["sum 8:", "a much longer prompt", "x"])

    def draw(**options: Any) -> Any:
        return sample_remotely(
            server, policy, prompts, group=5, max_new_tokens=6, temperature=temperature, seed=1,
            step=2, clock=Stopwatch(), **options,
        )  # fmt: skip

    rollout = draw()
    assert rollout.mask.shape[0] == 15
    # of the tokens that the tokenizer has: the head has 384 rows
    assert int(rollout.targets.max()) < len(policy.tokenizer) == 258
    stats = ll.linear_token_stats(
        hidden_states(policy, rollout), policy.weight, rollout.targets, temperature=temperature,
        **policy.head_options,
    )  # fmt: skip
    for found in (rollout.logp, rollout.rollout_logp):
        torch.testing.assert_close(found[rollout.mask], stats.logp, atol=2e-5, rtol=0)
        assert not found[~rollout.mask].any()
    torch.testing.assert_close(rollout.entropy[rollout.mask], stats.entropy, atol=2e-5, rtol=0)
    assert torch.equal(rollout.ids, draw().ids)
    greedy = draw(top_k=1)
    assert all(len({tuple(row) for row in some.tolist()}) == 1 for some in greedy.ids.split(5))
    # the parts of two ranks are the whole
    parts = [rollout.sequences(torch.arange(0, 5)), rollout.sequences(torch.arange(5, 15))]
    joined = join_rollouts(parts, policy.pad)
    assert torch.equal(joined.rollout_logp, rollout.rollout_logp)
    assert torch.equal(joined.ids, rollout.ids)


def test_masks_are_replayed(stand_in: VllmStandIn, tmp_path: Path) -> None:
    """What the server says was left to draw from is what training normalises over."""
    truncation = ("rollout.top_k=6", "rollout.top_p=0.8", "rollout.min_p=0.05")
    recipe = tiny_recipe(
        tmp_path, *OPTIONS, *served(stand_in, tmp_path), *truncation, "update.body_lr=1e-2"
    )
    assert run(recipe, tmp_path / "run") == 0
    rows = metrics.read(tmp_path / "run" / "grpo" / "metrics.jsonl")
    assert len(rows) == 4
    # within the sets: over the whole softmax both would be off by the mass that they hold
    assert max(row["server_logp_gap_max"] for row in rows) < 1e-4
    assert max(row["logp_gap"] for row in rows) < 1e-4
    asked = [request for path, request in stand_in.seen if path == MASKED and request]
    params = [request["sampling_params"] for request in asked]
    assert {(x["top_k"], x["top_p"], x["min_p"]) for x in params} == {(6, 0.8, 0.05)}
    # greedy answers of the evaluations, which have no mask
    greedy = [request for path, request in stand_in.seen if path == "/v1/completions"]
    assert greedy and {request["temperature"] for request in greedy} == {0.0}


def test_a_masked_rollout_is_the_policys(stand_in: VllmStandIn, tmp_path: Path) -> None:
    policy = make_policy(tiny_recipe(tmp_path).model, seed=0)
    with torch.no_grad():
        policy.weight.mul_(30)
    policy.save(tmp_path / "served")
    server = Server(stand_in.address)
    server.reload(tmp_path / "served")
    rollout = sample_remotely(
        server, policy, policy.encode(["sum 8:", "x"]), group=5, max_new_tokens=6, temperature=0.7,
        top_k=7, top_p=0.9, seed=1, step=2, clock=Stopwatch(),
    )  # fmt: skip
    assert rollout.kept is not None
    sizes = [len(ids) for ids in rollout.kept.lists()]
    assert len(sizes) == int(rollout.mask.sum()) and 1 < max(sizes) <= 7
    stats = ll.linear_token_stats(
        hidden_states(policy, rollout), policy.weight, rollout.targets, temperature=0.7,
        sampling_mask=rollout.kept, **policy.head_options,
    )  # fmt: skip
    for found in (rollout.logp, rollout.rollout_logp):
        torch.testing.assert_close(found[rollout.mask], stats.logp, atol=2e-5, rtol=0)
    torch.testing.assert_close(rollout.entropy[rollout.mask], stats.entropy, atol=2e-5, rtol=0)
    # the parts of two ranks are the whole
    parts = [rollout.sequences(torch.arange(0, 5)), rollout.sequences(torch.arange(5, 10))]
    joined = join_rollouts(parts, policy.pad)
    assert joined.kept.lists() == rollout.kept.lists()


def test_losses_compare_with_the_servers_log_probs(stand_in: VllmStandIn, tmp_path: Path) -> None:
    policy = make_policy(tiny_recipe(tmp_path).model, seed=0)
    policy.save(tmp_path / "served")
    server = Server(stand_in.address)
    server.reload(tmp_path / "served")
    with torch.no_grad():
        # the server is one step behind
        policy.weight.mul_(2)
    rollout = sample_remotely(
        server, policy, policy.encode(["sum 8:"]), group=4, max_new_tokens=5, temperature=1.0,
        seed=0, step=0, clock=Stopwatch(),
    )  # fmt: skip
    packed = pack(rollout, torch.ones(4), torch.arange(4))
    recipe = tiny_recipe(tmp_path, "methods={prime_rl: {preset: prime_rl}}")
    spec = make_spec("prime_rl", recipe.methods["prime_rl"], 4)
    assert "rollout_logp" in spec.needs
    given = old_policy(packed, spec)["rollout_logp"]
    assert torch.equal(given, rollout.rollout_logp[rollout.mask])
    assert float((given - packed.old_logp).abs().max()) > 1e-3


def spoilt(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def spoil(response: dict[str, Any]) -> dict[str, Any]:
        change(response)
        return response

    return spoil


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "one answer less": (lambda r: r["choices"].pop(), "must give 3 answers, got 2"),
    "no ids": (lambda r: r["choices"][1].update(token_ids=None), "must give token_ids"),
    "no log-probs": (lambda r: r["choices"][1].update(logprobs=None), "must give token_ids"),
    "an old server": (lambda r: r["choices"][0].pop("token_ids"), r"from 0\.10\.2 on"),
    "another prompt": (
        lambda r: r["choices"][2].update(prompt_token_ids=[1]), "ids of the prompt as they are"
    ),
    "a log-prob less": (
        lambda r: r["choices"][2]["logprobs"]["token_logprobs"].pop(), "a log-prob a token"
    ),
}  # fmt: skip


MASK_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no mask": (lambda r: r["choices"][1].pop("sampling_mask"), "from 0.28 on, started with --ret"),
    "no log-probs": (lambda r: r["choices"][1].update(logprobs=None), "must give token_ids"),
    "a set less": (lambda r: r["choices"][0]["sampling_mask"].pop(), "a sampling mask a token"),
    "a log-prob less": (
        lambda r: r["choices"][0]["logprobs"]["content"].pop(), "a log-prob a token"
    ),
    "a token outside": (
        lambda r: r["choices"][2]["sampling_mask"].__setitem__(0, [500]), r"got \[500\] of \d+"
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "masks"), [*((x, False) for x in FAULTS), *((x, True) for x in MASK_FAULTS)]
)
def test_a_response_that_lacks_something_is_refused(
    stand_in: VllmStandIn, tmp_path: Path, fault: str, masks: bool
) -> None:
    make_policy(tiny_recipe(tmp_path).model, seed=0).save(tmp_path / "served")
    server = Server(stand_in.address)
    server.reload(tmp_path / "served")

    def ask() -> Any:
        return server.answers(
            [65, 66], 3, max_tokens=4, temperature=1.0, seed=0, ends=[3], never=[],
            truncation={"top_k": 5} if masks else None,
        )  # fmt: skip

    change, message = (MASK_FAULTS if masks else FAULTS)[fault]
    assert len(ask()) == 3
    stand_in.spoil = spoilt(change)
    with pytest.raises(ValueError, match=message):
        ask()
    # they come in the order of their numbers
    stand_in.spoil = spoilt(lambda response: response["choices"].reverse())
    backwards = ask()
    stand_in.spoil = lambda response: response
    assert backwards == ask()


def test_what_cannot_work_is_refused_before_anything_is_written(
    stand_in: VllmStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*overrides: str) -> str:
        out = tmp_path / "run"
        arguments = ["train", str(tiny_file(tmp_path)), *overrides, "--out", str(out)]
        assert cli.main(arguments) != 0
        assert not out.exists()
        return capsys.readouterr().err

    good = served(stand_in, tmp_path)
    assert "need each other" in refused(good[0])
    message = "'rollout.top_k' must be at least 2 with rollout.server, rollout.top_p"
    assert message in refused(*good, "rollout.top_p=0.9")
    assert "at least 2 with rollout.server, rollout.top_k" in refused(*good, "rollout.top_k=1")
    stand_in.masks = False
    assert "start vLLM with --return-sampling-mask" in refused(*good, "rollout.top_k=5")
    stand_in.masks = True
    assert "lora.rank" in refused(*good, "lora.rank=4", "model={path: somewhere}", "warmup.steps=0")
    assert "must begin with http" in refused("rollout.server=localhost", good[1])
    stand_in.dev_mode = False
    assert "VLLM_SERVER_DEV_MODE=1" in refused(*good)
    nobody = "rollout.server=http://127.0.0.1:9"
    assert "127.0.0.1:9/v1/models does not answer" in refused(nobody, good[1])


def test_an_error_of_the_server_is_its_own_words(stand_in: VllmStandIn) -> None:
    server = Server(stand_in.address)
    with pytest.raises(ConnectionError, match=r"answers 404: .*The model does not exist"):
        server.answers([1], 1, max_tokens=1, temperature=1.0, seed=0, ends=[], never=[])
