"""A micro-batch of verl's actor in its FSDP2 engine: log-probs, loss and backward.

"verl" is the engine by logits, "fused" verl's own fused head, "head" verl's loss on this library's
head (`impl_backend=logitless`), "loss" this library's loss in one pass with it. Entropies are made
where a head makes them anyway: verl's default asks for none. The head is tied: verl's own fused
heads stop at an untied one, which FSDP2 has in a group of its own.
"""

from __future__ import annotations

import functools
import types
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.case import Call
from benchmarks.trainers.models import toy_model
from benchmarks.trainers.sizes import Sizes

NAME = "verl"
WAYS = {
    "verl": "verl, by logits",
    "fused": "verl, `impl_backend=torch`",
    "head": "`impl_backend=logitless`",
    "loss": "and `loss_mode=logitless/ppo_dual_clip`",
}
# verl's name of the head, and of the loss: PPO's clip with a second bound of 3
HEADS = {"verl": None, "fused": "torch", "head": "logitless", "loss": "logitless"}
LOSSES = {"loss": "logitless/ppo_dual_clip"}


def make_data(sizes: Sizes) -> Any:
    """As verl's trainer hands it over: responses of equal length, near the policy of now."""
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import left_right_2_no_padding

    g = torch.Generator().manual_seed(1)
    rows, shape = sizes.rows, (sizes.rows, sizes.length)
    prompts = torch.randint(2, sizes.vocab, (rows, sizes.prompt), generator=g)
    responses = torch.randint(2, sizes.vocab, shape, generator=g)
    ids = torch.cat((prompts, responses), dim=1)
    data = TensorDict(
        {
            "input_ids": ids,
            "prompts": prompts,
            "responses": responses,
            "attention_mask": torch.ones_like(ids),
            "position_ids": torch.arange(ids.shape[1]).expand_as(ids),
            "response_mask": torch.ones(shape, dtype=torch.int64),
            "advantages": torch.randn(rows, 1, generator=g).expand(shape).contiguous(),
            "old_log_probs": -torch.tensor(float(sizes.vocab)).log()
            + 0.1 * torch.randn(shape, generator=g),
        },
        batch_size=[rows],
    )
    data = left_right_2_no_padding(data)
    tu.assign_non_tensor(data, temperature=1.0)
    return data


def make_engine(path: Path, head: str | None) -> Any:
    """verl gives its own fused heads to the class of a model: here the model alone keeps it, for
    the others of the process are of that class."""
    from transformers import Qwen2ForCausalLM

    # its engine on a CPU is made there, and nowhere else
    from tests.plugins.verl.engines import engine

    kind: Any = Qwen2ForCausalLM
    own = kind.forward
    made = engine(path, head)
    if kind.forward is not own:
        made.module.forward = types.MethodType(kind.forward, made.module)
        kind.forward = own
    return made


def saved_engine(way: str, sizes: Sizes, folder: str) -> Any:
    path = Path(folder) / f"model_{sizes.vocab}_{sizes.hidden}"
    if not path.exists():
        toy_model(sizes.vocab, sizes.hidden, tied=True).save_pretrained(path)
    return make_engine(path, HEADS[way])


def call(way: str, sizes: Sizes, folder: str) -> Call:
    from tests.plugins.verl.engines import actor_config, ppo_loss, prepared

    made = saved_engine(way, sizes, folder)
    config = actor_config(LOSSES.get(way, "vanilla"))
    data = prepared(made, make_data(sizes), 1, calculate_entropy=False)
    loss = functools.partial(ppo_loss, config=config)

    def run(_: None) -> float:
        return float(sum(made.forward_backward_batch(data, loss)["loss"]))

    return Call(run, prepare=lambda: made.module.zero_grad(set_to_none=True))
