"""A judge that is served on this machine by an OpenAI-compatible server: vLLM, llama.cpp, Ollama.

Captions are about patients, so they leave for no other machine: the host is a loopback address or `localhost` (no other
name is looked up, since asking for it would leave the machine), the connection goes to the address that was checked,
redirects are not followed, and no proxy is used (`http.client` reads no setting of the environment). Which weights the
server runs only the server knows: answers are found again by the name of its model.

Where it gives the probabilities of the first tokens (`logprobs`), they are used; some servers accept the wish and drop
it, and then an answer is 0 or 1 and its verdict says so.
"""

import http.client
import ipaddress
import json
import logging
import math
import re
import select
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from featurecache.errors import JudgeUnreachableError, SettingsError, UnansweredError
from featurecache.spelling import visible
from heads.zeroshot.verdicts import Verdict

FIRST_TOKENS = 20
"""Of so many the probability is asked for; more than any server must give."""
_TOKENS = 4
_LARGEST_BYTES = 4 << 20
_PAUSES_S = (0.2, 1.0)
_MOST_SILENT, _MOST_FAILED = 3, 20
"""So many captions in a row without a response, or with none that is an answer, and the run ends."""
_FIRST_WORD_S, _WORD_EVERY_S = 2.0, 10.0
_log = logging.getLogger(__name__)
_BEGINS = re.compile(r"[\s\"'*(]*([01])(?!\d|[.,]\d)")


class _NoResponseError(UnansweredError):
    """The server said nothing."""


