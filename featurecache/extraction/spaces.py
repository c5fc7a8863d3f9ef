"""The feature spaces that a project's settings ask for, from the model's files and without weights."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featurecache.backbones import find_model, open_inputs
from featurecache.backbones.adapter_files import Adapter
from featurecache.project.settings import Project
from featurecache.spec import FeatureSpace, feature_space, parse_kept
from featurecache.video.digests import DigestMemo

if TYPE_CHECKING:
    from featurecache.backbones.asking import Asked
    from featurecache.backbones.family import Inputs


def project_spaces(
    project: Project,
    *,
    keep: Sequence[str] | None = None,
    adapter: Adapter | None = None,
    asked: "Asked | None" = None,
    allow_download: bool = False,
) -> "tuple[Inputs, dict[str, FeatureSpace]]":
    """The feature spaces that the project's settings ask for by name (`tap/pooling`), and the inputs behind them.

    Args:
        project: The project.
        keep: Names of the features, where they are others than the settings'.
        adapter: What the backbone is run with; taps that it changes are feature spaces of their own.
        asked: What the backbone is asked; its answers are the features then, in float32.
        allow_download: Whether the model may be fetched from the hub.

    Raises:
        ModelNotFoundError: If the model is not on this machine.
        UnsupportedModelError: If it is of another architecture.
        SettingsError: If the prompt does not fit, or the model has no such tap or pooling.
    """
    features = project.settings.features
    folder = find_model(features.model, allow_download=allow_download)
    prompt, stored_dtype = (features.prompt, features.stored_dtype) if asked is None else ("<video>", "float32")
    inputs = open_inputs(folder, prompt=prompt, frames=features.frames, resize=features.resize)
    if asked is not None:
        from featurecache.backbones.asking import AskedInputs

        inputs = AskedInputs(inputs, asked)
    digests = DigestMemo(project.digest_memo)
    spaces = {
        str(kept): feature_space(
            inputs, kept, dtype=features.dtype, stored_dtype=stored_dtype, sha256_of=digests.sha256
        )
        for kept in (parse_kept(text, inputs.taps) for text in keep or features.keep)
    }
    digests.save()
    if adapter is not None:
        spaces = {name: with_adapter(space, adapter) for name, space in spaces.items()}
    return inputs, spaces


def with_adapter(space: FeatureSpace, adapter: Adapter) -> FeatureSpace:
    """The feature space when the backbone is run with an adapter; the same one where that changes nothing."""
    if not adapter.changes(space.tap):
        return space
    return FeatureSpace({**space.inputs, "adapter": dict(adapter.sha256)})
