"""A bundle: a folder that predicts alone. `head.safetensors` holds the numbers, `bundle.json` all the rest.

Where the backbone was fine-tuned, `adapter/` holds the adapter in PEFT's format, or `backbone/` the whole model in
transformers'; the digests of their files are in the document and in the feature spaces that they make.

Notable choices: `bundle.json` carries the sha256 of the head and the complete feature space of every selected feature
it reads, so a bundle knows whether features are its own; where it reads several side by side, their fingerprints are
joined by `+` as their names are. `bundle.json` ends in a digest of itself. The folder is written beside its place and
renamed, so it is whole or absent; nothing is pickled; loading checks every field and names what is wrong.
"""

import hashlib
import json
import platform
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError

from featurecache.backbones.adapter_files import Adapter, open_adapter
from featurecache.clips.leakage import Spans, sessions_in
from featurecache.errors import BundleError, FingerprintMismatchError
from featurecache.files import private_folder, write_private
from featurecache.project.features import plain_crop
from featurecache.project.settings import Project
from featurecache.spec import FeatureSpace, canonical_json, differences, sealed
from heads.bundle_files import (
    ADAPTER_NAME,
    BACKBONE_NAME,
    DOCUMENT_NAME,
    FORMAT,
    FORMAT_WITH_RULES,
    HEAD_NAME,
    adapter_in,
    backbone_in,
    checked_inputs,
    checked_labels,
    copy_files,
    damaged,
    file_digests,
    read_files,
)
from heads.clip_rule import ClipRule
from heads.methods import FT_C_LORA, TIMESFORMER, ZS_TEXT, method_of_head, method_of_question
from heads.prior import Prior, prior_tensors, taken_prior
from heads.samples.joining import selected
from heads.scoring.calibration import Calibration
from heads.scoring.exclusive import predicted_labels
from heads.settings import OF_FRAMES, HeadSettings
from heads.timelines.timeline import exclusive_groups
from heads.timelines.tuning import TunedTimeline, save_timeline