class ServerJudge:
    """A served judge.

    Args:
        address: Its address, e.g. `http://127.0.0.1:8000/v1`.
        model: What the server calls the model; empty where it serves one alone.
        timeout_s: How long an answer may take.

    Attributes:
        model: What the server calls the model.

    Raises:
        SettingsError: If the address is not of this machine, or the server has no such model.
        JudgeUnreachableError: If it does not answer as such a server does.
    """

    def __init__(self, address: str, model: str, *, timeout_s: float = 120.0) -> None:
        self._address, self._timeout_s, self._in_a_row = address, timeout_s, 0
        self._host, self._port, self._path = _resolved(address)
        try:
            served = self._request("GET", "/models").get("data")
        except UnansweredError as error:
            raise JudgeUnreachableError(
                f"zeroshot.judge must be the address of an OpenAI-compatible server that runs, but {address} gave: "
                f"{error} Start it, and look at the address: most end in /v1."
            ) from error
        names = [str(one.get("id")) for one in served if isinstance(one, dict)] if isinstance(served, list) else []
        if not model and len(names) == 1:
            model = names[0]
        if model not in (*names, *(name.partition(":")[0] for name in names)) or not model:
            raise SettingsError(
                f"zeroshot.judge_model must be one of the server's models ({', '.join(map(visible, names))}), "
                f"but it is {model!r}. Name one of them."
            )
        self.model = model

    def ask(self, questions: Sequence[str]) -> list[Verdict]:
        """As `Judge`.

        Raises:
            UnansweredError: If the server gives no answer in time, or after three tries.
            JudgeUnreachableError: If it gave none to several captions in a row.
        """
        try:
            found = [self._answer(question) for question in questions]
        except UnansweredError as error:
            self._in_a_row += 1
            if self._in_a_row >= (_MOST_SILENT if isinstance(error, _NoResponseError) else _MOST_FAILED):
                raise JudgeUnreachableError(
                    f"the judge at {self._address} must go on answering, but {self._in_a_row} captions in a row got no "
                    f"answer: {error} What was answered is saved: mend the server, and run the command again."
                ) from error
            raise
        self._in_a_row = 0
        return found

    def _answer(self, question: str) -> Verdict:
        wish = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": _TOKENS,
            "logprobs": True,
            "top_logprobs": FIRST_TOKENS,
        }
        answer = self._request("POST", "/chat/completions", wish)
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"]
            begins = _BEGINS.match("" if text is None else text)
        except (KeyError, IndexError, TypeError) as error:
            raise UnansweredError("an answer without choices[0].message.content.") from error
        said = int(begins[1]) if begins else None
        masses = first_token_masses(choice.get("logprobs"))
        return Verdict(0.0, 0.0, said, True) if masses is None else Verdict(*masses, said, False)

    def _request(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One exchange; tried again where another try may help."""
        for pause_s in (*_PAUSES_S, None):
            kind = UnansweredError
            try:
                status, body = self._exchange(method, path, content)
            except (OSError, http.client.HTTPException) as error:
                kind, said = _NoResponseError, f"{type(error).__name__}: {error}."
                if isinstance(error, TimeoutError):
                    raise kind(said) from error  # a second wait of minutes seldom helps
            else:
                if 300 <= status < 400:
                    raise UnansweredError(f"a redirect (status {status}), which is not followed.")
                if 400 <= status < 500 and status not in (408, 425, 429):
                    raise UnansweredError(f"status {status}: {visible(body[:200].decode('utf-8', 'replace'))}.")
                try:
                    document = json.loads(body) if status == 200 else None
                except (ValueError, RecursionError):
                    document = None
                if isinstance(document, dict):
                    return document
                said = f"status {status} and no JSON object." if status == 200 else f"status {status}."
            if pause_s is None:
                raise kind(said)
            time.sleep(pause_s)
        raise AssertionError  # the loop ends by return or raise

    def _exchange(self, method: str, path: str, content: Mapping[str, Any] | None) -> tuple[int, bytes]:
        """Status and body of one request, within the time and size that an answer may have."""
        end = time.monotonic() + self._timeout_s
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            body = None if content is None else json.dumps(content)
            headers = {"Accept": "application/json", "Content-Type": "application/json", "Connection": "close"}
            connection.request(method, self._path + path, body, headers)
            self._wait_for(connection.sock, end)
            response = connection.getresponse()
            received = b""
            while part := response.read1(1 << 16):
                received += part
                if len(received) > _LARGEST_BYTES:
                    raise http.client.HTTPException(f"an answer of more than {_LARGEST_BYTES >> 20} MiB")
                if time.monotonic() > end:
                    raise TimeoutError(f"no whole answer within {self._timeout_s:g} s")
            return response.status, received
        finally:
            connection.close()

    def _wait_for(self, answer: socket.socket, end: float) -> None:
        """Waits until an answer begins, and says so now and then.

        Raises:
            TimeoutError: If none begins until `end` on the monotonic clock.
        """
        word_s = _FIRST_WORD_S
        while not select.select([answer], [], [], max(0.0, min(word_s, end - time.monotonic())))[0]:
            if time.monotonic() >= end:
                raise TimeoutError(f"no answer within {self._timeout_s:g} s")
            left_s = end - time.monotonic()
            _log.info("waiting for the judge at %s, at most %.0f s more ...", self._address, left_s)
            word_s = _WORD_EVERY_S


def first_token_masses(logprobs: Any) -> tuple[float, float] | None:
    """Probabilities that an answer begins with 0 and with 1, from a server's `logprobs`; None where it gives none.

    A space or new line before the digit belongs to it: the second token is read too where the first is blank.
    """
    try:
        tokens = logprobs["content"][:2]
        steps = [{str(one["token"]): float(one["logprob"]) for one in token["top_logprobs"]} for token in tokens]
        first = str(tokens[0]["token"])
        blank = math.exp(float(tokens[0]["logprob"])) if not first.strip() and len(steps) > 1 else 0.0
        ways = [(1.0, steps[0]), *([(blank, steps[1])] if blank else [])]
        zero, one = (
            sum(way * math.exp(value) for way, step in ways for token, value in step.items() if token.strip() == digit)
            for digit in "01"
        )
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError):
        return None
    is_sound = math.isfinite(zero + one) and zero + one <= 1.01 and any(steps)
    return (zero, one) if is_sound else None


def _resolved(address: str) -> tuple[str, int, str]:
    """The checked address, port and path of a server's address.

    Raises:
        SettingsError: If it is no address of this machine.
    """
    mend = "Captions are about patients: serve the judge on this machine, e.g. http://127.0.0.1:8000/v1."
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port or 80
        if parts.scheme != "http" or not host or parts.query or parts.fragment or parts.username is not None:
            raise ValueError("it is no plain http://HOST:PORT/PATH")
        if host == "localhost":
            found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        else:
            found = {str(ipaddress.ip_address(host))}
    except (ValueError, OSError) as error:
        raise SettingsError(
            f"zeroshot.judge must be an address of this machine, but {address!r}: {error}. {mend}"
        ) from error
    for one in sorted(found):
        own = ipaddress.ip_address(one.partition("%")[0])
        mapped = own.ipv4_mapped if isinstance(own, ipaddress.IPv6Address) else None
        if not (mapped or own).is_loopback:
            raise SettingsError(f"zeroshot.judge must be an address of this machine, but {host} is {one}. {mend}")
    return sorted(found)[0], port, parts.path.rstrip("/") or "/v1"
