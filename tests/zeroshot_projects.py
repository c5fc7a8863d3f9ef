"""Small projects that models are asked about."""

import csv
from pathlib import Path

from tests.commands import run
from tests.projects import LABELS, make_project

CLIPS = 24


def set_up(root: Path, model: Path, judge: str) -> Path:
    """A project whose captions `judge` reads, a folder or an address; its clips.csv is made."""
    extra = f'[extract]\nbatch_size = 2\n[zeroshot]\njudge = "{judge}"\ncaption_tokens = 6\n'
    project = make_project(root, model, sessions=6, extra=extra).root
    folder = project / "prompts/zsc-j"
    folder.mkdir(parents=True)
    (folder / "caption.txt").write_text("<video> describe the baby .")
    for label in LABELS:
        (folder / f"{label}.txt").write_text('caption "{caption}" {label}\n')
    run("clips", "--config", project)
    return project


def rows_of(project: Path, method: str = "zsc-j") -> list[dict[str, str]]:
    """What was said of each clip, and how it was read."""
    with (project / f"runs/zeroshot-{method}/answers.csv").open() as file:
        return list(csv.DictReader(file))
