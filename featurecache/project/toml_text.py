"""Values as TOML writes them: what `init` writes into the settings, and lines that errors propose for them."""

import json
from collections.abc import Mapping, Sequence


def quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's, but DEL must be escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_list(items: Sequence[str]) -> str:
    """A TOML array of strings."""
    return "[" + ", ".join(map(quoted, items)) + "]"


def mapping_line(tier: str, own: Mapping[str, str]) -> str:
    """The setting that maps a tier's values to labels."""
    pairs = ", ".join(f"{quoted(value)} = {quoted(label)}" for value, label in own.items())
    return f"mapping.{quoted(tier)} = {{ {pairs} }}"
