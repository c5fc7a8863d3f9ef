"""Whether the audit finds a cue that only training sessions have, and lists nothing where there is none.

    python -m benchmarks.bench_shortcuts [--quick] [--seeds N]

Each seed draws the demo's recordings anew, extracts `final/mean` and `final/tokens`, fits a linear head by the convex
solver and audits it at a false-discovery rate of 0.1: once as drawn, and once with a square of 20 x 20 pixels (of
96 x 128) in the suction clips of training sessions. Then the head is fitted without the first listed cluster, and
average precision of suction is taken on the test sessions, which never show the square. Of some seeds suction cannot be
tested: its clips are in too few sessions.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.targets import print_document
from featurecache import FeatureCache, extract, make_clips
from featurecache.clips.csv_file import read_table
from featurecache.demo.dataset import encode_h264, make_dataset
from featurecache.demo.scenes import Recording, make_recording
from featurecache.demo.script import Script
from featurecache.project.settings import Project, open_project
from featurecache.workflow.demo import make_demo
from heads import load_bundle, train
from heads.loading import load_split
from heads.scoring.metrics import average_precision
from heads.sections import SECTIONS
from heads.workflow.ignoring import ignore
from heads.workflow.shortcuts import shortcuts

CUE_LABEL, RATE = "suction", 0.1
SETTINGS = '\nkind = "linear"\nsolver = "convex"\nl2 = 0.05\ninputs = "final/mean"\n'


@dataclass(frozen=True)
class WithCue:
    """A drawn recording that shows a square during some stretches."""

    recording: Recording
    spans_s: tuple[tuple[float, float], ...]

    @property
    def script(self) -> Script:
        """What happens when."""
        return self.recording.script

    def frames(self, times_s: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        """The drawn moments with the square."""
        pixels = self.recording.frames(times_s)
        for frame, time_s in zip(pixels, times_s, strict=True):
            if any(start <= time_s + 1e-9 < end for start, end in self.spans_s):
                frame[8:28, 92:112] = (255, 0, 220)
        return pixels


def draw(folder: Path, seed: int, sessions: int) -> Project:
    """The demo's project with recordings of another seed."""
    make_demo(folder, sessions=2, recordings_per_session=1, sections=SECTIONS)
    make_dataset(folder, seed=seed, sessions=sessions)
    path = folder / "featurecache.toml"
    text = path.read_text().replace("final/motion", "final/tokens", 1).replace(', "layer_2/mean"', "", 1)
    path.write_text(text.replace("\n[train]", "\n[train]" + SETTINGS + "#", 1))
    project = open_project(folder)
    make_clips(project)
    return project


def add_cue(project: Project, seed: int) -> None:
    """Draws the square into the clips of the label of training sessions."""
    table = read_table(project.clips)
    at = table.labels.index(CUE_LABEL)
    spans: dict[str, list[tuple[float, float]]] = {}
    for clip in table.clips:
        if clip.split == "train" and clip.targets[at] == 1:
            spans.setdefault(clip.recording, []).append((clip.start_us / 1e6, clip.end_us / 1e6))
    for name, own in spans.items():
        session, index = int(Path(name).parent.name[1:]) - 1, ord(Path(name).stem[-1]) - ord("a")
        recording = make_recording("dataset", seed, session, index, 42.0)
        (project.videos / name).write_bytes(encode_h264(WithCue(recording, tuple(own))))  # type: ignore[arg-type]
    make_clips(project)


def precision_on_test(project: Project, bundle: Path) -> float:
    """Average precision of the label on the test sessions."""
    head = load_bundle(bundle)
    data = load_split(read_table(project.clips), "test", FeatureCache.open(project.cache), head.selected).data
    scores = head.scores(data.of(head.settings.inputs).X, fingerprint=head.fingerprint)
    at = head.labels.index(CUE_LABEL)
    return float(average_precision(data.Y[:, at], scores[:, at]))


def measure(folder: Path, seed: int, sessions: int, *, cue: bool) -> dict[str, Any]:
    """What is listed, how long it took, and average precision on test sessions with and without the first cluster."""
    project = draw(folder, seed, sessions)
    if cue:
        add_cue(project, seed)
    extract(project)
    bundle = train(project).bundle
    started = time.process_time()
    found = shortcuts(project, bundle=bundle, rate=RATE)
    figures: dict[str, Any] = {
        "listed": [f"{one.label} {one.p:.3f}" for one in found.found],
        "nearest": [f"{one.label} {one.p:.3f}" for one in found.nearest],
        "least_p": round(found.tested[CUE_LABEL].least_p, 4),
        "cpu_s": round(time.process_time() - started, 1),
        "test_precision": round(precision_on_test(project, bundle), 3),
    }
    if found.found:
        without = ignore(project, [found.found[0].cluster], bundle=bundle).bundle
        figures["test_precision_without"] = round(precision_on_test(project, without), 3)
    return figures


def main() -> None:
    """Run the seeds and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="eight sessions of one seed, which cannot test suction")
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    sessions, seeds = (8, [1]) if options.quick else (20, list(range(1, options.seeds + 1)))
    figures: dict[str, Any] = {}
    for seed in seeds:
        for cue in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                figures[f"seed_{seed}_{'cue' if cue else 'drawn'}"] = measure(
                    Path(folder) / "demo", seed, sessions, cue=cue
                )
    with_cue = [one for name, one in figures.items() if name.endswith("cue")]
    found = sum(bool(one["listed"]) and one["listed"][0].startswith(CUE_LABEL) for one in with_cue)
    wrong = sum(bool(one["listed"]) for name, one in figures.items() if name.endswith("drawn"))
    targets = [
        ("share of cues that are the first listed", found / len(seeds), 1.0, 0.0, "higher"),
        ("share of audits without a cue that list anything", wrong / len(seeds), RATE, 1.0, "lower"),
    ]
    print_document("shortcuts", figures, targets, quick=options.quick)


if __name__ == "__main__":
    main()
