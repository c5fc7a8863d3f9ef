"""A model's chat template as two texts: what it puts before a user's message, and what after it.

A template is a program that comes with the model. transformers runs it in jinja's sandbox, which does not bound time
or memory; so it is rendered once, in a process of its own with limits (`template_trial.py`), around a placeholder.
Messages are put between the two texts afterwards and never reach the template.

There is one message, of the user: templates that refuse a system role (Mistral-7B-Instruct's) take it too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from featurecache.errors import UnsafeFileError, UnsupportedModelError

_MESSAGE = "the message of the user goes here 7f3a"
_MOST_SECONDS, _MOST_BYTES = 20, 2 * 1024**3
"""Loading the library that renders takes most of it."""


def chat_frame(tokenizer: Any, folder: Path) -> tuple[str, str]:
    """What the template of a tokenizer puts before and after a message, up to where the answer begins.

    Args:
        tokenizer: As `featurecache.backbones.tokenizer.open_tokenizer` gives it.
        folder: The model's files, for messages.

    Raises:
        UnsupportedModelError: If there is no template, or it does not write the message down once.
        UnsafeFileError: If it takes more time or memory than any template.
    """
    own = tokenizer.chat_template
    template = own.get("default") if isinstance(own, dict) else own
    if not isinstance(template, str):
        raise UnsupportedModelError(
            f"a judge must be a model that answers (Instruct, Chat), with a chat template, but {folder} has none. "
            "Use such a model, or take tokenizer_config.json or chat_template.jinja from its repository."
        )
    # -P: python must not look for modules in the working folder, which may be the model's.
    done = subprocess.run(  # noqa: S603  # this interpreter
        [
            *(sys.executable, "-P", str(Path(__file__).with_name("template_trial.py"))),
            *map(str, (_MOST_SECONDS, _MOST_BYTES)),
        ],
        input=json.dumps([template, _MESSAGE, tokenizer.special_tokens_map], default=str).encode(),
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode < 0 or b"MemoryError" in done.stderr:
        raise UnsafeFileError(
            f"a chat template must be rendered within {_MOST_SECONDS} s and {_MOST_BYTES // 1024**2} MiB, but that of "
            f"{folder} takes more. Take the tokenizer's files from the model's own repository."
        )
    said = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"])[-1]
    text = str(json.loads(done.stdout)) if done.returncode == 0 else ""
    if text.count(_MESSAGE) != 1:
        found = f"it gave {said[:200]}" if done.returncode else f"it writes it {text.count(_MESSAGE)} times"
        raise UnsupportedModelError(
            f"a chat template must write a user's message once, but in that of {folder} {found.rstrip('.')}. "
            "Take the tokenizer's files from the model's own repository, or use another judge."
        )
    before, _, after = text.partition(_MESSAGE)
    return before, after
