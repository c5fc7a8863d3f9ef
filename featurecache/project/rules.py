"""The rule that a setting breaks, in words for people, from what pydantic says of it.

What this is not: the rules; they are declared with the fields.
"""

from typing import Any

from pydantic import ValidationError

_TYPES = {"bool": "true or false", "string": "text in quotes", "path": "text in quotes", "dict": "a table"}
_TYPES |= {"int": "a whole number", "float": "a number", "decimal": "a number"}


def first_validation_error(error: ValidationError) -> tuple[tuple[int | str, ...], str, Any]:
    """The first validation error: where, what must hold ("greater than 0"), and what was found.

    Where a name is missing there is no rule: it is empty.
    """
    first = error.errors(include_url=False)[0]
    where, kind, found = first["loc"], first["type"], first["input"]
    if kind == "missing" and not isinstance(where[-1], int):
        return where, "", found
    if kind in ("missing", "too_long"):  # lists of a fixed length are all pairs
        return where[:-1] if kind == "missing" else where, "two values", found
    if kind == "too_short":
        least = first["ctx"]["min_length"]
        return where, f"a list of {least} or more", found
    if kind in ("tuple_type", "list_type"):
        return where, "a list (in Python a tuple)", found
    wanted, _, fault = kind.partition("_")
    if fault in ("type", "parsing", "parsing_size", "from_float") and wanted in _TYPES:
        return where, _TYPES[wanted], found
    rule = first["msg"].removeprefix("Value error, ").removeprefix("Input should ").removeprefix("be ")
    return where, rule.rstrip("."), found
