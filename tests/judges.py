"""Judges for tests: small random models laid out as Mistral-7B-Instruct, and a server that speaks OpenAI's protocol."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
"""Of Mistral-7B-Instruct-v0.2, word for word: it refuses a system role."""

WORDS = ["0", "1", "▁", "caption", "quotation", "judge", "ventilation", "stimulation", "takes", "place", "[", "]", '"']
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def make_judge(folder: Path, *, template: str | None = MISTRAL_TEMPLATE, seed: int = 0, kind: str = "mistral") -> Path:
    """Writes a random judge whose answers begin with 0 or 1 more often than not."""
    vocabulary = {word: at for at, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    own = {"vocab_size": len(vocabulary), **SIZES}
    model: Any = (
        MistralForCausalLM(MistralConfig(**own, sliding_window=None))
        if kind == "mistral"
        else LlamaForCausalLM(LlamaConfig(**own, tie_word_embeddings=True))
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
        if kind == "mistral":
            model.lm_head.weight[[vocabulary["0"], vocabulary["1"], vocabulary["▁"]]] *= 8
    model.save_pretrained(folder)
    path = folder / "tokenizer_config.json"  # where published folders have it
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return folder


def chat_answer(text: str, first_tokens: list[dict[str, float]] | None = None) -> dict[str, Any]:
    """The answer of a server, with log probabilities of its first tokens or without."""
    content = None
    if first_tokens is not None:
        content = [
            {
                "token": next(iter(step)),
                "logprob": next(iter(step.values())),
                "top_logprobs": [{"token": token, "logprob": value} for token, value in step.items()],
            }
            for step in first_tokens
        ]
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "logprobs": None if content is None else {"content": content}}]}


Behaviour = Callable[[dict[str, Any]], "tuple[int, dict[str, Any] | bytes]"]


class Served:
    """A server that runs.

    Attributes:
        address: What `zeroshot.judge` names.
        asked: Every question that came, in order.
        behave: Gives status and body for a request; may be changed.
    """

    def __init__(self, behave: Behaviour) -> None:
        self.behave, self.asked, self.address = behave, list[str](), ""


@contextmanager
def served(behave: Behaviour, *, models: tuple[str, ...] = ("judge",)) -> Iterator[Served]:
    """A judge that is served on this machine until the block is left."""
    found = Served(behave)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": one} for one in models]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.asked.append(request["messages"][-1]["content"])
            self._send(*found.behave(request))

        def _send(self, status: int, body: "dict[str, Any] | bytes") -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "http://127.0.0.1:1/v1/chat/completions")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        found.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
