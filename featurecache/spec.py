"""What a feature space is, its fingerprint, and what differs between two.

A feature space is the complete plain-text list of inputs that change a feature's value: weights,
prompt, frame sampling, preprocessing, tap, pooling and dtypes. Its fingerprint is the sha256 of that
list as canonical JSON. Nothing that leaves values alone (batch size, device, workers, paths, text
after the video) and no library version belongs here; those are provenance.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NUMERICS_VERSION = 1
"""Raised when a change to this toolkit's own code changes feature values."""


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True)
class FeatureSpace:
    """A feature space by its inputs.

    Attributes:
        inputs: JSON-ready mapping. Always has `tap`, `pooling` and `stored_dtype`.
    """

    inputs: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """sha256 of the inputs as canonical JSON, 64 hex digits."""
        return hashlib.sha256(canonical_json(self.inputs).encode()).hexdigest()

    @property
    def tap(self) -> str:
        """Where in the backbone the feature is read."""
        return str(self.inputs["tap"])

    @property
    def pooling(self) -> str:
        """How the tap's tokens became one array."""
        return str(self.inputs["pooling"])

    @property
    def stored_dtype(self) -> str:
        """The dtype on disk."""
        return str(self.inputs["stored_dtype"])


def flatten(inputs: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested inputs as one level of dotted names, for reading and comparing."""
    flat: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(ours: FeatureSpace, theirs: FeatureSpace) -> dict[str, tuple[Any, Any]]:
    """Inputs that differ, by dotted name: (ours, theirs); None where one has no such input."""
    a, b = flatten(ours.inputs), flatten(theirs.inputs)
    return {name: (a.get(name), b.get(name)) for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)}
