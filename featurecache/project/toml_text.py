"""Values as TOML writes them: what `init` writes into the settings, and lines that errors propose for them."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any


def quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's, but DEL must be escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_lines(name: str, value: Any) -> Iterator[str]:
    """A setting as lines of TOML: one for each entry of a table or field of settings of its own."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        default = value.__class__()
        changed = {key: one for key, one in own.items() if one != getattr(default, key)}
        for key, one in (changed or own).items():
            yield f"{name}.{key} = {toml_value(one)}"
    elif isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield f"{name}.{quoted(key)} = {toml_value(one)}"
    else:
        yield f"{name} = {toml_value(value)}"


def toml_value(value: Any) -> str:
    """A value as TOML writes it; None as an empty string."""
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{quoted(key)} = {toml_value(one)}" for key, one in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, str | Path) or value is None:
        return quoted(str(value or ""))
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(value)


def mapping_line(tier: str, own: Mapping[str, str]) -> str:
    """The setting that maps a tier's values to labels."""
    return next(toml_lines("mapping", {tier: own}))
