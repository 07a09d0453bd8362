"""One of two gloo ranks: gradients, errors and checkpoints of a model that is spread over them,
beside those of a whole one. Run by test_shards.py."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PhiConfig

from logitless.rl.engine import LocalEngine, make_engine, own_parts, ranks, spread
from logitless.rl.policy import Policy, as_policy, load_policy, make_tokenizer
from logitless.rl.recipe import LossRecipe, Recipe, load_recipe, make_spec
from logitless.rl.rollout import Cut, Rollout, sample
from logitless.rl.tracking.stopwatch import Stopwatch
from logitless.rl.update import batch_options, loss_backward, pack

SIZES = {
    "vocab_size": 384, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
# A head of its own, one that is the embedding, and one with a bias and an odd number of rows.
MODELS: dict[str, Any] = {
    "own": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "bias": PhiConfig(**{**SIZES, "vocab_size": 401}, tie_word_embeddings=False),
}
SPEC, ADVANTAGES, ALL = make_spec("ppo", LossRecipe("ppo")), torch.linspace(-2, 2, 8), range(8)


def make(kind: str) -> Policy:
    torch.manual_seed(0)
    return as_policy(AutoModelForCausalLM.from_config(MODELS[kind]), make_tokenizer("bytes"))


def draw(policy: Policy) -> Rollout:
    return sample(
        policy, policy.encode(["sum 8:", "sum 10:"]), group=4, max_new_tokens=4, temperature=1.0,
        seed=0, step=0, clock=Stopwatch(),
    )  # fmt: skip


def backward(engine: LocalEngine, rollout: Rollout, own: list[int], recipe: Recipe) -> None:
    """Of some sequences, with the normaliser of all."""
    everything = pack(rollout, ADVANTAGES, torch.tensor(ALL))
    shared = batch_options(everything, SPEC, 0, 0)
    if own:
        packed = pack(rollout, ADVANTAGES, torch.tensor(own))
        loss_backward(engine, packed, SPEC, recipe, shared, Stopwatch())
    else:
        engine.idle()


def by_tokens(engine: LocalEngine, rollout: Rollout) -> list[list[list[int]]]:
    """Of each rank its parts."""
    parts = own_parts(engine.policy, rollout, torch.tensor(ALL), Cut(tokens=20))
    found = ranks.each(lambda: [part.tolist() for part in parts])
    assert sorted(i for parts in found for part in parts for i in part) == list(ALL)
    assert len(found[0]) == len(found[1])
    assert found[0].count([]) > found[1].count([]) == 0
    return found


def whole(tensor: Any) -> Tensor:
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


def check(kind: str, recipe: Recipe, folder: Path) -> None:
    rank, expected = ranks.number(), make(kind)
    rollout = draw(expected)
    alone = LocalEngine(expected, recipe.update)
    policy = make(kind)
    if rank:
        # the first rank's weights count
        with torch.no_grad():
            policy.embedding.add_(1.0)
    policy = spread(policy, recipe.update)
    engine = make_engine(policy, recipe.update, 1, None)

    everything = sum(p.numel() for p in expected.model.parameters())
    held = ranks.each(lambda: sum(p.to_local().numel() for p in policy.model.parameters()))
    assert sum(held) == everything and max(held) < 0.52 * everything
    check_whole(engine, expected, rollout)

    # micro-batches of each rank: a half each, all on the last one, and a minibatch of two; by their
    # tokens the second rank, whose prompts are longer, has more
    for parts in (
        ([[0, 1, 2, 3]], [[4, 5, 6, 7]]),
        ([[]], [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ([[0], []], [[4], [1, 2, 3, 5, 6, 7]]),
        by_tokens(engine, rollout),
    ):
        backward(alone, rollout, list(ALL), recipe)
        for own in parts[rank]:
            backward(engine, rollout, own, recipe)
        engine._sum_gradients()
        pairs = list(zip(engine.parameters, alone.parameters, strict=True))
        for found, other in pairs:
            assert other.grad is not None and other.grad.any()
            torch.testing.assert_close(whole(found.grad), other.grad, atol=1e-6, rtol=1e-4)
        # the same optimizer step, of which the norm is told; no rank adds to the other's gradient
        for p in alone.parameters:
            assert p.grad is not None
            p.grad.div_(ranks.count())
        assert alone.step() == pytest.approx(engine.step(), rel=1e-5)
        for found, other in pairs:
            torch.testing.assert_close(whole(found), other, atol=1e-4, rtol=0)

    check_files(engine, folder / kind)
    check_error(engine, rollout, recipe)


def check_whole(engine: LocalEngine, expected: Policy, rollout: Rollout) -> None:
    """What ranks run in `whole` may differ."""
    with engine.whole() as now:
        assert torch.equal(now.weight, expected.weight) and not now.weight.requires_grad
        if ranks.number():
            assert torch.equal(draw(now).logp, rollout.logp)


def check_files(engine: LocalEngine, folder: Path) -> None:
    """A checkpoint is a whole model's, and comes back bit for bit."""
    ranks.first(partial(folder.mkdir, parents=True))
    engine.save(folder)
    ranks.first(partial(engine.policy.save_tokenizer, folder))
    saved = dict(load_policy(folder).model.named_parameters())
    before = {name: whole(p.detach()) for name, p in engine.policy.model.named_parameters()}
    assert saved.keys() == before.keys()
    assert all(torch.equal(saved[name], value) for name, value in before.items())
    moments = squares(engine)
    with torch.no_grad():
        for p in engine.parameters:
            p.mul_(2.0)
            engine._optimizer.state[p]["exp_avg_sq"].zero_()
    engine.load(folder)
    for name, p in engine.policy.model.named_parameters():
        assert torch.equal(whole(p.detach()), before[name]), name
    assert all(torch.equal(a, b) for a, b in zip(squares(engine), moments, strict=True))
    assert all(a.any() for a in moments)


def squares(engine: LocalEngine) -> list[Tensor]:
    """Of the gradients, as AdamW has them."""
    return [whole(engine._optimizer.state[p]["exp_avg_sq"]).clone() for p in engine.parameters]


def check_error(engine: LocalEngine, rollout: Rollout, recipe: Recipe) -> None:
    """One rank's loss fails: all know why, and none waits."""

    def loss(states: Tensor, policy: Policy) -> Any:
        raise ArithmeticError("no loss today")

    def work() -> None:
        if ranks.number():
            engine.forward_backward(rollout, loss, Stopwatch())
        else:
            backward(engine, rollout, [0, 1], recipe)

    kind = ArithmeticError if ranks.number() else ranks.OtherRank
    with pytest.raises(kind, match="no loss today"):
        ranks.each(work)


def main() -> None:
    rank, count, store = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=rank, world_size=count)
    for kind in MODELS:
        for again in ("false", "true"):
            more = f"update.gradient_checkpointing={again}"
            recipe = load_recipe(sys.argv[4], ["update.embedding_lr=0.001", more])
            check(kind, recipe, store.parent / again)
    dist.barrier()
    dist.destroy_process_group()
    # gloo's threads may outlive the group, and at a normal exit abort the process once in a while
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
