"""What tests of extraction do to a project: select features, extract, and count what lies on disk."""

import json

import zarr

from featurecache.extraction.plan import plan_extraction
from featurecache.extraction.run import run_plan
from featurecache.project.settings import Project, open_project


def extracted(project: Project, **options) -> int:
    """Extracts; how many clips."""
    plan = plan_extraction(project, **options)
    return run_plan(project, plan).progress.extracted


def selecting(project: Project, *names: str) -> Project:
    """The same project with other selected features."""
    settings = project.root / "featurecache.toml"
    lines = [line for line in settings.read_text().splitlines() if not line.startswith("select = ")]
    place = lines.index("[features]") + 1
    settings.write_text("\n".join([*lines[:place], f"select = {list(names)}", *lines[place:]]) + "\n")
    return open_project(project.root)


def rows_on_disk(project: Project) -> dict[str, int]:
    """Rows on disk of each feature space, repeated ones counted."""
    held: dict[str, int] = {}
    for path in project.cache.glob("spaces/*/segments/0*"):
        inputs = json.loads((path.parents[1] / "zarr.json").read_text())["attributes"]["featurecache"]["inputs"]
        name = f"{inputs['tap']}/{inputs['pooling']}"
        held[name] = held.get(name, 0) + zarr.open_group(path, mode="r")["key"].shape[0]
    return held


def count_rows(project: Project) -> int:
    """Rows on disk of all feature spaces, repeated ones counted."""
    return sum(rows_on_disk(project).values())
