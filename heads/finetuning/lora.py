"""FT-C-LoRA: adapters in the language model trained with the head that the search found, and the run that keeps them.

A run has four parts, so that what it will cost is known before it is paid: `plan_lora` says what is missing from the
cache, extraction fills it (`featurecache.extraction.run.run_plan`), `LoraRun` measures and trains, `finish` writes:

    bundle/                   what predicts: head, adapter, thresholds
    validation_metrics.json   validation scores at thresholds tuned there: optimistically biased
    learning.json             the learning curves
    best.json                 settings, feature spaces, seed and versions; written last
    checkpoint.safetensors    where training stood; gone when it is finished

Defaults are LLaVA's LoRA recipe (Liu et al., https://arxiv.org/abs/2310.03744; scripts/v1_5/finetune_lora.sh): rank
128, alpha 256, dropout .05, learning rate 2e-4, no weight decay on adapters, warm-up of 3% of the steps, then a cosine,
gradient norm 1. Three things differ. The linear layers are those of attention alone (paper, section 3.5). The head
learns at 1e-3, the recipe's rate for its own new layer, because the paper wants it above the adapters'; the tuned rate
is of large batches without warm-up, and the convex solver has none. And there are thousands of clips, not 665,000: up
to 5 epochs in batches of 32, ended early by validation. The head's dropout, positive weights and
weight decay (of the convex solver its penalty) are those that were tuned.

The tuned head has seen the validation split, which ends this training. So it is not where training starts, but its
settings are: they are fitted again on the training split alone, on cached features of the model as it is.

An adapter makes feature spaces of its own (`featurecache/backbones/adapter_files.py`). So thresholds are set, and test
clips scored, on features extracted with the adapter, as `predict` makes them. With `base_weights = "4bit"` these are of
the rounded model (`featurecache/backbones/four_bit.py`), and step 0 predicts what that head predicts but for that
rounding.

Not here: the loop (`loop.py`), what both kinds of run share (`run.py`), a search over these settings.
"""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from featurecache import FeatureCache
from featurecache.backbones import model_type_of
from featurecache.backbones.adapter import merge_adapter
from featurecache.backbones.adapter_files import FAMILIES, depth_of
from featurecache.backbones.description import ModelDescription
from featurecache.backbones.four_bit import require_four_bit
from featurecache.backbones.video_language import VideoLanguageInputs
from featurecache.clips.clip import ClipTable
from featurecache.clips.csv_file import read_table
from featurecache.errors import BundleError, SettingsError, UnsupportedModelError
from featurecache.extraction.failures import KnownFailures, known_failures
from featurecache.extraction.opening import open_planned
from featurecache.extraction.plan import Plan, plan_extraction
from featurecache.extraction.spaces import project_spaces
from featurecache.files import private_folder
from featurecache.project.settings import Project
from heads.bundle import Bundle, load_bundle
from heads.bundle_files import ADAPTER_NAME
from heads.clip_rule import ClipRule
from heads.engines.fitting import fit_head
from heads.engines.solving import basis_of, solve_head
from heads.finetuning.adapters import ADAPTER, HEAD, AdaptedNetwork
from heads.finetuning.data import CachedClips, check_targets, digest_of, ending_clips, labelled_splits
from heads.finetuning.loop import FineTuning
from heads.finetuning.ranks import Ranks
from heads.finetuning.run import Run
from heads.finetuning.settings import LoraSettings
from heads.finetuning.training_state import Group, positive_weight
from heads.loading import load_split
from heads.methods import FT_C_LORA
from heads.models import Head
from heads.runs import ChooseTimeline, no_timeline


@dataclass(frozen=True, eq=False)
class LoraPlan:
    """What a run will do.

    Attributes:
        settings: Settings of the run.
        bundle: The tuned head whose settings it begins with.
        tokens: Name of the stored tokens, e.g. `layer_0/tokens`.
        fixed: The head's inputs that no adapter changes.
        extraction: What is missing from the cache.
        layers_run: Layers of the language model that a step runs.
        layers_below: Layers below the deepest tap.
        train_clips: Number of clips of the training split.
        validation_clips: Number of clips of the validation split that end the training.
        table: The clip table.
        seen: Ids of clips that are labelled by a review with predictions in sight: they end nothing.
    """

    settings: LoraSettings
    bundle: Bundle
    tokens: str
    fixed: tuple[str, ...]
    extraction: Plan
    layers_run: int
    layers_below: int
    train_clips: int
    validation_clips: int
    table: ClipTable
    seen: frozenset[str]

    @property
    def share_of_layers(self) -> float:
        """Layers that a step runs, of those that adapters in all of them would need: its cost by the arithmetic."""
        return self.layers_run / self.layers_below


