"""Renders one chat template around a message, under limits; run by `featurecache.backbones.chat_template` alone.

    python -P template_trial.py SECONDS BYTES < TEMPLATE

TEMPLATE is JSON: the template, the message, and the tokenizer's special tokens. The text goes to stdout as JSON.
"""

import json
import resource
import sys

from transformers.utils.chat_template_utils import render_jinja_template


def main() -> None:
    """Renders; what goes wrong is an exception, or the end of the process."""
    seconds, most_bytes = map(int, sys.argv[1:])
    for limit, value in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_DATA, most_bytes), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
    template, message, special = json.load(sys.stdin)
    texts, _ = render_jinja_template(
        conversations=[[{"role": "user", "content": message}]],
        chat_template=template,
        add_generation_prompt=True,
        # Llama 3.1's template writes today's date otherwise: the same question would be another one tomorrow.
        date_string="26 Jul 2024",
        **special,
    )
    json.dump(texts[0], sys.stdout)


if __name__ == "__main__":
    main()