if TYPE_CHECKING:
    from featurecache.backbones.asking import Asked
    from heads.models import Head


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained head with all that is needed to use it.

    Attributes:
        head: The head; takes features as the cache stores them.
        labels: Names of the C labels.
        thresholds: A label is on where its score is at least this, shape (C,), float64.
        settings: Settings that the head was trained with.
        spaces: The feature spaces it was trained on, in the order in which `settings.inputs` names them.
        versions: Versions of what trained it, by package name.
        calibration: Fitted on validation; None where there is none.
        adapter: The folder of the adapter that the backbone is run with; None for the backbone as it is.
        backbone: The folder of a model of its own; None where the project's serves.
        fitted_on: Stretches of the recordings that trained, chose or tuned it, where these are known.
        clips: What a clip was when it was fitted; None where that is not known.
        exclusive: Groups of labels of which it predicts one at most for a clip.
        words: Of a head that was made from words alone: the text tower's fingerprint and the prompts, with the sizes of
            the `generator` where clips change the words' vectors; None of others.
        ignored: Of a head that was fitted without clusters of tokens: `input`, whose tokens they are of, the numbers of
            the `clusters`, and the digest of the `audited` bundle; None of others.
        prior: What `settings.prior` stands for; None where that is "none".
    """

    head: "Head"
    labels: tuple[str, ...]
    thresholds: npt.NDArray[np.float64]
    settings: HeadSettings
    spaces: tuple[FeatureSpace, ...]
    versions: Mapping[str, str]
    calibration: Calibration | None = None
    adapter: Path | None = None
    backbone: Path | None = None
    fitted_on: Spans = field(default_factory=dict)
    clips: ClipRule | None = None
    exclusive: tuple[tuple[str, ...], ...] = ()
    words: Mapping[str, Any] | None = None
    ignored: Mapping[str, Any] | None = None
    prior: Prior | None = None

    @property
    def is_zero_shot(self) -> bool:
        """Whether nothing was trained: it reads answers, or its head was made from words."""
        return self.asked is not None or self.words is not None

    @property
    def asked(self) -> "Asked | None":
        """What the model is asked, whose answers it reads; None where it reads the model's states."""
        fields = self.spaces[0].inputs.get("asked")
        if fields is None:
            return None
        from featurecache.backbones.asking import asked_of

        return asked_of(fields)

    @property
    def is_fine_tuned(self) -> bool:
        """Whether training changed what the head reads."""
        return self.adapter is not None or self.backbone is not None

    @property
    def why_not_refitted(self) -> str:
        """Why cached features and its settings do not give its head again, in words; empty where they do."""
        if self.ignored is not None:
            return "was fitted without clusters of tokens"
        return f"is of {self.method}" if self.is_fine_tuned or self.is_zero_shot else ""

    @property
    def method(self) -> str:
        """What it is by the paper's names: FT-LC, FT-C-LoRA, TimeSformer, ..."""
        if self.backbone is not None:
            return TIMESFORMER
        if self.words is not None:
            return ZS_TEXT
        if self.asked is not None:
            return method_of_question(self.asked.kind)
        return FT_C_LORA if self.adapter is not None else method_of_head(self.settings.kind, self.settings.prior)

    @property
    def opened_adapter(self) -> Adapter | None:
        """Its adapter, for who runs the backbone."""
        return None if self.adapter is None else open_adapter(self.adapter)

    def project_of(self, project: Project) -> Project:
        """The project that makes the features the bundle reads: of its clips' length, and of its own model, if any."""
        if self.clips is not None:
            length_s = Decimal(self.clips.length_us) / 1_000_000
            clips = replace(project.settings.clips, length_s=length_s)
            project = replace(project, settings=replace(project.settings, clips=clips))
        if self.backbone is None:
            return project
        made, own_crop = self.spaces[0].inputs, project.settings.features.crop  # which names frames that stay whole
        crop = made["preprocessing"].get("crop")
        features = replace(
            project.settings.features,
            model=str(self.backbone.resolve()),
            frames=made["sampling"]["frames"],
            resize=made["preprocessing"]["resize"],
            crop=own_crop if plain_crop(own_crop) == crop else crop,
            dtype=made["backbone"]["compute_dtype"],
            stored_dtype=made["stored_dtype"],
            select=tuple(self.selected),
        )
        return replace(project, settings=replace(project.settings, features=features))

    @property
    def selected(self) -> dict[str, FeatureSpace]:
        """The feature spaces it reads by the name of the selected feature (`tap/pooling`), in order."""
        return dict(zip(selected(self.settings.inputs), self.spaces, strict=True))

    @property
    def fingerprint(self) -> str:
        """Of what it reads: the fingerprints of its feature spaces, joined by `+`."""
        return "+".join(space.fingerprint for space in self.spaces)

    @property
    def feature_width(self) -> int:
        """D, the width of the features it takes."""
        return self.head.front.feature_width

    @property
    def digest(self) -> str:
        """sha256 of the document, which holds the head's: 64 hex digits."""
        return hashlib.sha256(canonical_json(self._document(self._head_bytes())).encode()).hexdigest()

    def scores(self, X: npt.NDArray[np.floating], *, fingerprint: str) -> npt.NDArray[np.float32]:
        """Each label's probability.

        Args:
            X: Features, shape (N, D), or (N, T, D) of frames, float16 or float32; several side by side.
            fingerprint: Fingerprints of the feature spaces that X comes from, joined by `+`.

        Returns:
            Probabilities, shape (N, C).

        Raises:
            FingerprintMismatchError: If these are not the spaces the head was trained on.
            BundleError: If X has another width.
        """
        if fingerprint != self.fingerprint:
            raise self._mismatch(fingerprint.split("+"))
        from heads.models import PromptedHead, head_scores

        is_of_frames = self.settings.kind in OF_FRAMES or isinstance(self.head, PromptedHead)
        if X.ndim != 2 + is_of_frames or X.shape[-1] != self.feature_width:
            shape = f"(N, {'T, ' if is_of_frames else ''}{self.feature_width})"
            raise BundleError(f"features must have shape {shape}, but have {X.shape}. Load them from the cache.")
        return head_scores(self.head, X)

    def predicted(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """What it predicts of clips with these scores: (N, C) -> (N, C)."""
        return predicted_labels(scores, self.thresholds, self.labels, self.exclusive)

    def _mismatch(self, given: list[str]) -> FingerprintMismatchError:
        """What differs between the feature spaces it reads and those given."""
        if len(given) != len(self.spaces):
            found = f"{len(given)} feature spaces are given where it reads {self.settings.inputs}"
        else:
            pairs = zip(self.selected.items(), given, strict=True)
            name, own, other = next((name, own, one) for (name, own), one in pairs if own.fingerprint != one)
            found = f"those of {name} must be of {own.fingerprint[:16]} and are of {other[:16]}"
        return FingerprintMismatchError(
            f"features must be of the bundle's feature spaces, but {found}. Extract with the settings the head was "
            "trained on, or train a new head."
        )

    def check_spaces(self, made: Mapping[str, FeatureSpace]) -> None:
        """Refuses a project that makes other features than the bundle reads.

        Args:
            made: The feature spaces that the project's settings make, by the names in `selected`.

        Raises:
            FingerprintMismatchError: Naming the first input that differs.
        """
        for name, wanted in self.selected.items():
            unlike = differences(wanted, made[name])
            if unlike:
                where, (theirs, ours) = next(iter(unlike.items()))
                raise FingerprintMismatchError(
                    f"the project must make the features that the bundle reads, but {where} differs (bundle "
                    f"{theirs!r}, project {ours!r}{f'; {len(unlike) - 1} more' if len(unlike) > 1 else ''}). "
                    "Use it in the project that trained it, or train again: featurecache tune."
                )

    def check_unseen(self, clip_ids: Sequence[str], sessions: Sequence[str], split: str) -> None:
        """Refuses clips to be scored on of which a session trained, chose or tuned the bundle.

        Args:
            clip_ids: N clip ids.
            sessions: The session of each.
            split: What the clips are called, for the message.

        Raises:
            BundleError: Naming the sessions.
        """
        seen = sessions_in(clip_ids, sessions, self.fitted_on)
        if seen:
            named = ", ".join(seen[:5]) + (", ..." if len(seen) > 5 else "")
            raise BundleError(
                f"a bundle must be scored on sessions that it has not seen, but {len(seen)} of the {split} split "
                f"({named}) trained or tuned it: clips.csv has other splits than then. Put those back, or tune again."
            )

    def _head_bytes(self) -> bytes:
        from safetensors.torch import save

        own = self.head.state_dict() | prior_tensors(self.prior)
        return bytes(save({name: one.contiguous() for name, one in own.items()}))

    def _document(self, head_bytes: bytes) -> dict[str, Any]:
        return {
            "format": FORMAT_WITH_RULES if self.exclusive else FORMAT,
            "labels": list(self.labels),
            "thresholds": self.thresholds.tolist(),
            "settings": self.settings.to_mapping(),
            "calibration": None if self.calibration is None else self.calibration.to_mapping(),
            "inputs": {
                name: {"fingerprint": space.fingerprint, "feature_inputs": dict(space.inputs)}
                for name, space in self.selected.items()
            },
            "part_widths": list(self.head.front.part_widths),
            "feature_width": self.feature_width,
            "head_sha256": hashlib.sha256(head_bytes).hexdigest(),
            "adapter": None if self.adapter is None else dict(open_adapter(self.adapter).sha256),
            **({} if self.backbone is None else {"backbone": file_digests(self.backbone)}),
            **({} if self.clips is None else {"clips": self.clips.to_mapping()}),
            **({"exclusive": [list(group) for group in self.exclusive]} if self.exclusive else {}),
            **({} if self.words is None else {"words": dict(self.words)}),
            **({} if self.ignored is None else {"ignored": dict(self.ignored)}),
            **({} if self.prior is None else {"prior": dict(self.prior.made_of)}),
            "fitted_on": {content: [list(span) for span in spans] for content, spans in self.fitted_on.items()},
            "versions": dict(self.versions),
        }


def tool_versions() -> dict[str, str]:
    """Versions of what decides a trained head's numbers."""
    packages = ("featurecache", "numpy", "optuna", "torch")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def save_bundle(bundle: Bundle, path: Path, *, timeline: TunedTimeline | None = None) -> None:
    """Writes a bundle's folder, whole or not at all; one that is there is replaced.

    Args:
        bundle: The bundle.
        path: Its folder.
        timeline: Timeline settings that were chosen for it; None leaves the defaults.

    Raises:
        OSError: If it cannot be written.
    """
    private_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        private_folder(temporary)
        head_bytes = bundle._head_bytes()
        write_private(temporary / HEAD_NAME, head_bytes)
        text = json.dumps(sealed(bundle._document(head_bytes)), indent=2, allow_nan=False) + "\n"
        write_private(temporary / DOCUMENT_NAME, text.encode())
        if timeline is not None:
            save_timeline(timeline, temporary)
        if bundle.adapter is not None:
            copy_files(bundle.adapter, open_adapter(bundle.adapter).sha256, temporary / ADAPTER_NAME)
        if bundle.backbone is not None:
            copy_files(bundle.backbone, file_digests(bundle.backbone), temporary / BACKBONE_NAME)
        if path.exists():
            replaced = path.with_name(f"{temporary.name}.replaced")
            path.rename(replaced)
            temporary.rename(path)
            shutil.rmtree(replaced)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_bundle(path: Path | str) -> Bundle:
    """Reads a bundle and checks all of it.

    Raises:
        BundleError: If a file is missing, damaged, or does not fit the other; or the format is another.
    """
    path = Path(path)
    document, head_bytes = read_files(path)
    try:
        return _parse(document, head_bytes, path)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, BundleError):
            raise
        raise damaged(path, f"reading it gave {type(error).__name__}: {error}") from error