def plan_lora(
    project: Project,
    settings: LoraSettings,
    bundle: Path,
    *,
    seen: frozenset[str] = frozenset(),
    allow_download: bool = False,
) -> LoraPlan:
    """Compares what a run needs with the cache.

    Args:
        project: The project.
        settings: Settings of the run.
        bundle: The tuned head's folder.
        seen: Ids of clips that are labelled by a review with predictions in sight.
        allow_download: Whether the model may be fetched from the hub.

    Raises:
        BundleError: If the head is of other labels, has an adapter already, or reads answers.
        FingerprintMismatchError: If it is of another base model or other settings of features.
        SettingsError: If no input of the head can be changed by adapters there, or the model computes in float16.
        TrainingDataError: If a split has no labelled clips.
        UnsupportedModelError: If the model's family cannot continue from stored tokens.
    """
    head = load_bundle(bundle)
    if head.adapter is not None or head.is_zero_shot:
        found = f"is of {head.method}, which trains nothing" if head.is_zero_shot else "has an adapter"
        raise BundleError(
            f"fine-tuning must start from a head on the model's states as it is, but {bundle} {found}. "
            "Give the bundle of featurecache tune."
        )
    settings.check(project.settings.features.dtype, "lora")
    if settings.base_weights == "4bit":
        require_four_bit()
    table = _table_of_labels(project, head)
    splits = labelled_splits(table, seen)
    check_targets(splits["train"].Y, head.labels)
    model, spaces = project_spaces(project, select=list(head.selected), allow_download=allow_download)
    head.check_spaces(spaces)
    layers = sum(tap.startswith("layer_") for tap in model.taps)
    _check_resumable(model, settings.frozen, layers)
    taps = {name: name.partition("/")[0] for name in head.selected}
    depths = {name: depth_of(tap, layers) for name, tap in taps.items() if tap != "vision"}
    first = 0 if settings.frozen == "vision" else depth_of(settings.frozen, layers)
    deepest = max(depths.values(), default=0)
    if deepest <= first:
        raise SettingsError(
            f"the head must read a tap above {settings.frozen}, which adapters there can change, but it reads "
            f"{head.settings.inputs}. Set a lower lora.frozen, or tune on another tap."
        )
    tokens = f"{settings.frozen}/tokens"
    fixed = tuple(name for name in head.selected if depths.get(name, 0) <= first)
    extraction = plan_extraction(
        project,
        select=[tokens, *head.selected],
        clip_ids={clip_id for split in splits.values() for clip_id in split.clip_ids or ()},
        allow_download=allow_download,
    )
    train, validation = (len(splits[name].Y) for name in ("train", "validation"))
    return LoraPlan(settings, head, tokens, fixed, extraction, deepest - first, deepest, train, validation, table, seen)


def _check_resumable(model: ModelDescription, frozen: str, layers: int) -> None:
    """Refuses a model that takes no adapters, and a tap from whose tokens it cannot go on."""
    family = model_type_of(model.folder)
    if family not in FAMILIES:
        raise UnsupportedModelError(
            f"adapters can be trained in models of type {', '.join(FAMILIES)}, but {model.folder / 'config.json'} "
            f"says {family!r}. Use such weights, or tune heads on this model alone."
        )
    inputs = model.open()
    resumable = inputs.resumable if isinstance(inputs, VideoLanguageInputs) else ()
    if frozen not in resumable:
        named = f"vision or layer_0 to layer_{layers - 1}" if len(resumable) > 2 else " or ".join(resumable)
        raise SettingsError(
            f"lora.frozen must be {named}, but it is {frozen!r}. "
            "Name a tap from whose tokens this model can go on, below the one that the head reads."
        )


