"""The feature spaces that a project's settings ask for, from the model's files and without weights."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featurecache.backbones import find_model
from featurecache.backbones.adapter_files import Adapter
from featurecache.backbones.description import DescriptionMemo, ModelDescription, open_described
from featurecache.project.settings import Project
from featurecache.spec import FeatureSpace, feature_space, parse_feature
from featurecache.video.digests import DigestMemo

if TYPE_CHECKING:
    from featurecache.backbones.asking import Asked


def project_spaces(
    project: Project,
    *,
    select: Sequence[str] | None = None,
    adapter: Adapter | None = None,
    asked: "Asked | None" = None,
    allow_download: bool = False,
    anew: bool = False,
) -> tuple[ModelDescription, dict[str, FeatureSpace]]:
    """The model that the project's settings name, and the feature spaces they ask for by name (`tap/pooling`).

    Args:
        project: The project.
        select: Names of the features, where they are others than the settings'.
        adapter: What the backbone is run with; taps that it changes are feature spaces of their own.
        asked: What the backbone is asked; its answers are the features then, in float32.
        allow_download: Whether the model may be fetched from the hub.
        anew: Look at the model's files, whatever is remembered of them.

    Raises:
        ModelNotFoundError: If the model is not on this machine.
        UnsupportedModelError: If it is of another architecture.
        SettingsError: If the prompt does not fit, or the model has no such tap or pooling.
    """
    features, names = project.settings.features, list(select or project.settings.features.select)
    folder = find_model(features.model, allow_download=allow_download)
    prompt, stored_dtype = (features.prompt, features.stored_dtype) if asked is None else ("<video>", "float32")
    settings: Any = {
        "prompt": prompt,
        "frames": features.frames,
        "resize": features.resize,
        "crop": features.crop,
        "clip_s": project.settings.clips.length_us / 1e6,
    }
    of_spaces = {"dtype": features.dtype, "stored_dtype": stored_dtype}
    digests = DigestMemo(project.digest_memo)
    memo = DescriptionMemo(
        project.state / "models.json", folder, digests.sha256, {**settings, **of_spaces, "keep": names}
    )
    found = memo.recall(settings) if asked is None and not anew else None
    if found is None:
        inputs = open_described(folder, **settings, asked=asked)
        model = ModelDescription(
            folder,
            **settings,
            image_px=inputs.image_px,
            text_after_video=inputs.text_after_video,
            taps=inputs.taps,
            asked=asked,
        )
        kept = [parse_feature(text, inputs.taps) for text in names]
        spaces = {str(one): feature_space(inputs, one, **of_spaces, sha256_of=memo.sha256_of) for one in kept}
        if asked is None:
            memo.remember(model, spaces)
    else:
        model, spaces = found
    digests.save()
    if adapter is not None:
        spaces = {name: with_adapter(space, adapter) for name, space in spaces.items()}
    return model, spaces


def with_adapter(space: FeatureSpace, adapter: Adapter) -> FeatureSpace:
    """The feature space when the backbone is run with an adapter; the same one where that changes nothing."""
    if not adapter.changes(space.tap):
        return space
    return FeatureSpace({**space.inputs, "adapter": dict(adapter.sha256)})
