"""Search by words: the clips whose cached embedding is nearest to a text's.

Clips are ranked by the similarity of their `joint/mean` to the words: the mean over their frames of the cosine between
a frame and the text; of X-CLIP by the cosine of the clip and the text with the clip's prompt (`prompted/tokens`). A
clip that overlaps a better one of its recording is no hit of its own. Nothing is extracted, no video is read, and
nothing leaves the machine.

Hits are written as predictions are: a table that annotations are read from, or for each recording an ELAN file named
`*.predicted.eaf` with a tier `words (predicted)`, which no reader of annotations takes for one.
"""

import csv
import io
import mimetypes
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.annotations import Interval, add_predictions, eaf_bytes, new_document
from featurecache.annotations.saving import save_private
from featurecache.clips.clip import Clip
from featurecache.clips.csv_file import read_table
from featurecache.csv_fields import format_seconds, guard_cell
from featurecache.errors import MissingFeaturesError, UsageError
from featurecache.extraction.boxes import RecordingBoxes
from featurecache.extraction.failures import stored_clips
from featurecache.extraction.spaces import project_spaces
from featurecache.extraction.words import ProjectWords
from featurecache.files import private_folder
from featurecache.project.settings import Project
from featurecache.spec import FeatureSpace
from featurecache.store import FeatureCache, bfloat16

_CLIPS_AT_ONCE = 1024


@dataclass(frozen=True)
class Hit:
    """A clip that words were found in.

    Attributes:
        recording: Its recording's name.
        clip_id: Its id.
        start_us: Its start.
        end_us: Its end.
        similarity: Mean cosine of its frames, or cosine of the clip, and the words.
    """

    recording: str
    clip_id: str
    start_us: int
    end_us: int
    similarity: float


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        words: What was searched for.
        searched: Clips that were compared.
        missing: Clips of the table that the cache has no embedding of.
        hits: The best first.
        written: The files.
    """

    words: str
    searched: int
    missing: int
    hits: tuple[Hit, ...]
    written: tuple[Path, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """The document of `featurecache find --json`."""
        hits = [
            {
                **asdict(hit),
                "start_s": format_seconds(hit.start_us),
                "end_s": format_seconds(hit.end_us),
            }
            for hit in self.hits
        ]
        return {**asdict(self), "hits": hits}


def find(project: Project, words: str, *, top: int = 20, out: Path | None = None) -> Found:
    """Searches the cached embeddings of the project's clips.

    Args:
        project: The project; its model must be an image-text or video-text one.
        words: What to search for, as one would describe a picture of it.
        top: Hits wanted.
        out: A new `.csv` file; or an `.eaf`, beside which each recording with hits gets `NAME.RECORDING.predicted.eaf`.

    Raises:
        UsageError: If `out` is neither, or no hit is wanted.
        UnsupportedModelError: If the model has no text tower.
        SettingsError: If the words are none, or too many for the model.
        MissingFeaturesError: If no clip of the table has a cached embedding.
        OutdatedTableError: If features are of another crop box than a recording's name asks for.
        OutputExistsError: If a file to be written is there already.
    """
    if top < 1 or (out is not None and out.suffix.lower() not in (".csv", ".eaf")):
        raise UsageError(
            f"hits go into a .csv or an .eaf, 1 or more of them, but they are {top} into {out}. Correct it."
        )
    tower = ProjectWords(project)
    tower.check([words])
    _, spaces = project_spaces(project, select=[tower.feature])
    space = spaces[tower.feature]
    cache, clips, missing = _stored(project, space)
    similarity = _similarities(cache, clips, space, words, tower)
    hits = tuple(
        Hit(clip.recording, clip.clip_id, clip.start_us, clip.end_us, float(similarity[at]))
        for at, clip in _best(clips, similarity, top)
    )
    found = Found(words, len(clips), missing, hits)
    if out is None:
        return found
    private_folder(out.parent)
    write = _write_csv if out.suffix.lower() == ".csv" else _write_eafs
    return replace(found, written=tuple(write(project, found, out)))


def _stored(project: Project, space: FeatureSpace) -> tuple[FeatureCache, list[Clip], int]:
    """The cache, clips of the table with an embedding in it, each once, and how many have none."""
    cache = FeatureCache.open_if_made(project.cache)
    stored = stored_clips(cache, space.fingerprint) if cache else frozenset()
    table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
    RecordingBoxes(project).refuse_others(table)
    clips = [clip for clip in table.clips if clip.clip_id in stored]
    if cache is None or not clips:
        raise MissingFeaturesError(
            f"clips must have {space.tap}/{space.pooling} in the cache to be searched by words, but none has. "
            f'Add "{space.tap}/{space.pooling}" to features.select, then: featurecache extract.'
        )
    return cache, list({clip.clip_id: clip for clip in clips}.values()), len(table.clips) - len(clips)


def _similarities(
    cache: FeatureCache, clips: Sequence[Clip], space: FeatureSpace, words: str, tower: ProjectWords
) -> npt.NDArray[np.float64]:
    found = []
    for start in range(0, len(clips), _CLIPS_AT_ONCE):
        ids = [clip.clip_id for clip in clips[start : start + _CLIPS_AT_ONCE]]
        X = cache.load(ids, space.tap, space.pooling, space.fingerprint)
        found.append(tower.similarities(words, bfloat16.to_float32(X) if X.dtype == bfloat16.STORED else X))
    return np.concatenate(found)


def _best(clips: Sequence[Clip], similarity: npt.NDArray[np.float64], top: int) -> list[tuple[int, Clip]]:
    """The best clips, none overlapping a better one of its recording, with their places."""
    taken: dict[str, list[tuple[int, int]]] = {}
    chosen: list[tuple[int, Clip]] = []
    for at in np.argsort(-similarity, kind="stable").tolist():
        clip = clips[at]
        own = taken.setdefault(clip.recording, [])
        if all(clip.end_us <= start_us or end_us <= clip.start_us for start_us, end_us in own):
            own.append((clip.start_us, clip.end_us))
            chosen.append((at, clip))
            if len(chosen) == top:
                break
    return chosen


def _write_csv(_project: Project, found: Found, out: Path) -> list[Path]:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(["recording", "start_s", "end_s", "label", "similarity"])
    for hit in found.hits:
        times = format_seconds(hit.start_us), format_seconds(hit.end_us)
        writer.writerow([guard_cell(hit.recording), *times, guard_cell(found.words), f"{hit.similarity:.4f}"])
    save_private(out, text.getvalue().encode(), replace=False)
    return [out]


def _write_eafs(project: Project, found: Found, out: Path) -> list[Path]:
    written = []
    for recording, hits in groupby(sorted(found.hits, key=lambda hit: hit.recording), lambda hit: hit.recording):
        name = recording.replace("%", "%25").replace("/", "%2F")
        path = out.with_name(f"{out.stem.removesuffix('.predicted')}.{name}.predicted.eaf")
        link = Path(os.path.relpath((project.videos / recording).absolute(), out.parent.absolute())).as_posix()
        mime_type = mimetypes.guess_type(recording)[0] or "video/*"
        document = new_document(path.name, media_name=link, mime_type=mime_type)
        shown = [Interval(hit.start_us, hit.end_us, f"{hit.similarity:.2f}") for hit in hits]
        add_predictions(document, {found.words: shown}, time_origin_ms=0)
        save_private(path, eaf_bytes(document), replace=False)
        written.append(path)
    return written
