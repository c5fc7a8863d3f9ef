"""What a head that weighs parts is taught by: the findings of samples, read by the model's own joint text tower."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from featurecache import FeatureCache
from featurecache.errors import SettingsError
from featurecache.extraction.spaces import project_spaces
from featurecache.extraction.words import JOINT_FEATURE, ProjectWords
from featurecache.project.settings import Project
from featurecache.spec import FeatureSpace
from heads.data import LabelledSplit
from heads.loading import read_features
from heads.samples.joining import present
from heads.samples.teacher import text_relevance


def with_teacher(
    project: Project, splits: Sequence[LabelledSplit], cache: FeatureCache, *, allow_download: bool = False
) -> list[LabelledSplit]:
    """Splits of samples with the relevance of each part to its sample's findings.

    Args:
        project: The project, whose model has a joint text tower.
        splits: Samples with their features.
        cache: The open cache, which has the parts' embeddings.
        allow_download: Whether the model may be fetched from the hub.

    Raises:
        SettingsError: If no sample has findings, or embeddings in the texts' space are not selected; or if the model
            has no text tower, or findings are too long for it.
        MissingFeaturesError: If the cache lacks an embedding.
    """
    model, _ = project_spaces(project, allow_download=allow_download)
    if JOINT_FEATURE.partition("/")[0] not in model.taps:
        raise SettingsError(
            "teacher_weight above 0 needs a model with a text tower in one space with its vectors, but that of "
            f"features.model, {project.settings.features.model!r}, has none. Take another model (docs/backbones.md, "
            "the tap joint); or set teacher_weight = 0."
        )
    has_text = any(sample.findings for split in splits for sample in split.samples or ())
    if not has_text or JOINT_FEATURE not in project.settings.features.select:
        found = f"features.select has no {JOINT_FEATURE}" if has_text else "no sample has any"
        raise SettingsError(
            f"teacher_weight above 0 needs findings of samples and {JOINT_FEATURE} of their clips, but {found}. Write "
            f'a column findings in samples.csv (rule = "file" under [samples]), select {JOINT_FEATURE} and run '
            "featurecache extract; or set teacher_weight = 0."
        )
    _, spaces = project_spaces(project, select=[JOINT_FEATURE], allow_download=allow_download)
    tower = ProjectWords(project, allow_download=allow_download)
    return [_taught(split, cache, spaces[JOINT_FEATURE], tower) for split in splits]


def _taught(split: LabelledSplit, cache: FeatureCache, space: FeatureSpace, tower: ProjectWords) -> LabelledSplit:
    samples, there = split.samples or (), present(next(iter(split.features.values())))  # (N, P)
    parts = [
        part
        for sample, own in zip(samples, there.tolist(), strict=True)
        for part, is_there in zip(sample.parts, own[: len(sample.parts)], strict=True)
        if is_there
    ]
    embedded = read_features(cache, parts, space)
    X = np.full((*there.shape, embedded.shape[1]), np.nan, np.float32)
    X[there] = embedded
    vectors = np.full((len(samples), embedded.shape[1]), np.nan, np.float32)
    rows = [row for row, sample in enumerate(samples) if sample.findings]
    if rows:
        vectors[rows] = tower.vectors([samples[row].findings for row in rows], remember=False)
    return replace(split, teacher=text_relevance(X, vectors, tower.scale))
