"""Where the tokens of responses stand in verl's packed sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import logitless as ll

# More than any response is long.
LONGEST = 1 << 32
# The name under which an optimizer batch's sequences carry their numbers.
NUMBERS = "logitless_numbers"
# What a loss reads of a batch, and where responses lie in it.
FIELDS = (
    "input_ids", "prompts", "responses", "attention_mask", "max_response_len", "response_mask",
    "advantages", "old_log_probs", "ref_log_prob", "rollout_log_probs", "rollout_is_weights",
    "batch_num_tokens", "global_batch_size", "dp_size", NUMBERS,
)  # fmt: skip


def loss_data(data: Any, device: Any) -> Any:
    """What a loss reads of a batch, there: images stay where they are."""
    return data.select(*FIELDS, strict=False).to(device)


class Responses:
    """The responses of sequences that stand one after the other, prompt and response each.

    The state before a token scores it: rows lie one to the left of their tokens.
    """

    def __init__(self, data: Any) -> None:
        ids, responses = data["input_ids"], data["responses"]
        self.offsets: Tensor = ids.offsets()
        if responses.is_nested:
            self.lengths = responses.offsets().diff()
            longest = int(self.lengths.max())
        else:
            after = data["attention_mask"][:, data["prompts"].shape[1] :]
            self.lengths, longest = after.sum(dim=1), responses.shape[1]
        self.width = int(plain(data, "max_response_len", longest))
        places = torch.arange(int(self.offsets[-1]), device=self.offsets.device)
        # of each packed token, the sequence that it belongs to
        self.sequence = torch.searchsorted(self.offsets[1:], places, right=True)
        ends = self.offsets[1:][self.sequence] - 1
        # [sum of lengths]
        self.rows = (places >= ends - self.lengths[self.sequence]) & (places < ends)

    def placed(self, x: Any) -> Any:  # [sum of lengths]
        """[B, width] of responses, in their rows; 0 elsewhere."""
        if x is None:
            return None
        inside = torch.arange(self.width, device=x.device) < self.lengths[:, None]
        return x.new_zeros(len(self.rows)).masked_scatter(self.rows, x[inside])

    def padded(self, data: Any, name: str) -> Any:  # [B, width]
        """A field of the responses; None where the data have none."""
        x = data.get(name, None)
        if x is None or not isinstance(x, Tensor):
            return None
        if x.is_nested:
            x = torch.nested.to_padded_tensor(x, 0.0)
        return nn.functional.pad(x, (0, self.width - x.shape[1]))

    def of_tokens(self, x: Tensor) -> Tensor:  # [B, width]
        """What a model gave for every packed token, of the responses."""
        values = x.values() if x.is_nested else x
        inside = torch.arange(self.width, device=values.device) < self.lengths[:, None]
        out = values.new_zeros(inside.shape)
        return out.masked_scatter(inside, values[self.rows])

    def token_ids(self, data: Any) -> Tensor:  # [B, width] int64
        positions = torch.arange(self.width, device=self.offsets.device)
        ids: Tensor = ll.token_ids(data[NUMBERS].to(positions.device)[:, None], positions, LONGEST)
        return ids


def plain(data: Any, name: str, default: Any) -> Any:
    """A field of the data that is one for all of them."""
    x = data.get(name, None)
    x = x.data if type(x).__name__ == "NonTensorData" else x
    return default if x is None else x
