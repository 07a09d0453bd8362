"""A vLLM server that samples answers, by HTTP and the standard library alone.

Weights go to it through a folder that both see: `reload_weights`, a method of vLLM's workers that
its development endpoint calls (VLLM_SERVER_DEV_MODE=1).
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# A step's answers may take long; a server that is gone refuses at once.
SECONDS = 3600.0
# Without which a server does not say what was left to draw from.
MASK_OPTION = "--return-sampling-mask"
# What draws from a part of the softmax, and says of which ids it was.
MASKED = "/inference/v1/generate"


class Answer(NamedTuple):
    ids: list[int]  # with the end token
    logp: list[float]  # as the server has them
    # of each token the ids that were left to draw from; None: all
    kept: list[list[int]] | None = None


class Server:
    """One at an address like http://localhost:8000. ConnectionError where it does not answer, or
    answers with an error."""

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")

    def check(self, *, masks: bool = False) -> None:
        """ValueError where it serves no model, takes no weights, or with `masks` does not draw from
        a part of the softmax."""
        if not self._models():
            raise ValueError(f"{self._address}/v1/models names no model")
        # an endpoint that is there refuses a request that lacks all
        self._check("/collective_rpc", "takes no weights: start vLLM with VLLM_SERVER_DEV_MODE=1")
        if masks:
            self._check(MASKED, f"gives no sampling masks: start vLLM with {MASK_OPTION}")

    def _check(self, path: str, otherwise: str) -> None:
        try:
            self._post(path, {})
        except ConnectionError as error:
            refused = error.__cause__
            if isinstance(refused, urllib.error.HTTPError) and refused.code in (400, 422):
                return
            raise ValueError(f"{self._address}{path} {otherwise}; {error}") from error

    def answers(
        self,
        prompt: Sequence[int],
        n: int,
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        ends: Sequence[int],
        never: Sequence[int],
        truncation: Mapping[str, float] | None = None,
    ) -> list[Answer]:
        """`n` answers to the ids of a prompt, drawn at a temperature, 0 is greedy; each ends with
        one of `ends`, and has none of `never`. `truncation`: top_k, and top_p and min_p; without it
        the whole softmax is drawn from."""
        params: dict[str, Any] = {
            "n": n,
            "max_tokens": max_tokens,
            "temperature": temperature,
            # a model's generation config has others
            **{"top_p": 1.0, "top_k": 0, "min_p": 0.0, **(truncation or {})},
            "repetition_penalty": 1.0,
            "seed": seed,
            "stop_token_ids": list(ends),
            "logit_bias": {str(token): -100.0 for token in never},
            # of the drawn token alone
            "logprobs": 0,
        }
        model, ids = self._models()[0], list(prompt)
        if truncation:
            asked: dict[str, Any] = {"model": model, "token_ids": ids, "sampling_params": params}
            return [_masked(choice) for choice in _choices(self._post(MASKED, asked), n)]
        asked = {"model": model, "prompt": ids, **params, "return_token_ids": True}
        reply = self._post("/v1/completions", asked)
        return [_answer(choice, prompt) for choice in _choices(reply, n)]

    def reload(self, folder: Path) -> None:
        """Takes the weights in a folder, as `save_pretrained` writes them."""
        weights = {"weights_path": str(folder.absolute())}
        self._post("/collective_rpc", {"method": "reload_weights", "kwargs": weights})
        # keys and values of the old weights
        self._post("/reset_prefix_cache", {})

    def _models(self) -> list[str]:
        return [model["id"] for model in self._send("/v1/models", None)["data"]]

    def _post(self, path: str, content: Mapping[str, Any]) -> Any:
        return self._send(path, json.dumps(content).encode())

    def _send(self, path: str, content: bytes | None) -> Any:
        address = self._address + path
        headers = {"Content-Type": "application/json"}
        try:
            request = urllib.request.Request(address, content, headers)
            with urllib.request.urlopen(request, timeout=SECONDS) as reply:
                text = reply.read().decode()
        except urllib.error.HTTPError as error:
            said = " ".join(error.read().decode(errors="replace").split())[:200]
            raise ConnectionError(f"{address} answers {error.code}: {said}") from error
        except OSError as error:
            raise ConnectionError(f"{address} does not answer: {error}") from error
        return json.loads(text) if text else None


def _choices(reply: Any, n: int) -> list[Any]:
    choices = sorted(reply["choices"], key=lambda choice: choice["index"])
    if len(choices) != n:
        raise ValueError(f"the server must give {n} answers, got {len(choices)}")
    return choices


def _answer(choice: Mapping[str, Any], prompt: Sequence[int]) -> Answer:
    ids, logprobs = choice.get("token_ids"), choice.get("logprobs")
    if not ids or not logprobs:
        raise ValueError(
            "the server must give token_ids and logprobs of each answer (vLLM from 0.10.2 on), got "
            f"{', '.join(choice)}"
        )
    if choice["prompt_token_ids"] != list(prompt):
        raise ValueError("the server must answer the ids of the prompt as they are, got others")
    return _whole(Answer(ids, logprobs["token_logprobs"]))


def _masked(choice: Mapping[str, Any]) -> Answer:
    ids, logprobs, kept = (choice.get(x) for x in ("token_ids", "logprobs", "sampling_mask"))
    if not ids or not logprobs or not kept:
        raise ValueError(
            f"the server must give token_ids, logprobs and sampling_mask of each answer (vLLM from "
            f"0.28 on, started with {MASK_OPTION}), got {', '.join(choice)}"
        )
    return _whole(Answer(ids, [token["logprob"] for token in logprobs["content"]], kept))


def _whole(answer: Answer) -> Answer:
    """ValueError where something is not of every token, or a token not of those that were left."""
    ids, logp, kept = answer
    if len(logp) != len(ids):
        raise ValueError(f"the server must give a log-prob a token, got {len(logp)} of {len(ids)}")
    if kept is not None and len(kept) != len(ids):
        raise ValueError(
            f"the server must give a sampling mask a token, got {len(kept)} of {len(ids)}"
        )
    for token, left in zip(ids, kept or (), strict=False):
        if token not in left:
            raise ValueError(
                f"the server's sampling mask must have the drawn token, got {left[:20]} of {token}"
            )
    return answer
