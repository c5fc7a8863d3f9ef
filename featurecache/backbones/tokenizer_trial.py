"""Opens one tokenizer.json and encodes texts with it, under limits; run by `featurecache.backbones.tokenizer` alone.

    python -P tokenizer_trial.py TOKENIZER SECONDS BYTES MOST_ADDED MOST_TOKENS < TEXTS

TEXTS is JSON: the parts of a text, the id of the token between them, and more texts.

A tokenizer is a small program: rules that lengthen a text, regular expressions, templates. One that asks for more
memory than there is ends its process without an exception, and so does one that asks for more than BYTES here.
"""

import json
import resource
import sys

from tokenizers import Tokenizer


def main() -> None:
    """Encodes; what goes wrong is an exception, or the end of the process."""
    path, (seconds, most_bytes, most_added, most_tokens) = sys.argv[1], map(int, sys.argv[2:])
    for limit, value in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_DATA, most_bytes), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
    tokenizer = Tokenizer.from_file(path)
    added, size = len(tokenizer.get_added_tokens_decoder()), tokenizer.get_vocab_size()
    if added > most_added or size > most_tokens:
        sys.exit(f"it has {size} tokens, {added} of them added to its vocabulary")
    parts, token_id, more = json.load(sys.stdin)
    for text in ((tokenizer.id_to_token(token_id) or "").join(parts), *more):
        tokenizer.encode(text)


if __name__ == "__main__":
    main()
