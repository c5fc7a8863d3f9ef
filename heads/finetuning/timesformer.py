"""The paper's supervised baseline: TimeSformer and a linear head trained on frames of clips, and the run of both.

A run has four parts: `plan_timesformer` reads what there is to train on, `TimesformerPlan.examined` decodes every clip
once, `TimesformerRun` measures and trains, and `finish` writes:

    bundle/                   what predicts: the model in transformers' own format, head, thresholds
    validation_metrics.json   validation scores at thresholds tuned there: optimistically biased
    learning.json             the learning curves
    best.json                 settings, feature space, seed and versions; written last
    checkpoint.safetensors    where training stood; gone when it is finished

Nothing is asked of the project's own backbone: no extraction, no tuned head. The trained model makes a feature space of
its own (`final/cls`), so `evaluate` and `predict` extract with it as with any backbone, and thresholds are set on what
it extracts. The head is the paper's (equation 1): linear on the class token, its bias at the log prior odds.

Defaults: 15 epochs in batches of 8, as TimeSformer was trained on Something-Something V2 (Bertasius et al.,
https://github.com/facebookresearch/TimeSformer, configs/SSv2/TimeSformer_divST_8_224.yaml). It was trained with SGD at
.005 in steps; the loop here is AdamW under a cosine, so the rates are those of fine-tuning
with AdamW: 5e-5 and a warm-up of a tenth (the video classification guide of transformers), weight decay .05 (VideoMAE,
Tong et al., https://arxiv.org/abs/2203.12602). The head learns at 1e-3, as in FT-C-LoRA. Validation ends it early.

Not here: the loop (`loop.py`), a search over these settings (`trials.py`), random crops: a frame is cropped in training
as it is cut when predicting.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from featurecache.backbones import find_model, read_config
from featurecache.backbones.timesformer import unfreeze, write_model
from featurecache.clips.csv_file import read_table
from featurecache.device import check_dtype
from featurecache.errors import TrainingDataError, UnsupportedModelError
from featurecache.extraction.boxes import RecordingBoxes
from featurecache.extraction.clip import ClipRecord
from featurecache.extraction.opening import open_planned
from featurecache.extraction.pixels import PixelStore
from featurecache.extraction.plan import sources_of
from featurecache.extraction.spaces import project_spaces
from featurecache.files import private_folder
from featurecache.project.settings import Project
from featurecache.spec import FeatureSpace
from heads.data import LabelledSplit
from heads.finetuning.data import PixelClips, check_targets, digest_of, labelled_splits
from heads.finetuning.encoder_network import BACKBONE, HEAD, EncoderNetwork
from heads.finetuning.loop import FineTuning
from heads.finetuning.ranks import Ranks
from heads.finetuning.run import Run
from heads.finetuning.settings import FinetuneSettings
from heads.finetuning.training_state import Group, positive_weight
from heads.methods import TIMESFORMER
from heads.models import Front, LinearHead, log_prior_odds
from heads.runs import ChooseTimeline, no_timeline
from heads.settings import HeadSettings

if TYPE_CHECKING:
    from featurecache.backbones.family import Inputs

INPUTS = "final/cls"


@dataclass(frozen=True, eq=False)
class TimesformerPlan:
    """What a run will do.

    Attributes:
        settings: Settings of the run.
        project: The user's project with TimeSformer as its backbone.
        inputs: TimeSformer without its weights.
        space: Feature space of the model that training begins with.
        labels: Names of the C labels.
        splits: Training and validation clips, by the split's name.
        store: The clips' frames.
        left_out: Labelled clips that cannot be decoded, and why.
    """

    settings: FinetuneSettings
    project: Project
    inputs: "Inputs"
    space: FeatureSpace
    labels: tuple[str, ...]
    splits: Mapping[str, LabelledSplit]
    store: PixelStore
    left_out: Mapping[str, str]

    @property
    def clips(self) -> int:
        """Of both splits."""
        return sum(len(split.Y) for split in self.splits.values())

    @property
    def clips_in_memory(self) -> int:
        """Clips whose decoded frames stay in memory; the others are decoded again in each epoch."""
        return min(self.clips, self.store.most)

    def to_mapping(self) -> dict[str, Any]:
        """What there is to train on, by name, ready for JSON."""
        return {
            "train_clips": len(self.splits["train"].Y),
            "validation_clips": len(self.splits["validation"].Y),
            "picture_bytes": self.clips * self.store.clip_bytes,
            "clips_in_memory": self.clips_in_memory,
        }

    def examined(self, on_progress: Callable[[int, int], None] = lambda _done, _all: None) -> "TimesformerPlan":
        """The plan after every clip was decoded once, without those that cannot be.

        Args:
            on_progress: Called with the number of clips done and of all, from any thread.

        Raises:
            TrainingDataError: If none of a split is left, or no clip with or without a label.
        """
        reasons = self.store.examine(on_progress)
        splits = {name: _without(split, reasons, name) for name, split in self.splits.items()}
        check_targets(splits["train"].Y, self.labels)
        return replace(self, splits=splits, left_out={**self.left_out, **reasons})


def plan_timesformer(
    project: Project,
    settings: FinetuneSettings,
    *,
    seen: frozenset[str] = frozenset(),
    allow_download: bool = False,
) -> TimesformerPlan:
    """Reads what there is to train on; decodes nothing and loads no weights.

    Args:
        project: The project; its clip table must exist.
        settings: Settings of the run.
        seen: Ids of clips that are labelled by a review with predictions in sight: they end no training.
        allow_download: Whether the model may be fetched from the hub.

    Raises:
        ClipTableError: If there is no sound clip table.
        ModelNotFoundError: If the model is not on this machine.
        SettingsError: If settings do not fit each other, or the model computes in float16.
        TrainingDataError: If a split has no labelled clips, or a label is on in all or none of them.
        UnsupportedModelError: If it is no TimeSformer.
    """
    features = project.settings.features
    settings.check(features.dtype, "finetune")
    folder = find_model(settings.model, allow_download=allow_download, setting="finetune.model")
    described = read_config(folder)
    if described.get("model_type") != "timesformer":
        raise UnsupportedModelError(
            f"finetune.model must be a TimeSformer, but {folder / 'config.json'} says "
            f"{described.get('model_type')!r}. Use such weights, e.g. facebook/timesformer-base-finetuned-ssv2."
        )
    frames: Any = described.get("num_frames", 8)  # as its own configuration class has it
    own = replace(
        project,
        settings=replace(
            project.settings, features=replace(features, model=str(folder), frames=frames, select=(INPUTS,))
        ),
    )
    model, spaces = project_spaces(own)
    inputs = model.open()
    table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
    splits = labelled_splits(table, seen)
    ids = {clip_id for split in splits.values() for clip_id in split.clip_ids or ()}
    _, source = sources_of(project, RecordingBoxes(project))
    found: list[ClipRecord] = []
    left_out: dict[str, str] = {}
    for clip in (clip for clip in table.clips if clip.clip_id in ids):
        recording, reason = source(clip.recording, clip.content)
        if recording is None:
            left_out[clip.clip_id] = reason
        else:
            found.append(ClipRecord(recording, clip.start_us, clip.end_us))
    splits = {name: _without(split, left_out, name) for name, split in splits.items()}
    check_targets(splits["train"].Y, table.labels)
    store = PixelStore(
        found,
        frames=inputs.frames,
        resize=inputs.frame_resize,
        decoders=project.settings.extract.decoders,
        most_bytes=settings.memory_gb * 1e9,
    )
    return TimesformerPlan(settings, own, inputs, spaces[INPUTS], table.labels, splits, store, left_out)


class TimesformerRun(Run):
    """A planned run: loads the model, measures, trains, and writes what predicts.

    Args:
        plan: What `plan_timesformer` gave, examined unless it is only to be measured.
        seed: Seed of the order of clips and of dropout.
        device: A torch device.
        folder: The run's folder.
        ranks: This process among its peers.

    Raises:
        FingerprintMismatchError: If the model's files changed since the plan was made.
        ModelNotFoundError: If the weights are damaged, or some are missing.
        SettingsError: If the device is not here or does not compute in `features.dtype`, or the model has fewer layers
            than are to be trained.
    """

    def __init__(
        self, plan: TimesformerPlan, *, seed: int, device: str, folder: Path, ranks: Ranks | None = None
    ) -> None:
        settings = plan.settings
        self.plan = plan
        check_dtype(plan.project.settings.features.dtype, device)  # of the products; steps are taken in float32
        clips = {name: PixelClips(split, plan.store) for name, split in plan.splits.items()}
        encoder: Any = open_planned(plan.project, plan.inputs, {INPUTS: plan.space}, dtype="float32", device=device)
        unfreeze(encoder, last_layers=settings.last_layers, gradient_checkpointing=settings.gradient_checkpointing)
        head = LinearHead(Front(plan.inputs.taps["final"].width), len(plan.labels))
        with torch.no_grad():
            head.output.bias.copy_(log_prior_odds(clips["train"].Y))
        self.network = EncoderNetwork(encoder, head.to(device))
        loop = FineTuning(
            self.network,
            [
                Group(BACKBONE, settings.learning_rate, settings.weight_decay),
                Group(HEAD, settings.head_learning_rate, settings.weight_decay),
            ],
            clips["train"],
            clips["validation"],
            positive_weight=positive_weight(clips["train"].Y, exponent=settings.positive_weight_exponent),
            **settings.of_loop(),
            seed=seed,
            device=device,
            autocast=torch.bfloat16 if plan.project.settings.features.dtype == "bfloat16" else None,
            ranks=ranks,
        )
        signature = {
            "settings": settings.deciding(),
            "seed": seed,
            "model": plan.space.fingerprint,
            "clips": digest_of(clips),
        }
        super().__init__(loop, settings, signature=signature, seed=seed, folder=folder)

    def finish(
        self,
        *,
        of_study: Mapping[str, Any] | None = None,
        choose_timeline: ChooseTimeline = no_timeline,
    ) -> dict[str, Any]:
        """Extracts validation with the trained model, and writes the run.

        Args:
            of_study: What a search knows about these settings; goes into `best.json`.
            choose_timeline: Gives the bundle's timeline settings before it is saved.

        Returns:
            The content of `best.json`.

        Raises:
            OSError: If it cannot be written.
            MissingFeaturesError: If clips of validation could not be extracted.
        """
        settings = self.plan.settings
        private_folder(self.folder)
        staged = self.folder / ".backbone"
        shutil.rmtree(staged, ignore_errors=True)
        write_model(self.network.encoder[0], staged)
        features = replace(self.plan.project.settings.features, model=str(staged.resolve()))
        project = replace(self.plan.project, settings=replace(self.plan.project.settings, features=features))
        return self._write(
            project,
            self.network.head,
            HeadSettings(
                inputs=INPUTS,
                normalization="none",
                learning_rate=settings.head_learning_rate,
                weight_decay=settings.weight_decay,
                positive_weight_exponent=settings.positive_weight_exponent,
                batch_size=settings.batch_size,
                epochs=settings.epochs,
                patience=settings.patience,
            ),
            labels=self.plan.labels,
            select=[INPUTS],
            method=TIMESFORMER,
            of_run={"left_out": len(self.plan.left_out), "finetune": settings.to_mapping(), **(of_study or {})},
            backbone=staged,
            choose_timeline=choose_timeline,
        )


def _without(split: LabelledSplit, gone: Mapping[str, str], name: str) -> LabelledSplit:
    """A split without some of its clips."""
    left = split.without(gone)
    if not len(left.Y):
        ids = split.clip_ids or ()
        raise TrainingDataError(
            f"the {name} split must have labelled clips that can be decoded, but none of its {len(ids)} can, the first "
            f"because {gone[ids[0]]}. See featurecache doctor."
        )
    return left
