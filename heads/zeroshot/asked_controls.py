"""What a zero-shot run asks besides the clips: about a black video, and of a judge about perfect captions.

Both are controls. They are asked once and kept in the run's folder, for as long as the feature spaces stay the same.
"""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featurecache.backbones import open_backbone
from featurecache.backbones.captioning import CAPTION_TAP, JUDGED_TAP
from featurecache.backbones.pooling import pool
from featurecache.device import device_of
from featurecache.errors import UnansweredError
from featurecache.extraction.plan import Plan
from featurecache.project.settings import Project
from heads.runs import write_document
from heads.zeroshot.answering import asked_about, caption_texts
from heads.zeroshot.judged import Judged, audit_judge, audited_targets
from heads.zeroshot.judges import open_judge
from heads.zeroshot.methods import ZeroShot
from heads.zeroshot.verdicts import Judge, row_of


class AskedControls:
    """The controls of a run that must be asked.

    Args:
        project: The project.
        plan: Of the run.
        asking: The method.
        folder: The run's.
    """

    def __init__(self, project: Project, plan: Plan, asking: ZeroShot, folder: Path) -> None:
        self._project, self._plan, self._asking, self._folder = project, plan, asking, folder

    def black(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """The answers about a black video by tap, (1, width); None where a judge gave none."""
        try:
            answers = self._asked_once("black_video.json", [], self._about_black)
        except UnansweredError:
            return None
        return {tap: np.array([row], np.float32) for tap, row in answers.items()}

    def judge(self, Y: npt.NDArray[np.integer] | None) -> dict[str, Any]:
        """What the judge says of perfect captions (`audit_judge`); nothing of a method without a judge.

        Args:
            Y: Targets of labelled clips, (N, C); None where there are none.
        """
        asking = self._asking
        if not isinstance(asking, Judged):
            return {}
        targets = audited_targets(asking.labels, Y)
        audit: dict[str, Any] = self._asked_once(
            "judge_audit.json", targets.tolist(), lambda: audit_judge(self._judge, asking, targets)
        )
        return {"judge": audit}

    @cached_property
    def _judge(self) -> Judge:
        assert isinstance(self._asking, Judged)  # noqa: S101  # of callers that looked
        return open_judge(self._project, self._asking.asked.judge, self._asking.asked.questions)

    def _about_black(self) -> dict[str, list[float]]:
        features, inputs = self._project.settings.features, self._plan.model.open()
        pooling_of = {space.tap: space.pooling for space in self._plan.spaces.values()}
        taps = list(pooling_of)
        backbone = open_backbone(inputs, dtype=features.dtype, device=device_of(self._project.settings.extract.device))
        pixels = torch.zeros(inputs.frames, inputs.image_px, inputs.image_px, 3, dtype=torch.uint8)
        encoded = backbone.encode_frames(backbone.normalize(pixels), taps)[None]
        answers = {tap: pool(states, pooling_of[tap])[0].tolist() for tap, states in backbone.states(encoded, taps)}
        if isinstance(self._asking, Judged):
            asked = self._asking.asked
            (caption,) = caption_texts(self._asking.wording, np.array([answers[CAPTION_TAP]]))
            verdicts = self._judge.ask(asked_about(asked.questions, caption))
            answers[JUDGED_TAP] = row_of(verdicts, asked.least_mass).tolist()
        return answers

    def _asked_once(self, name: str, of: list[Any], make: Callable[[], Any]) -> Any:
        """What a file of the run holds, made anew where it is of other feature spaces or of something else."""
        fingerprints = [space.fingerprint for space in self._plan.spaces.values()]
        try:
            known = json.loads((self._folder / name).read_bytes())
        except (OSError, ValueError):
            known = {}
        if (known.get("fingerprints"), known.get("of", [])) != (fingerprints, of):
            known = {"fingerprints": fingerprints, "of": of, "answers": make()}
            write_document(self._folder / name, known)
        return known["answers"]
