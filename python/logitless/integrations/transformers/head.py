"""Public: the head of a Hugging Face model, as the head ops take it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from logitless.inputs.naming import public

if TYPE_CHECKING:
    from torch import Tensor


class Head(NamedTuple):
    """A head: logits = softcap(logit_scale * (hidden @ weight.T + bias)), `vocab` of them.

    `adapter`: peft's LoRA on it, as (A, B, scale) each, which adds scale * B A to the weight.
    """

    weight: Tensor  # [vocab, H]
    bias: Tensor | None  # [vocab]
    softcap: float | None
    logit_scale: float
    vocab: int
    adapter: tuple[Any, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of linear_token_stats, linear_policy_loss and linear_sample."""
        chain = {"bias": self.bias, "softcap": self.softcap, "logit_scale": self.logit_scale}
        return {**chain, "adapter": list(self.adapter)} if self.adapter else chain

    def hidden(self, model: Any, **inputs: Any) -> Tensor:  # [B, T, H]
        """What the head's product reads in `model(**inputs)`, without the product.

        Equivalent plain code::

            head = model.get_output_embeddings()
            head.register_forward_pre_hook(lambda module, args: states.append(args[0]))
            model(**inputs)

        where the head returns logits of no columns. The whole model runs, with its wrappers, so
        that DDP, FSDP2, accelerate and gradient checkpointing see the forward that they prepare a
        backward for. One thread at a time may run a model this way.

        inputs: what the model's forward takes, but for labels, of which it would make a loss.
            `logits_to_keep` keeps as many states as it would logits.
        """
        import torch

        from logitless.integrations.transformers.layer import (
            head_layer,
            in_place_of,
            logits_of,
            no_columns,
            only_call,
            unwrapped,
        )

        layer = head_layer(unwrapped(model))
        with in_place_of(layer, lambda hidden: no_columns(layer, hidden)) as calls:
            output = model(**inputs)
        states, _ = only_call(calls)
        if not states.requires_grad:
            return states
        # Engines await the backward at the model's outputs: the states go on from there.
        empty = logits_of(output).to(states.dtype).reshape(*states.shape[:-1], 0)
        return torch.cat((states, empty), dim=-1)


@public
def head_of(model: Any, **inputs: Any) -> Head:
    """The head of a Hugging Face model as weight, bias, softcap and logit_scale, measured on it.

    Equivalent plain code::

        lm_head = model.get_output_embeddings()
        head = Head(lm_head.weight, lm_head.bias, softcap, logit_scale, vocab)
        hidden = head.hidden(model, input_ids=ids)
        z = (hidden @ head.weight.T + head.bias) * head.logit_scale
        logits = head.softcap * tanh(z / head.softcap)     # without a softcap: z
        assert logits is model(input_ids=ids).logits but for rounding

    and then::

        stats = ll.linear_token_stats(hidden, head.weight, targets, **head.options)

    model: a Hugging Face model with a head, also inside peft, DDP, FSDP2 (all ranks make the call)
    or torch.compile, also one of several modalities whose head makes text.
    inputs: those of the three forwards of a few tokens that measure it, where random `input_ids`
    are not enough for the model.

    softcap and logit_scale are measured, not looked up: the head's output is replaced by known
    numbers, and what the model makes of them tells. `vocab` is the number of its logits; where the
    head has more rows than that, `weight` and `bias` are cut to it. `weight` is the model's own
    parameter otherwise, and shows its later updates in both cases. Under FSDP2 it is sharded, and
    `ll.gathered(head.weight)` is what the head ops take. The model's mode, hooks and the state of
    random numbers are as before; its forward runs in evaluation mode and without autocast.

    Raises TypeError for what is no such model. Raises ValueError, with the model's class and the
    numbers, for a head that the options do not explain: several heads, logits that are processed
    after the head in another way, an adapter on the head that is no plain LoRA of peft's (DoRA) or
    has dropout in training, a quantised weight.

    An active LoRA on the head is in `.options`, as `adapter`, with A and B the parameters that
    peft trains; a merged one is in the weight.
    """
    from logitless.integrations.transformers.probe import probe

    return probe(model, inputs).head
