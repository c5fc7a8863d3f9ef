"""The judge that the settings name: a model folder, or a server on this machine."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from featurecache.backbones import find_model
from featurecache.backbones.judge_model import JudgeFiles, JudgeModel
from featurecache.device import device_of
from featurecache.errors import FingerprintMismatchError, SettingsError
from featurecache.extraction.speed import product_rate
from featurecache.project.settings import Project, parse_section
from featurecache.video.digests import DigestMemo
from heads.zeroshot.judge_server import FIRST_TOKENS, ServerJudge
from heads.zeroshot.settings import ZeroshotSettings
from heads.zeroshot.verdicts import Judge, Verdict


class LocalJudge:
    """A judge in this process, as `Judge`; its weights are loaded when it is asked first, after the captions are made.

    Args:
        project: The project.
        files: All of it but the weights.
        identity: What the files were found to be.
    """

    def __init__(self, project: Project, files: JudgeFiles, identity: Mapping[str, Any]) -> None:
        self._project, self._files, self._identity = project, files, identity

    @cached_property
    def _model(self) -> JudgeModel:
        settings = self._project.settings
        model = JudgeModel(self._files, dtype=settings.features.dtype, device=device_of(settings.extract.device))
        if _identity_of(self._project, self._files) != self._identity:
            raise FingerprintMismatchError(
                f"the judge's files must stay as they are while it is used, but those in {self._files.folder} changed. "
                "Run it again when nothing writes there."
            )
        return model

    def ask(self, questions: Sequence[str]) -> list[Verdict]:
        """As `Judge`."""
        return [Verdict(one.zero, one.one, one.said, False) for one in self._model.answers(questions)]


def judge_identity(project: Project, questions: Sequence[str]) -> dict[str, Any]:
    """What the judge is, JSON-ready, for the fingerprint; no weights are loaded.

    A served model is known by its name alone; the server is asked for it where the settings do not say it.

    Raises:
        SettingsError: If the settings name no judge, or a server elsewhere.
        FeatureCacheError: As `JudgeFiles` and `ServerJudge`.
    """
    settings = _settings(project)
    if not _is_served(settings):
        return _identity_of(project, _files(settings, questions))
    model = settings.judge_model or ServerJudge(settings.judge, "").model
    return {"kind": "server", "model": model, "first_tokens": FIRST_TOKENS}


def open_judge(project: Project, identity: Mapping[str, Any], questions: Sequence[str]) -> Judge:
    """The judge; a served one is there, a local one has its files checked.

    Args:
        project: The project.
        identity: What it must be.
        questions: What it will be asked, with `{caption}`.

    Raises:
        FingerprintMismatchError: If the settings name another judge.
        FeatureCacheError: As `judge_identity`.
    """
    settings = _settings(project)
    files = None if _is_served(settings) else _files(settings, questions)
    found = judge_identity(project, questions) if files is None else _identity_of(project, files)
    if found != dict(identity):
        raise FingerprintMismatchError(
            f"the judge must be the one that the answers are of ({identity.get('model', 'a model folder')}), but "
            f"zeroshot.judge = {settings.judge!r} is another one. Name that judge in the settings, or ask anew: "
            "featurecache zeroshot zsc-j."
        )
    if files is None:
        return ServerJudge(settings.judge, str(identity["model"]))
    return LocalJudge(project, files, found)


def judging_seconds(project: Project, questions: Sequence[str], caption_tokens: int) -> float | None:
    """About how long the questions about one caption take at the speed of products; None of a server."""
    settings = _settings(project)
    if _is_served(settings):
        return None
    files, features = _files(settings, questions), project.settings.features
    tokens = len(files.tree(questions)[0].tokens) + caption_tokens
    device = device_of(project.settings.extract.device)
    return 2 * files.values * tokens / product_rate(features.dtype, device)


def _identity_of(project: Project, files: JudgeFiles) -> dict[str, Any]:
    digests = DigestMemo(project.digest_memo)
    identity = files.identity(project.settings.features.dtype, digests.sha256)
    digests.save()
    return identity


def _settings(project: Project) -> ZeroshotSettings:
    settings = parse_section(project.settings.zeroshot, ZeroshotSettings, "zeroshot")
    if not settings.judge:
        raise SettingsError(
            "zeroshot.judge must name the language model that judges captions, but it is not set. Set it to a model "
            "folder (e.g. of mistralai/Mistral-7B-Instruct-v0.2) or to a server on this machine "
            "(http://127.0.0.1:8000/v1)."
        )
    return settings


def _is_served(settings: ZeroshotSettings) -> bool:
    return "://" in settings.judge


def _files(settings: ZeroshotSettings, questions: Sequence[str]) -> JudgeFiles:
    return JudgeFiles(find_model(settings.judge, setting="zeroshot.judge"), questions)