def _parse(document: Mapping[str, Any], head_bytes: bytes, path: Path) -> Bundle:
    labels, thresholds = checked_labels(document, path)
    settings, spaces = checked_inputs(document, path)
    exclusive = tuple(tuple(group) for group in document.get("exclusive", ()))
    exclusive_groups(exclusive, labels)
    width, part_widths = document["feature_width"], document["part_widths"]
    import torch  # not before all else is known to be sound: it takes seconds
    from safetensors.torch import load

    from heads.models import Front, build_head

    tensors, words = load(head_bytes), document.get("words")
    axes = tensors["front.axes"].shape[1] if "front.axes" in tensors else 0  # fewer than asked where the rank was lower
    if axes > settings.components:
        raise damaged(path, f"size mismatch: {axes} components where the settings say {settings.components}")
    with torch.device("meta"):  # no memory is taken for sizes that the file does not have
        front = Front(width, unit_length=settings.normalization == "l2", components=axes, part_widths=part_widths)
        head = build_head(settings.kind, front, len(labels), hidden_widths=settings.hidden_widths, words=words)
    prior = taken_prior(tensors, document, settings, part_widths)
    head.load_state_dict(tensors, assign=True)
    if not all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise damaged(path, f"{HEAD_NAME} holds numbers that are not finite float32")
    seen, calibration = document.get("fitted_on", {}), document["calibration"]
    return Bundle(
        head.eval(),
        labels,
        thresholds,
        settings,
        spaces,
        dict(document["versions"]),
        None if calibration is None else Calibration.from_mapping(calibration, len(labels)),
        adapter_in(path, document["adapter"]),
        backbone_in(path, document.get("backbone")),
        fitted_on={content: [(int(start), int(end)) for start, end in spans] for content, spans in seen.items()},
        clips=None if document.get("clips") is None else ClipRule.from_mapping(document["clips"]),
        exclusive=exclusive,
        words=words,
        ignored=document.get("ignored"),
        prior=prior,
    )
