"""Small real projects for tests: numbered videos in sessions, a CSV of labels, a tiny random model."""

import csv
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurecache.annotations import Interval
from featurecache.annotations.table import OWN_COLUMNS
from featurecache.csv_fields import format_seconds, guard_cell
from featurecache.project.settings import Project, open_project
from featurecache.spec import FeatureSpace
from tests.make_videos import write_video

LABELS = ("ventilation", "stimulation")


def make_project(
    root: Path,
    model: Path,
    *,
    sessions: int = 6,
    clips: int = 4,
    labels: Sequence[str] = LABELS,
    extra: str = "",
    features: str = "",
) -> Project:
    """A project of one-second clips: one recording per session, half of the clips positive for each label."""
    (root / "videos").mkdir(parents=True)
    draw = random.Random(0)
    intervals: dict[str, list[Interval]] = {}
    for session in range(sessions):
        name = f"S{session}.mp4"
        # The comment gives each recording a content of its own.
        write_video(root / "videos" / name, count=5 * clips, fps=5, metadata={"comment": f"take {session}"})
        intervals[name] = sorted(
            Interval(start * 1_000_000, (start + 1) * 1_000_000, label)
            for label in labels
            for start in draw.sample(range(clips), clips // 2)
        )
    write_labels(root / "labels.csv", intervals)
    (root / "featurecache.toml").write_text(
        f"""
[data]
videos = "videos"
annotations = "labels.csv"
labels = {list(labels)}
[clips]
length_s = 1
stride_s = 1
[features]
model = "{model}"
prompt = "user: describe the hand . <video>"
frames = 4
dtype = "float32"
stored_dtype = "float32"
{features}
{extra}
"""
    )
    return open_project(root)


def write_labels(
    path: Path, intervals: Mapping[str, Sequence[Interval]], *, sessions: Mapping[str, str] | None = None
) -> None:
    """A table of annotations: intervals per recording, of which an empty sequence says that nothing happens in it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*OWN_COLUMNS, *(["session"] if sessions is not None else [])])
        for recording, own in intervals.items():
            session = [] if sessions is None else [guard_cell(sessions[recording])]
            for one in sorted(own):
                times = [format_seconds(one.start_us), format_seconds(one.end_us)]
                writer.writerow([guard_cell(recording), *times, guard_cell(one.label), *session])
            if not own:
                writer.writerow([guard_cell(recording), "", "", "", *session])


def edit(path: Path, old: str, new: str) -> None:
    """Replaces a text in a file, which must have it."""
    text = path.read_text()
    assert old in text, old
    path.write_text(text.replace(old, new))


def edited(project: Project, old: str, new: str) -> Project:
    """A project in whose settings a text was replaced."""
    edit(project.path, old, new)
    return open_project(project.root)


def set_model(project: Path, model: str) -> None:
    """Names another model in the settings."""
    path = project / "featurecache.toml"
    path.write_text(re.sub(r"model = .*", f'model = "{model}"', path.read_text()))


def damage_a_segment(project: Path) -> None:
    """Flips a bit of a stored feature."""
    shard = next((project / "features.zarr").glob("spaces/*/segments/*/features/c.0.0"))
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)


def make_table(project: Project) -> None:
    """Writes the project's clips.csv."""
    from featurecache.clips.csv_file import write_table
    from featurecache.clips.inventory import take_inventory
    from featurecache.clips.table import make_table as build

    write_table(
        build(project.settings, take_inventory(project))[0], project.clips, state_path=project.state / "clips.json"
    )


def fill_cache(
    project: Project, features: Mapping[str, npt.NDArray[np.floating]], name: str | None = None
) -> FeatureSpace:
    """Stores such features of clips, by clip id, as one that the settings select, or the first; gives their space."""
    from featurecache.clips.csv_file import read_table
    from featurecache.extraction.spaces import project_spaces
    from featurecache.files import sha256_of_file
    from featurecache.store import CacheWriter, Row

    spaces = project_spaces(project)[1]
    space = spaces[name or next(iter(spaces))]
    digests: dict[str, str] = {}
    with CacheWriter(project.cache, space, {}) as writer:
        for clip in read_table(project.clips).clips:
            digest = digests.setdefault(clip.recording, sha256_of_file(project.videos / clip.recording))
            times = np.linspace(clip.start_us, clip.end_us, 4).astype(np.int64)
            writer.add(Row(digest, clip.start_us, clip.end_us, features[clip.clip_id].astype(np.float32), times))
    return space


def failed_clip_ids(project: Project) -> set[str]:
    """The clips that failed_clips.csv explains, of any feature space."""
    from featurecache.extraction.failures import known_failures

    return {clip_id for clip_id, _ in known_failures(project).reasons}
