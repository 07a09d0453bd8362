"""A server that speaks as vLLM's does: requests and responses of its completions, of tokens with
their sampling masks, and of the development endpoints that take weights. Behind it is the trainer's
own sampler.

The shapes are those of vllm/entrypoints/openai/completion/protocol.py, of the protocol of
/inference/v1/generate with docs/training/sampling_mask.md, and of the routers beside them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from logitless.rl.policy import Policy, load_policy
from logitless.rl.rollout import Rollout, sample
from logitless.rl.tracking.stopwatch import Stopwatch

MODEL = "the-policy"
# The fields of a CompletionRequest that this one knows: others are an error here, not in vLLM.
FIELDS = {
    "model": str, "prompt": list, "n": int, "max_tokens": int, "temperature": float, "top_p": float,
    "top_k": int, "min_p": float, "repetition_penalty": float, "seed": int, "stop_token_ids": list,
    "logit_bias": dict, "logprobs": int, "return_token_ids": bool,
}  # fmt: skip
# What a model's generation config may set, where a request does not.
DEFAULTS = {"top_p": 0.5, "top_k": 3, "min_p": 0.3, "repetition_penalty": 1.2}


class VllmStandIn:
    """`address`, and what it has been asked: `seen` are (path, content)."""

    def __init__(self) -> None:
        self.policy: Policy | None = None
        self.seen: list[tuple[str, Any]] = []
        self.address = ""
        # one request at a time: a policy is no engine
        self.lock = threading.Lock()
        # endpoints that need VLLM_SERVER_DEV_MODE=1
        self.dev_mode = True
        # the endpoint of --return-sampling-mask
        self.masks = True
        # a fault of a server, for the tests: changes a response
        self.spoil: Callable[[Any], Any] = lambda response: response

    def draw(self, prompt: list[int], params: dict[str, Any]) -> Rollout:
        assert self.policy is not None
        bias = torch.zeros(len(self.policy.weight))
        for token, value in params.get("logit_bias", {}).items():
            bias[int(token)] = value
        greedy = params["temperature"] == 0
        truncation = {
            name: params[name]
            for name, none in {"top_p": 1.0, "top_k": 0, "min_p": 0.0}.items()
            if params[name] != none
        }
        return sample(
            replace(self.policy, padding=bias),
            [prompt],
            group=params["n"],
            max_new_tokens=params["max_tokens"],
            temperature=1.0 if greedy else params["temperature"],
            seed=params["seed"],
            step=0,
            clock=Stopwatch(),
            **({"top_k": 1} if greedy else truncation),
        )

    def generate(self, request: dict[str, Any]) -> tuple[int, Any]:
        """Tokens in, tokens out, and what was left to draw each from: vLLM's GenerateRequest."""
        if not {"token_ids", "sampling_params"} <= set(request):
            return 422, {"detail": "Field required"}
        params = request["sampling_params"]
        assert set(params) <= set(FIELDS) and request["model"] == MODEL
        # what the engine asks for, where it returns masks
        assert params["temperature"] > 0 and params["top_k"] > 0
        rollout = self.draw(request["token_ids"], params)
        assert self.policy is not None and rollout.kept is not None
        sets = iter(rollout.kept.lists())
        choices = []
        for i, n in enumerate(rollout.lengths.tolist()):
            ids = rollout.ids[i, rollout.prompt_length :][:n].tolist()
            tokens = self.policy.tokenizer.convert_ids_to_tokens(ids)
            content = [
                {"token": token, "logprob": logp, "bytes": None, "top_logprobs": []}
                for token, logp in zip(tokens, rollout.logp[i, :n].tolist(), strict=True)
            ]
            stopped = ids[-1] in params["stop_token_ids"]
            choices.append({
                "index": i, "logprobs": {"content": content}, "token_ids": ids,
                "finish_reason": "stop" if stopped else "length", "routed_experts": None,
                "sampling_mask": [next(sets) for _ in ids],
            })  # fmt: skip
        response = {
            "request_id": "7", "choices": choices, "prompt_logprobs": None,
            "kv_transfer_params": None,
        }  # fmt: skip
        return 200, self.spoil(response)

    def completions(self, request: dict[str, Any]) -> tuple[int, Any]:
        for name, value in request.items():
            if not isinstance(value, FIELDS[name]):
                return 400, {"error": {"message": f"{name}: {value!r}", "code": 400}}
        if request["model"] != MODEL or self.policy is None:
            return 404, {"error": {"message": "The model does not exist.", "code": 404}}
        asked = {name: request.get(name, value) for name, value in DEFAULTS.items()}
        assert asked == {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        rollout = self.draw(request["prompt"], request)
        choices = [
            self.choice(
                i, rollout.ids[i, rollout.prompt_length :][:n].tolist(), rollout.logp[i, :n]
            )
            for i, n in enumerate(rollout.lengths.tolist())
        ]
        for choice in choices:
            stopped = choice["token_ids"][-1] in request["stop_token_ids"]
            choice["finish_reason"] = "stop" if stopped else "length"
            choice["prompt_token_ids"] = request["prompt"]
            if not request.get("return_token_ids"):
                choice["token_ids"] = choice["prompt_token_ids"] = None
            if request.get("logprobs") is None:
                choice["logprobs"] = None
        response = {
            "id": "cmpl-7", "object": "text_completion", "created": int(time.time()),
            "model": MODEL, "choices": choices, "service_tier": None, "system_fingerprint": None,
            "usage": {"prompt_tokens": len(request["prompt"]), "total_tokens": 0},
            "kv_transfer_params": None,
        }  # fmt: skip
        return 200, self.spoil(response)

    def choice(self, index: int, ids: list[int], logp: torch.Tensor) -> dict[str, Any]:
        assert self.policy is not None
        tokens = self.policy.tokenizer.convert_ids_to_tokens(ids)
        logprobs = {
            "text_offset": [0] * len(ids),
            "token_logprobs": logp.tolist(),
            "tokens": tokens,
            "top_logprobs": [{t: p} for t, p in zip(tokens, logp.tolist(), strict=True)],
        }
        return {
            "index": index, "text": self.policy.tokenizer.decode(ids, skip_special_tokens=True),
            "logprobs": logprobs, "finish_reason": None, "stop_reason": None, "token_ids": ids,
            "prompt_logprobs": None, "routed_experts": None,
        }  # fmt: skip

    def rpc(self, request: dict[str, Any]) -> tuple[int, Any]:
        if request.get("method") is None:
            return 400, {"detail": "Missing 'method' in request body"}
        assert request["method"] == "reload_weights"
        self.policy = load_policy(Path(request["kwargs"]["weights_path"]), draw_padding=True)
        return 200, {"results": [None]}

    def answer(self, path: str, request: Any) -> tuple[int, Any]:
        self.seen.append((path, request))
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        if path == "/v1/completions":
            return self.completions(request)
        if path == "/inference/v1/generate" and self.masks:
            return self.generate(request)
        if path == "/collective_rpc" and self.dev_mode:
            return self.rpc(request)
        if path == "/reset_prefix_cache" and self.dev_mode:
            return 200, None
        return 404, {"detail": "Not Found"}


@contextmanager
def running() -> Iterator[VllmStandIn]:
    stand_in = VllmStandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(None)

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, request: Any) -> None:
            with stand_in.lock:
                status, content = stand_in.answer(self.path, request)
            body = b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Patient(ThreadingHTTPServer):
        # Of all requests at once: the system resets those that a queue of 5 has no place for.
        request_queue_size = 128

    server = Patient(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    stand_in.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
