"""A planned model opened: what is in memory is what the plan has digested, for extraction and for every training."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from featurecache.backbones import open_backbone
from featurecache.backbones.adapter_files import Adapter, open_adapter
from featurecache.errors import FingerprintMismatchError
from featurecache.extraction.spaces import project_spaces
from featurecache.project.settings import Project
from featurecache.spec import FeatureSpace, differences

if TYPE_CHECKING:
    from featurecache.backbones.asking import Asked
    from featurecache.backbones.family import Backbone, Inputs


def open_planned(
    project: Project,
    inputs: "Inputs",
    spaces: Mapping[str, FeatureSpace],
    *,
    dtype: Literal["float32", "bfloat16", "float16"],
    device: str,
    adapter: Adapter | None = None,
    asked: "Asked | None" = None,
) -> "Backbone":
    """The loaded model of a plan, with its adapter.

    Args:
        project: The project, whose settings name the model.
        inputs: The model without its weights, as it was planned with.
        spaces: Feature spaces of the plan, by the names of their features (`tap/pooling`).
        dtype: The dtype the model computes in.
        device: As `open_backbone`.
        adapter: What the model is run with.
        asked: As `project_spaces`.

    Raises:
        FingerprintMismatchError: If the files are others, now that they are loaded, than those that were digested.
        FeatureCacheError: As `open_backbone`.
    """
    backbone = open_backbone(inputs, dtype=dtype, device=device)
    if adapter is not None:
        from featurecache.backbones.adapter import attach_adapter

        attach_adapter(backbone, adapter.folder)
        adapter = open_adapter(adapter.folder)
    _, now = project_spaces(project, select=list(spaces), adapter=adapter, asked=asked, anew=True)
    changed = [name for name, space in spaces.items() if now[name].fingerprint != space.fingerprint]
    if changed:
        differ = ", ".join(differences(now[changed[0]], spaces[changed[0]]))
        raise FingerprintMismatchError(
            f"the model's files must stay as they are from the plan to the run, but {differ} changed in between. "
            "Run it again when nothing writes to the model's folder."
        )
    return backbone
