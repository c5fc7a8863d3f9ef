"""A project with a bundle that predicts, and its predictions."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from featurecache.extraction.spaces import project_spaces
from featurecache.project.settings import Project
from heads.bundle import Bundle, save_bundle, tool_versions
from heads.models import Front, LinearHead
from heads.settings import HeadSettings
from heads.workflow import predicting
from heads.workflow.predicting import Predictions
from tests.projects import LABELS

SECOND = 1_000_000


def make_bundle(project: Project, folder: Path) -> Path:
    inputs, spaces = project_spaces(project)
    space = next(iter(spaces.values()))
    torch.manual_seed(0)
    head = LinearHead(Front(inputs.taps["final"].width), len(LABELS))
    torch.nn.init.normal_(head.output.weight, std=3)
    save_bundle(Bundle(head, LABELS, np.array([0.5, 0.4]), HeadSettings(), (space,), tool_versions()), folder)
    return folder


def predict(
    project: Project, *paths: Path, out: Path, stride_us: int = SECOND // 2, bundle: Path | None = None
) -> Predictions:
    return predicting.predict(project, paths, bundle=bundle, out=out, stride_s=stride_us / SECOND)


def with_annotations(project: Project, folder: Path) -> Project:
    data = dataclasses.replace(project.settings.data, annotations=folder)
    return Project(project.root, dataclasses.replace(project.settings, data=data))
