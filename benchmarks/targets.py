"""Targets of a benchmark, in the form that every script prints them; what `--quick` must reach has bounds of its own.

At the sizes of `--quick` a floor is a few milliseconds, so that ratios to it are others and vary more. Its bounds are
half as strict again as what a busy machine gave: they find a step that became twice as slow, not one of a tenth.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Better = Literal["higher", "lower"]
Target = tuple[str, float, float, float, Better]
"""What, its value, its bound, the bound with `--quick`, and which side of it is better."""


def judged(targets: Sequence[Target], *, quick: bool) -> list[dict[str, Any]]:
    """The targets as they are printed, each with whether it is met."""
    found = []
    for what, value, full, small, better in targets:
        bound = small if quick else full
        is_met = value >= bound if better == "higher" else value <= bound
        found.append({"what": what, "value": value, "bound": bound, "better": better, "met": bool(is_met)})
    return found


def print_document(
    benchmark: str, figures: Mapping[str, Any], targets: Sequence[Target], *, quick: bool = False, **machine: Any
) -> None:
    """Prints what a benchmark ends with, on one line; `machine` is what figures depend on besides its processor."""
    described = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), **machine}
    document = {
        "benchmark": benchmark,
        "machine": described,
        "figures": figures,
        "targets": judged(targets, quick=quick),
    }
    print(json.dumps(document, default=float))
