"""SelectedFeature features by name, their shapes and dtypes, and fingerprints that differ where values do."""

from pathlib import Path

import pytest

from featurecache.backbones import open_inputs
from featurecache.backbones.family import TapShape
from featurecache.errors import SettingsError
from featurecache.files import sha256_of_file
from featurecache.spec import SelectedFeature, feature_space, parse_feature, row_shape, stored_dtype_of

TAPS = {
    "vision": TapShape(4, 9, 16),
    **{f"layer_{depth}": TapShape(4, 9, 32) for depth in range(6)},
    "final": TapShape(4, 9, 32, has_cls=True, is_causal=True),
    "one": TapShape(1, 9, 32),
}


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("final/mean", (32,)),
        ("layer_3/motion", (32,)),
        ("vision/frames", (4, 16)),
        ("layer_0/tokens", (36, 32)),
        ("final/cls", (32,)),
        ("final/last", (32,)),
    ],
)
def test_parse_kept_gives_tap_and_pooling_when_the_model_has_them(text: str, shape: tuple[int, ...]) -> None:
    kept = parse_feature(text, TAPS)
    assert str(kept) == text
    assert row_shape(kept, TAPS) == shape


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer_9/mean", r"which are vision, layer_0 to layer_5, final, one, but it names 'layer_9'\. Did you mean"),
        ("layer_9/cls", r"Did you mean 'layer_5/mean'\?"),
        ("finale/mean", r"Did you mean 'final/mean'\?"),
        ("final", r"a pooling of final, which are mean, .*, motion, cls, last, but it names ''\. .* 'final/mean'\?"),
        ("final/means", r"but it names 'means'\. Did you mean 'final/mean'\?"),
        ("final/notion", r"but it names 'notion'\. Did you mean 'final/motion'\?"),
        ("vision/cls", r"tokens, motion, but it names 'cls', and there is no class token\. .* 'vision/mean'\?"),
        ("vision/last", r"but it names 'last', which takes causal attention below the tap, .* 'vision/mean'\?"),
        ("one/motion", r"tokens, but it names 'motion', which takes two time steps, and .* one\. .* 'one/mean'\?"),
        ("", r"Write it as tap/pooling, e\.g\. final/mean\."),
    ],
)
def test_parse_kept_lists_what_the_model_offers_when_it_has_no_such_feature(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        parse_feature(text, TAPS)
    assert "\n" not in str(caught.value)


def test_tokens_are_stored_in_bfloat16_unless_float32_is_asked_for() -> None:
    asked = [(pooling, stored) for pooling in ("mean", "frames", "tokens") for stored in ("float16", "float32")]
    got = [stored_dtype_of(SelectedFeature("final", pooling), stored) for pooling, stored in asked]
    assert got == ["float16", "float32", "float16", "float32", "bfloat16", "float32"]


def test_fingerprints_differ_between_kept_features_and_by_the_prompt_where_it_matters(tiny_model: Path) -> None:
    def fingerprints(prompt: str) -> dict[str, str]:
        inputs = open_inputs(tiny_model, prompt=prompt, frames=4, resize="crop")
        kept = [
            parse_feature(f"{tap}/{way}", inputs.taps) for tap in inputs.taps for way in ("mean", "motion", "tokens")
        ]
        spaces = [
            feature_space(inputs, one, dtype="float32", stored_dtype="float16", sha256_of=sha256_of_file)
            for one in kept
        ]
        assert [(space.tap, space.pooling) for space in spaces] == [(one.tap, one.pooling) for one in kept]
        return {str(one): space.fingerprint for one, space in zip(kept, spaces, strict=True)}

    one, other = fingerprints("user: baby <video>"), fingerprints("user: hand moves <video>")
    assert len(set(one.values())) == len(one) == 4 * 3
    same = {name for name in one if one[name] == other[name]}
    assert same == {f"{tap}/{way}" for tap in ("vision", "layer_0") for way in ("mean", "motion", "tokens")}
