"""What a feature space is, its fingerprint, and what differs between two.

A feature space is the complete plain-text list of inputs that change a feature's value: weights,
prompt, frame sampling, preprocessing, tap, pooling and dtypes. Its fingerprint is the sha256 of that
list as canonical JSON. Nothing that leaves values alone (batch size, device, workers, paths, text
after the video) and no library version belongs here; those are provenance.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.errors import SettingsError

if TYPE_CHECKING:
    from featurecache.backbones.family import Inputs, TapShape

NUMERICS_VERSION = 1
"""Raised when a change to this toolkit's own code changes feature values."""


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON document with the sha256 of itself under `sha256`, so that no value in it changes unnoticed."""
    return {**document, "sha256": hashlib.sha256(canonical_json(document).encode()).hexdigest()}


def json_object(data: bytes | str) -> dict[str, Any]:
    """A document that must be a JSON object.

    Raises:
        ValueError: If it is none; says so in words that need no knowledge of JSON's parser.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is damaged (not JSON)") from error
    if not isinstance(document, dict):
        raise ValueError("it is damaged (no JSON object)")
    return document


def unsealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """What `sealed` was given.

    Raises:
        ValueError: If it is not as it was written.
    """
    plain = {name: value for name, value in document.items() if name != "sha256"}
    if sealed(plain) != document:
        raise ValueError("it does not have the sha256 that it states for itself")
    return plain


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


@dataclass(frozen=True)
class SelectedFeature:
    """A feature that is stored of every clip: where it is read (tap), and how its tokens become one array (pooling)."""

    tap: str
    pooling: str

    def __str__(self) -> str:
        return f"{self.tap}/{self.pooling}"


def parse_feature(text: str, taps: "Mapping[str, TapShape]") -> SelectedFeature:
    """A selected feature as settings write it: `tap/pooling`.

    Args:
        text: E.g. `final/mean`.
        taps: What the model offers.

    Raises:
        SettingsError: If this model has no such tap, or the tap no such pooling.
    """
    tap, _, pooling = text.partition("/")
    offered = {f"{name}/{way}": SelectedFeature(name, way) for name, shape in taps.items() for way in _poolings(shape)}
    if text in offered:
        return offered[text]
    near = _nearest(tap, pooling, taps)
    hint = f"Did you mean {near!r}?" if near else "Write it as tap/pooling, e.g. final/mean."
    if tap in taps:
        raise SettingsError(
            f"features.select must name a pooling of {tap}, which are {', '.join(_poolings(taps[tap]))}, "
            f"but it names {pooling!r}{_WHY_NOT.get(pooling, '')}. {hint}"
        )
    raise SettingsError(
        f"features.select must name taps of this model, which are {_listed(list(taps))}, but it names {tap!r}. {hint}"
    )


_WHY_NOT = {
    "cls": ", and there is no class token",
    "last": ", which takes causal attention below the tap, and there is none: no token there has seen all others",
    "motion": ", which takes two time steps, and there is one",
}
"""Of poolings that a tap may lack, after the name."""


def _nearest(tap: str, pooling: str, taps: "Mapping[str, TapShape]") -> str | None:
    """What was probably meant: a name that is written alike, and `mean` for a pooling that is not to be had."""
    near_taps = [tap] if tap in taps else difflib.get_close_matches(tap, taps, n=1)
    if not near_taps:
        return None
    near = difflib.get_close_matches(pooling, _poolings(taps[near_taps[0]]), n=1)
    return f"{near_taps[0]}/{near[0] if near else 'mean'}"


def row_shape(feature: "SelectedFeature | FeatureSpace", taps: "Mapping[str, TapShape]") -> tuple[int, ...]:
    """Shape of a selected feature of one clip: (D,), (T', D) or (S, D)."""
    shape = taps[feature.tap]
    if feature.pooling == "frames":
        return (shape.steps, shape.width)
    if feature.pooling == "tokens":
        return (shape.steps * shape.tokens_per_step, shape.width)
    return (shape.width,)


def stored_dtype_of(feature: SelectedFeature, stored_dtype: str) -> str:
    """The dtype on disk of a selected feature under the setting `stored_dtype`.

    Pooled features are stored as the setting says. Tokens are the model's own states: they are stored in bfloat16,
    which has their range where float16 overflows, unless float32 is asked for.
    """
    return "bfloat16" if feature.pooling == "tokens" and stored_dtype != "float32" else stored_dtype


def feature_space(
    inputs: "Inputs", feature: SelectedFeature, *, dtype: str, stored_dtype: str, sha256_of: Callable[[Path], str]
) -> FeatureSpace:
    """The feature space of one selected feature of a model.

    Args:
        inputs: The model without its weights.
        feature: Which feature.
        dtype: The dtype the model computes in.
        stored_dtype: The setting; see `stored_dtype_of`.
        sha256_of: Digest of a file's content.
    """
    return FeatureSpace(
        {
            "numerics_version": NUMERICS_VERSION,
            **inputs.identity(feature.tap, dtype, sha256_of),
            "tap": feature.tap,
            "pooling": feature.pooling,
            "stored_dtype": stored_dtype_of(feature, stored_dtype),
        }
    )


def _poolings(shape: "TapShape") -> list[str]:
    """What a tap can be pooled to; motion needs two time steps, cls a class token, last causal attention."""
    ways = ["mean", "frames", "tokens"]
    return ways + ["motion"] * (shape.steps > 1) + ["cls"] * shape.has_cls + ["last"] * shape.is_causal


def _listed(taps: list[str]) -> str:
    """Names of taps; of a run of layers the first and the last."""
    layers = [name for name in taps if name.startswith("layer_")]
    if len(layers) <= 3:
        return ", ".join(taps)
    return ", ".join(
        f"{layers[0]} to {layers[-1]}" if name == layers[0] else name for name in taps if name not in layers[1:]
    )


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
