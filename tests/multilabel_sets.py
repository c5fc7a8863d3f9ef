"""The real multi-label sets of ../shared/data, read from their gzipped ARFF files."""

import gzip
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1].parent / "shared/data/multilabel"


def read_set(name: str, part: str, folder: Path = FOLDER) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Features (N, D) float32, targets (N, C) int8 and label names of `name`'s train or test part."""
    if not folder.is_dir():
        pytest.skip(f"no real multi-label sets: {folder} is absent")
    labels = [str(node.get("name")) for node in ET.parse(folder / f"{name}.xml").getroot()]
    attributes, rows = [], []
    with gzip.open(folder / f"{name}-{part}.arff.gz", "rt") as file:
        for line in map(str.strip, file):
            if line.lower().startswith("@attribute"):
                attributes.append(line.split()[1].strip("'\""))
            elif line and line[0] not in "@%":
                rows.append([float(value) for value in line.split(",")])
    table = np.array(rows, np.float32)
    is_label = np.isin(attributes, labels)
    targets = table[:, [attributes.index(label) for label in labels]].astype(np.int8)
    return table[:, ~is_label], targets, labels