class LoraRun(Run):
    """A planned run whose tokens are in the cache: loads the model, measures, trains, and writes what predicts.

    Args:
        project: The project.
        plan: What `plan_lora` gave.
        seed: Seed of the adapters' initial values, the order of clips and dropout.
        device: A torch device.
        folder: The run's folder.
        ranks: This process among its peers.

    Raises:
        FingerprintMismatchError: If the model's files changed since the plan was made.
        MissingFeaturesError: If tokens, or features that the head reads, are missing.
        SettingsError: If the device is not here, or a target names no linear layer.
    """

    def __init__(
        self, project: Project, plan: LoraPlan, *, seed: int, device: str, folder: Path, ranks: Ranks | None = None
    ) -> None:
        settings, features = plan.settings, project.settings.features
        self.project, self.plan = project, plan
        spaces = plan.extraction.spaces
        fixed = {name: spaces[name] for name in plan.fixed}
        cache, known = FeatureCache.open(project.cache), known_failures(project)
        splits = {
            name: load_split(plan.table, name, cache, fixed, known=known, needed=spaces.values()).data
            for name in ("train", "validation")
        }
        splits["validation"] = ending_clips(splits["validation"], plan.seen)
        check_targets(splits["train"].Y, plan.bundle.labels)
        head, group = _refitted_head(plan, cache, known, seed=seed, device=device, ranks=ranks or Ranks())
        clips = {name: CachedClips(one, cache, plan.tokens, spaces[plan.tokens]) for name, one in splits.items()}
        self._network = AdaptedNetwork(
            open_planned(project, plan.extraction.model.open(), spaces, dtype=features.dtype, device=device),
            head.to(device),
            inputs=list(plan.bundle.selected),
            tokens=plan.tokens,
            rank=settings.rank,
            alpha=settings.alpha,
            dropout=settings.dropout,
            targets=settings.targets,
            gradient_checkpointing=settings.gradient_checkpointing,
            four_bit=settings.base_weights == "4bit",
            seed=seed,
        )
        loop = FineTuning(
            self._network,
            [Group(ADAPTER, settings.learning_rate, 0.0), group],
            clips["train"],
            clips["validation"],
            positive_weight=positive_weight(clips["train"].Y, exponent=plan.bundle.settings.positive_weight_exponent),
            **settings.of_loop(),
            seed=seed,
            device=device,
            autocast=torch.bfloat16 if features.dtype == "bfloat16" else None,
            ranks=ranks,
        )
        signature = {
            "settings": settings.deciding(),
            "seed": seed,
            "head": plan.bundle.digest,
            "tokens": spaces[plan.tokens].fingerprint,
            "clips": digest_of(clips),
        }
        super().__init__(loop, settings, signature=signature, seed=seed, folder=folder)

    def finish(self, *, choose_timeline: ChooseTimeline = no_timeline) -> dict[str, Any]:
        """Extracts validation with the adapter, and writes the run.

        Args:
            choose_timeline: Gives the bundle's timeline settings before it is saved.

        Returns:
            The content of `best.json`.

        Raises:
            OSError: If it cannot be written.
            MissingFeaturesError: If clips of validation could not be extracted again.
        """
        bundle = self.plan.bundle
        private_folder(self.folder)
        staged = self.folder / ".adapter"
        shutil.rmtree(staged, ignore_errors=True)
        self._network.write_adapter(staged)
        return self._write(
            self.project,
            self._network.head,
            bundle.settings,
            labels=bundle.labels,
            select=list(bundle.selected),
            method=FT_C_LORA,
            of_run={"lora": self.plan.settings.to_mapping(), "started_from_bundle": bundle.digest},
            started_from=bundle.fitted_on,
            adapter=staged,
            choose_timeline=choose_timeline,
        )

    def merge(self, out: Path) -> None:
        """Writes the model with the finished run's adapters added to its weights; a folder that is there is replaced.

        Raises:
            OSError: If it cannot be written.
        """
        shutil.rmtree(out, ignore_errors=True)
        merge_adapter(
            self.plan.extraction.model.folder,
            self.folder / "bundle" / ADAPTER_NAME,
            out,
            dtype=self.project.settings.features.dtype,
        )


def _refitted_head(
    plan: LoraPlan, cache: FeatureCache, known: KnownFailures, *, seed: int, device: str, ranks: Ranks
) -> tuple[Head, Group]:
    """A head of the tuned settings, fitted on the training split alone, and its rate with their penalty or decay.

    A variance-scaled ridge penalty is made of the features that the head is fitted on, as the frozen model
    gives them. Every process begins with the head of the first.
    """
    tuned, rate = plan.bundle.settings, plan.settings.head_learning_rate
    train = load_split(plan.table, "train", cache, plan.bundle.selected, known=known).data
    clips, widths = train.of(tuned.inputs), train.part_widths(tuned.inputs)
    head: Head
    if tuned.solver == "convex":
        basis = basis_of(
            clips.X, clips.Y, tuned.normalization, components=tuned.components, part_widths=widths, device=device
        )
        head, _ = solve_head(basis, clips.Y, tuned)
        scaling = basis.scaling(-tuned.variance_exponent, tuned.components)
        # The loss is a mean over labels, where the solver has one each.
        group = Group(HEAD, rate, 0.0, l2=tuned.l2 / len(plan.bundle.labels), penalise=scaling)
    else:
        settings = dataclasses.replace(tuned, patience=0)
        head = fit_head(clips.X, clips.Y, settings, seed=seed, device=device, part_widths=widths)
        group = Group(HEAD, rate, tuned.weight_decay)
    numbers = list(head.state_dict().values())
    if not ranks.is_first:
        for tensor in numbers:
            tensor.zero_()
    ranks.sum(numbers)
    return head, group


def _table_of_labels(project: Project, bundle: Bundle) -> ClipTable:
    """The clip table, refused where labels or clips are not those that the head was fitted on."""
    table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
    if table.labels != bundle.labels:
        raise BundleError(
            f"the head must be of the labels of clips.csv, but it has {', '.join(bundle.labels)} and clips.csv has "
            f"{', '.join(table.labels)}. Tune again: featurecache tune."
        )
    ClipRule.of(project).check_fitted(bundle.clips)
    return table
