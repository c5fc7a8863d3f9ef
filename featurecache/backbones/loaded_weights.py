"""What must hold of a model's weights once a loader has filled it from the files, and no loader says by itself.

A weight has the shape that config.json describes, only one tensor of the files is for it, and its numbers are finite.

Not here: the files (`featurecache.backbones.weight_files`), loading (`featurecache.backbones.files`).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from featurecache.errors import ModelNotFoundError, UnsafeFileError


def refuse_other_shapes(folder: Path, mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    """Refuses weights of other shapes than config.json describes.

    Args:
        folder: The model's files.
        mismatched: Name, shape in the files and shape in the model of each.

    Raises:
        ModelNotFoundError: Naming one with both shapes.
    """
    if mismatched:
        name, held, asked = mismatched[0]
        raise ModelNotFoundError(
            f"config.json must describe the weights next to it, but in {folder} {len(mismatched)} weights have other "
            f"shapes, e.g. {name}: {list(held)} in the file, {list(asked)} by config.json. "
            "Take both from one revision of the model's repository."
        )


def refuse_second_names(folder: Path, model: Any, names: Iterable[str]) -> None:
    """Refuses files that hold one weight under two names, as revisions spell them: the loader takes either, in silence.

    Args:
        folder: The model's files.
        model: The loaded model, of a class of transformers.
        names: Names of all tensors in the files.

    Raises:
        UnsafeFileError: Naming both.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    wanted, first = model.state_dict(), dict[str, str]()
    for name in names:
        target, merged = rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
        if target not in wanted and name in wanted:
            target, merged = name, None
        if target not in wanted or merged is not None:  # not used, or one of several that make a weight
            continue
        if (other := first.setdefault(target, name)) != name:
            raise UnsafeFileError(
                f"each weight must be in the files once, but those of {folder} hold {target} as {other} and as {name}, "
                "of which one alone is loaded. Take the weights of one revision of the model's "
                "repository."
            )


def refuse_non_finite(folder: Path, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Refuses weights with NaN or infinity, which would only show in the features.

    Args:
        folder: Where they are from.
        weights: Names and tensors as they were loaded. Each is read once, which takes a fraction of the loading.

    Raises:
        ModelNotFoundError: Naming the first such weight, and the mend where a dtype made it.
    """
    for name, weight in weights:
        if weight.is_meta or not weight.numel():
            continue
        if not all(bool(torch.isfinite(end)) for end in torch.aminmax(weight)):
            mend = "Fetch the weights again, or those of another revision."
            if weight.dtype == torch.float16:
                mend = f'Set features.dtype = "bfloat16" or "float32", whose range is wider. {mend}'
            raise ModelNotFoundError(
                f"weights must be finite, but {name} of {folder} holds NaN or infinity in {weight.dtype}. {mend}"
            )
