"""The commented `featurecache.toml` that `init` and the demo write, made of the settings' own defaults and docstrings.

Every setting is named: with its value where the project has one, else as a comment with its default, and next to it
is what its class says of it; where that ends in "E.g. `name = value`.", this example is shown instead of a default.
What alters features or targets is written out, so that another default in a later version changes no project.
"""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurecache.errors import ProjectExistsError
from featurecache.files import private_folder, write_private
from featurecache.project.features import FeatureSettings
from featurecache.project.samples import SampleSettings
from featurecache.project.settings import (
    SETTINGS_NAME,
    ClipSettings,
    DataSettings,
    ExtractSettings,
    SplitSettings,
)
from featurecache.project.toml_text import toml_lines

_SECTIONS: Mapping[str, type[Any]] = {
    "data": DataSettings,
    "clips": ClipSettings,
    "splits": SplitSettings,
    "features": FeatureSettings,
    "extract": ExtractSettings,
    "samples": SampleSettings,
}
_WRITTEN_OUT = {
    "clips": ("length_s", "stride_s"),
    "splits": ("seed", "train", "validation", "test"),
    "features": tuple(field.name for field in dataclasses.fields(FeatureSettings) if field.default is not None),
    "extract": tuple(field.name for field in dataclasses.fields(ExtractSettings)),
}
_EXAMPLE = re.compile(r"\s*E\.g\. `(.+)`\.$")
_COMMENT_AT, _WIDTH = 34, 120


def write_settings(
    folder: Path,
    values: Mapping[str, Mapping[str, Any]],
    *,
    sections: Mapping[str, type[Any]] | None = None,
    reason: str = "",
) -> Path:
    """Writes a commented `featurecache.toml`; never over one that is there.

    Args:
        folder: The project's folder; made if missing.
        values: Section -> setting -> value. Values of None and empty lists mean "not set".
        sections: Sections that other packages own, each with its dataclass; they follow the project's own.
        reason: Why the labels were chosen so.

    Raises:
        ProjectExistsError: If there is one already.
    """
    path = folder / SETTINGS_NAME
    if path.exists():
        raise ProjectExistsError(
            f"init writes only new settings, but {path} is there. Edit it, or move it away and run init again."
        )
    kinds = {**dict.fromkeys(values), **_SECTIONS, **(sections or {})}
    parts = [
        "# Settings of this project. Paths are relative to this file. Every setting not named here has its default."
    ]
    for name in dict.fromkeys([*_SECTIONS, *kinds]):
        lines = _section(name, kinds[name], values.get(name, {}))
        if name == "data" and reason:
            lines.insert(1, f"# {reason}")
        parts.append("\n".join(lines))
    private_folder(folder)
    write_private(path, ("\n\n".join(parts) + "\n").encode())
    return path


def _section(name: str, kind: type[Any] | None, values: Mapping[str, Any]) -> list[str]:
    """The lines of a section; of one whose dataclass is not given, the values alone."""
    if kind is None:
        return [f"[{name}]", *(line for key, value in values.items() for line in toml_lines(key, value))]
    summary, docs = _described(kind)
    lines = _commented(f"[{name}]", summary)
    for field in dataclasses.fields(kind):
        doc, default = docs.get(field.name, ""), _default(field)
        example = _EXAMPLE.search(doc)
        doc = _EXAMPLE.sub("", doc)
        if values.get(field.name) not in (None, (), [], {}):
            shown = list(toml_lines(field.name, values[field.name]))
        elif field.name in _WRITTEN_OUT.get(name, ()) or (default == () and not example and field.name in values):
            shown = list(toml_lines(field.name, default))
        else:
            shown = [f"# {line}" for line in ([example[1]] if example else toml_lines(field.name, default))]
        lines += [line for at, text in enumerate(shown) for line in _commented(text, "" if at else doc)]
    return lines


def _described(kind: type[Any]) -> tuple[str, dict[str, str]]:
    """A dataclass's summary, and what it and the classes it extends say of each field."""
    docs: dict[str, str] = {}
    for one in reversed(kind.__mro__[:-1]):
        _, _, attributes = (inspect.getdoc(one) or "").partition("Attributes:\n")
        for name, text in re.findall(r"(?m)^    (\w+): ((?:.|\n {8})+)", attributes):
            docs[name] = " ".join(text.split())
    return (inspect.getdoc(kind) or "").partition("\n")[0].removesuffix("."), docs


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _commented(line: str, comment: str) -> list[str]:
    """A line with a comment next to it, continued below; the comment comes first where the line is too long."""
    if not comment:
        return [line]
    if len(line) > _WIDTH // 2:
        return [*textwrap.wrap(comment, _WIDTH, initial_indent="# ", subsequent_indent="# "), line]
    at = max(_COMMENT_AT, len(line) + 2)
    first, *rest = textwrap.wrap(comment, _WIDTH - at - 2, break_on_hyphens=False)
    return [f"{line:<{at}}# {first}", *(f"{'#':<{at}}# {more}" for more in rest)]
