"""What a plan of questions lacks, asked: by the video language model, and of captions by the judge after it.

The two passes of ZSC-J are apart: captions are stored like any answers, and another judge reads them without a second
pass over the videos. Judging claims recordings as extraction does, saves as it goes, and asks about captions that are
word for word the same once.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

from featurecache import FeatureCache
from featurecache.backbones.captioning import CAPTION_TAP, JUDGED_TAP, JudgedCaption
from featurecache.backbones.wording import Wording
from featurecache.errors import UnansweredError, WithdrawnRecordingError
from featurecache.extraction.clip import ClipRecord
from featurecache.extraction.failures import FailedClip, record_failures, stored_clips
from featurecache.extraction.pipeline import Extraction, Progress
from featurecache.extraction.plan import Plan
from featurecache.extraction.run import run_plan, still_missing
from featurecache.extraction.spaces import project_spaces
from featurecache.project.settings import Project
from featurecache.store import CacheWriter, Row
from featurecache.store.clip_columns import Wanted
from heads.loading import read_features
from heads.zeroshot.judges import open_judge
from heads.zeroshot.verdicts import Judge, quoted, row_of

CAPTION, JUDGED = f"{CAPTION_TAP}/mean", f"{JUDGED_TAP}/mean"
Show = Callable[[Progress], None]


def run_asked(
    project: Project,
    plan: Plan,
    *,
    on_progress: Show = lambda _: None,
    run: Callable[[Plan], Extraction] | None = None,
) -> Extraction:
    """Carries a plan out, whatever it asks; of features of a model's states as `run_plan`.

    Args:
        project: The project.
        plan: The plan.
        on_progress: Called after each batch, each failure and each judged caption.
        run: What runs the video language model; None: this process.

    Raises:
        FeatureCacheError: As `run_plan`, and of ZSC-J as `open_judge`.
        JudgeUnreachableError: If a served judge answers no more; what was answered is saved.
    """
    ask = run or (lambda one: run_plan(project, one, on_progress=on_progress))
    if not isinstance(plan.asked, JudgedCaption) or not plan.asked.questions:
        return ask(plan)
    if not plan.work:
        return ask(plan)
    judge = open_judge(project, plan.asked.judge, plan.asked.questions)  # before hours of captions
    captions = captions_plan(project, plan)
    said = ask(captions)
    return _Judging(project, plan, captions, judge).run(said, on_progress)


def captions_plan(project: Project, plan: Plan) -> Plan:
    """The part of a plan that needs the video language model: captions that the cache lacks."""
    assert isinstance(plan.asked, JudgedCaption)  # noqa: S101  # of callers that looked
    _, spaces = project_spaces(project, select=[CAPTION], asked=plan.asked)
    missing = still_missing(project, replace(plan, spaces=spaces))
    work = [tuple(replace(clip, wanted=(CAPTION,)) for clip in clips if clip.clip_id in missing) for clips in plan.work]
    bytes_of = {CAPTION: plan.bytes_of.get(CAPTION, 0)}
    return replace(plan, spaces=spaces, work=tuple(filter(None, work)), bytes_of=bytes_of)


def caption_texts(wording: Wording, tokens: npt.NDArray[np.number]) -> list[str]:
    """Captions in words, of their token ids (N, new tokens)."""
    return [wording.text(row.astype(np.int64).tolist()) for row in tokens]


def asked_about(questions: Sequence[str], caption: str) -> list[str]:
    """The questions about a caption, which is quoted."""
    return [question.replace("{caption}", quoted(caption)) for question in questions]


class _Judging:
    """The second pass: stored captions in, the judge's answers out."""

    def __init__(self, project: Project, plan: Plan, captions: Plan, judge: Judge) -> None:
        assert isinstance(plan.asked, JudgedCaption)  # noqa: S101  # of a caller that looked
        self._project, self._plan, self._asked, self._judge = project, plan, plan.asked, judge
        self._caption_space, self._space = captions.spaces[CAPTION], plan.spaces[JUDGED]
        self._wording = Wording(plan.model.open())
        self._known: dict[str, npt.NDArray[np.float32]] = {}
        self._failures: list[FailedClip] = []

    def run(self, said: Extraction, on_progress: Show) -> Extraction:
        """Judges what the plan lacks.

        Args:
            said: What the first pass did.
            on_progress: Called after each caption.
        """
        began, total = time.monotonic(), self._plan.todo
        done = claimed_by_others = 0

        def now() -> Progress:
            failed = len(self._failures)
            elapsed_s = said.progress.elapsed_s + time.monotonic() - began
            return replace(
                said.progress,
                extracted=done,
                failed=failed,
                claimed_by_others=claimed_by_others,
                total=total,
                elapsed_s=elapsed_s,
            )

        provenance = {"judge": str(self._asked.judge.get("model", "")), "featurecache": version("featurecache")}
        failed = {failure.clip_id for failure in said.failures}
        with CacheWriter(self._project.cache, self._space, provenance) as writer:
            cache = FeatureCache.open(self._project.cache)
            captions = stored_clips(cache, self._caption_space.fingerprint)
            self._remember(cache, captions)
            for clips in self._plan.work:
                sha256 = clips[0].recording.sha256
                lacks = writer.lacks(Wanted.of([sha256], 0, [clip.span for clip in clips]))
                lacking = [one for one, is_lacking in zip(clips, lacks, strict=True) if is_lacking]
                lacking = [one for one in lacking if one.clip_id not in failed]
                ready = [one for one in lacking if one.clip_id in captions] if writer.claim(sha256) else []
                claimed_by_others += len(lacking) - len(ready)
                if not ready:
                    continue
                ids = [clip.clip_id for clip in ready]
                texts = caption_texts(self._wording, read_features(cache, ids, self._caption_space))
                timestamps = cache.timestamps_us(ids, space=self._caption_space.fingerprint)
                for clip, text, times_us in zip(ready, texts, timestamps, strict=True):
                    row = self._row(clip, text)
                    if row is not None:
                        try:
                            writer.add(Row(sha256, clip.start_us, clip.end_us, row, times_us))
                            done += 1
                        except WithdrawnRecordingError as error:
                            self._fail(clip, str(error))
                    on_progress(now())
        failures = (*said.failures, *self._failures)
        if self._plan.table is not None:
            record_failures(self._project, {JUDGED: self._space}, failures, table=self._plan.table)
        return Extraction(now(), failures, said.checked)

    def _remember(self, cache: FeatureCache, captions: frozenset[str]) -> None:
        """Takes over what the judge said about captions before, of whatever clips."""
        both = sorted(stored_clips(cache, self._space.fingerprint) & captions)
        if both:
            texts = caption_texts(self._wording, read_features(cache, both, self._caption_space))
            self._known = dict(zip(map(quoted, texts), read_features(cache, both, self._space), strict=True))

    def _row(self, clip: ClipRecord, text: str) -> npt.NDArray[np.float32] | None:
        """The answers about a clip's caption; None where there was none, which fails the clip."""
        key = quoted(text)
        if key not in self._known:
            try:
                verdicts = self._judge.ask(asked_about(self._asked.questions, text))
            except UnansweredError as error:
                self._fail(clip, f"the judge gave no answer: {error}")
                return None
            self._known[key] = row_of(verdicts, self._asked.least_mass)
        return self._known[key]

    def _fail(self, clip: ClipRecord, reason: str) -> None:
        self._failures.append(FailedClip(clip.clip_id, clip.recording.name, *clip.span, reason))
