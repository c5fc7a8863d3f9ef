"""A zero-shot method asked about every clip, and its run: what `featurecache zeroshot` calls.

The answers are features of the cache: found again by what was asked and the clip's content, resumed after a kill,
purged with a recording. The run is a bundle like others, so `evaluate`, `predict` and timelines take it as it is.

    prompts/             the files of prompts as they were asked
    answers.csv          what the model said of each clip, for people; no recording's name
    black_video.json     the answers about a black video; judge_audit.json what a judge says of perfect captions
    bundle/, out_of_fold_metrics.json, best.json    as `tune` writes them

Nothing of the test split is scored here.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache import FeatureCache
from featurecache.backbones import find_model, model_type_of, open_inputs
from featurecache.clips.clip import ClipTable, check_labels
from featurecache.clips.csv_file import read_table
from featurecache.clips.drift import check_table
from featurecache.clips.leakage import leakage_record
from featurecache.csv_fields import csv_bytes, guard_cell
from featurecache.errors import UsageError
from featurecache.extraction.failures import KnownFailures, known_failures, stored_clips
from featurecache.extraction.pipeline import Extraction, Progress, WorkerCrash
from featurecache.extraction.plan import Plan, plan_extraction
from featurecache.extraction.run import run_plan
from featurecache.files import private_folder, write_private
from featurecache.project.settings import Project, parse_section
from featurecache.spelling import visible
from featurecache.workers.devices import Device, extract_on_devices, find_devices
from heads.clip_rule import ClipRule
from heads.data import LabelledSplit, joined_splits
from heads.loading import load_split, read_features
from heads.timelines.rules import checked_rules
from heads.workflow.data import run_folder
from heads.workflow.training import TimelineChoice, finished_run
from heads.workflow.zeroshot_report import ZeroShotReport
from heads.zeroshot.lists import Rules, check_rules
from heads.zeroshot.prompts import (
    METHODS,
    read_caption_prompt,
    read_list_prompt,
    read_questions,
    unread_files,
    write_defaults,
)
from heads.zeroshot.settings import ZeroshotSettings

if TYPE_CHECKING:
    from heads.zeroshot.methods import Numbers, ZeroShot


def zero_shot(
    project: Project,
    method: str,
    *,
    labels: Sequence[str] | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    samples: int = 0,
    seed: int = 0,
    devices: str | None = None,
    allow_download: bool = False,
    on_unread: Callable[[str], None] = lambda _: None,
    on_plan: Callable[[Plan], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> ZeroShotReport:
    """Asks the project's model about all clips that it was not asked about yet, and writes the run.

    Args:
        project: The project; its clip table must exist.
        method: `zs-b` (a yes/no question for each label), `zsc-co` (a list of labels), `zsc-j` (a caption, and a
            language model that judges it) or `text` (words held against the clips' embeddings; for image-text models).
        labels: Ask about these labels alone; None: about all.
        limit: Ask about at most this many clips more.
        dry_run: Check the prompts, forecast time, memory and disk, and ask nothing.
        samples: Of `zsc-co`: so many lists and free answers are drawn besides, to see their spread.
        seed: Of these draws.
        devices: One process for each device, as `featurecache.workflow.extract`; a judge works in this one.
        allow_download: Whether the model may be fetched from the hub.
        on_unread: Called before the model is loaded, for each file of prompts that is not read, with what is wrong.
        on_plan: Called before the model is loaded.
        on_progress: Called after each batch and each failure.

    Raises:
        UsageError: If there is no such method, a label is not one of the clip table's, or the method takes no samples.
        SettingsError: If a prompt, a label or a rule cannot be asked.
        UnsupportedModelError: If the model cannot be asked in words, or for `text` has no text tower.
        FeatureCacheError: As `featurecache.extraction.plan.plan_extraction` and `run_plan`.
    """
    if method not in METHODS:
        raise UsageError(f"the method must be one of {', '.join(METHODS)}, but it is {method!r}. Choose one of them.")
    if samples and method != "zsc-co":
        raise UsageError(f"--samples draws lists, but {method} asks for none. Leave it out, or use zsc-co.")
    chosen = None if devices is None else find_devices(devices)
    check_table(project, use="targets")
    table = read_table(project.clips, allow_clip_level=project.settings.splits.allow_clip_level)
    table, known = _of_labels(table, labels)
    rules = _rules(project, known)
    _check_prompts(project, method, table, rules)
    written, asking = _prepared(
        project, method, table, rules, samples=samples, seed=seed, allow_download=allow_download
    )
    unread = tuple(unread_files(project.prompts, method, known))
    for said in unread:
        on_unread(said)
    plan = plan_extraction(
        project, limit=limit, select=_names(asking), asked=asking.asked, allow_download=allow_download
    )
    on_plan(plan)
    report = ZeroShotReport(method, table.labels, tuple(written), unread, plan, None, None)
    if dry_run:
        return _forecast(project, plan, report)
    outcome, crashes = _asked(project, plan, chosen, on_progress)
    return _written(project, replace(report, outcome=outcome, crashes=crashes), asking, table, rules)


def _asked(
    project: Project, plan: Plan, devices: Sequence[Device] | None, on_progress: Callable[[Progress], None]
) -> tuple[Extraction, tuple[WorkerCrash, ...]]:
    """Carries a plan out: the video language model in this process or in one for each device, a judge in this one."""
    from heads.zeroshot.answering import run_asked

    crashes: list[WorkerCrash] = []

    def ask(plan: Plan) -> Extraction:
        if devices is None or not plan.todo:
            return run_plan(project, plan, on_progress=on_progress)
        together = extract_on_devices(project.path, project, plan, devices=devices, on_progress=on_progress)
        crashes.extend(together.crashes)
        return together

    return run_asked(project, plan, on_progress=on_progress, run=ask), tuple(crashes)


def _written(
    project: Project, report: ZeroShotReport, asking: "ZeroShot", table: ClipTable, rules: Rules
) -> ZeroShotReport:
    """Writes what the model said; and the run, where every clip that can be asked about was."""
    from heads.zeroshot.asked_controls import AskedControls
    from heads.zeroshot.run import write_unsure_run, write_zero_shot_run

    plan = report.plan
    cache = FeatureCache.open_if_made(project.cache)
    asked_about, numbers = _answers(cache, plan, table)
    if cache is None or not asked_about:
        return report
    folder = private_folder(run_folder(project, f"zeroshot-{report.method}"))
    _copy_prompts(project.prompts / report.method, folder / "prompts")
    answers = _write_answers(folder / "answers.csv", asking, table, asked_about, numbers)
    audit = asking.audit(numbers)
    report = replace(report, answers=answers, audit=audit)
    if plan.planned - len(asked_about) - report.failed > 0:
        return report
    data = _labelled(cache, plan, table, known_failures(project))
    controls = AskedControls(project, plan, asking, folder)
    audit |= controls.judge(None if data is None else data.Y)
    if data is None:
        write_unsure_run(asking, folder=folder, spaces=plan.spaces, audit=audit, clips=ClipRule.of(project))
        return replace(report, bundle=folder / "bundle")
    timeline = TimelineChoice(project)
    best = write_zero_shot_run(
        asking,
        data,
        folder=folder,
        spaces=plan.spaces,
        black=controls.black(),
        audit=audit,
        leakage=leakage_record(table.clips),
        clips=ClipRule.of(project),
        exclusive=rules.among(table.labels).exclusive,
        choose_timeline=timeline,
    )
    run = finished_run(folder, best, timeline)
    return replace(report, controls=best["controls"], bundle=run.bundle, run=run)


def _check_prompts(project: Project, method: str, table: ClipTable, rules: Rules) -> None:
    """Refuses prompts that cannot be asked before the seconds that opening a model takes; there may be none yet."""
    recordings = {clip.recording for clip in table.clips}
    if not (project.prompts / method).exists():
        return
    if method == "zsc-j":
        read_caption_prompt(project.prompts, recordings)
    if method != "zsc-co":
        read_questions(project.prompts, table.labels, recordings, method=method)
    else:
        read_list_prompt(project.prompts, table.labels, rules.among(table.labels), recordings)


def _rules(project: Project, labels: Sequence[str]) -> Rules:
    settings = parse_section(project.settings.zeroshot, ZeroshotSettings, "zeroshot")
    rules = Rules(checked_rules(project, labels).exclusive, settings.implies)
    check_rules(rules, labels)
    return rules


def _of_labels(table: ClipTable, labels: Sequence[str] | None) -> tuple[ClipTable, tuple[str, ...]]:
    """The table with the labels that are asked about, in its own order, and all labels there are.

    A table without labels, of a project without annotations, takes those that are asked about.
    """
    if not table.labels and labels:
        check_labels(labels)
        unlabelled = (None,) * len(labels)
        table = ClipTable(tuple(labels), tuple(replace(clip, targets=unlabelled) for clip in table.clips))
    unknown = [label for label in labels or () if label not in table.labels]
    if unknown or not (table.labels if labels is None else labels):
        found = f"{unknown[0]!r} is none" if unknown else "there is none"
        raise UsageError(
            f"labels to ask about must be columns of clips.csv ({', '.join(table.labels) or 'it has none'}), but "
            f"{found}. Name them as they stand there; without annotations, name any: --labels ventilation,suction."
        )
    if labels is None:
        return table, table.labels
    return table.of_labels([label for label in table.labels if label in labels]), table.labels


def _prepared(
    project: Project,
    method: str,
    table: ClipTable,
    rules: Rules,
    *,
    samples: int,
    seed: int,
    allow_download: bool,
) -> "tuple[list[Path], ZeroShot]":
    """Prompts that were written, and the method with its checked prompts."""
    recordings = sorted({clip.recording for clip in table.clips})
    if method == "text":
        from featurecache.extraction.words import ProjectWords
        from heads.zeroshot.words import prepare_words

        tower = ProjectWords(project, allow_download=allow_download)
        written = write_defaults(project.prompts, method, table.labels, ("", ""))
        return written, prepare_words(tower, project.prompts, table.labels, recordings)
    from featurecache.backbones.asking import ANSWERING, check_can_answer
    from featurecache.backbones.wording import Wording
    from heads.zeroshot.methods import prepare_lists, prepare_yes_no

    features, clip_s = project.settings.features, project.settings.clips.length_us / 1e6
    model = find_model(features.model, allow_download=allow_download)
    check_can_answer(model_type := model_type_of(model))
    way: Any = {"frames": features.frames, "resize": features.resize, "clip_s": clip_s}
    wording = Wording(open_inputs(model, prompt="<video>", **way))
    written = write_defaults(project.prompts, method, table.labels, ANSWERING[model_type])
    if method == "zs-b":
        return written, prepare_yes_no(wording, project.prompts, table.labels, recordings)
    settings = parse_section(project.settings.zeroshot, ZeroshotSettings, "zeroshot")
    if method == "zsc-j":
        from heads.zeroshot.judged import prepare_judged
        from heads.zeroshot.judges import judge_identity

        questions = read_questions(project.prompts, table.labels, recordings, method=method)
        return written, prepare_judged(
            wording,
            table.labels,
            read_caption_prompt(project.prompts, recordings),
            questions,
            judge=judge_identity(project, [question.prompt for question in questions]),
            caption_tokens=settings.caption_tokens,
        )
    return written, prepare_lists(
        wording,
        project.prompts,
        table.labels,
        recordings,
        rules,
        new_tokens=settings.new_tokens,
        samples=samples,
        seed=seed,
    )


def _forecast(project: Project, plan: Plan, report: ZeroShotReport) -> ZeroShotReport:
    """The report with what the plan will take, of a judge's part too."""
    from featurecache.backbones.captioning import JudgedCaption
    from featurecache.extraction.forecast import forecast_plan

    judging_s, asked = None, plan.asked
    if isinstance(asked, JudgedCaption):
        from heads.zeroshot.answering import captions_plan
        from heads.zeroshot.judges import judging_seconds

        each_s = judging_seconds(project, asked.questions, asked.new_tokens)
        judging_s = None if each_s is None else plan.todo * each_s
        plan = captions_plan(project, plan)
    return replace(report, forecast=forecast_plan(project, plan) if plan.todo else None, judging_s=judging_s)


def _names(asking: "ZeroShot") -> list[str]:
    """What a method reads, as selected features."""
    from heads.zeroshot.words import Words

    if isinstance(asking, Words):
        return [asking.tower.feature]
    return [f"{tap}/mean" for tap in asking.asked.widths] if asking.asked is not None else []


def _answers(cache: FeatureCache | None, plan: Plan, table: ClipTable) -> "tuple[list[str], Numbers]":
    """Ids of the table's clips that were answered, in its order, and the answers by tap."""
    if cache is None:
        return [], {}
    stored = [stored_clips(cache, space.fingerprint) for space in plan.spaces.values()]
    ids = [clip.clip_id for clip in table.clips if all(clip.clip_id in one for one in stored)]
    if not ids:
        return [], {}
    return ids, {space.tap: read_features(cache, ids, space) for name, space in plan.spaces.items()}


def _copy_prompts(source: Path, target: Path) -> None:
    """The files of prompts as they are now; others of an earlier run go."""
    shutil.rmtree(target, ignore_errors=True)
    private_folder(target)
    for path in sorted(source.glob("*.txt")):
        write_private(target / path.name, path.read_bytes())


def _write_answers(
    path: Path, asking: "ZeroShot", table: ClipTable, clip_ids: Sequence[str], numbers: "Numbers"
) -> Path:
    split_of = {clip.clip_id: clip.split for clip in table.clips}
    listed = (
        [clip_id, split_of[clip_id], *(guard_cell(visible(cell)) for cell in row)]
        for clip_id, rows in zip(clip_ids, asking.rows(numbers), strict=True)
        for row in rows
    )
    write_private(path, csv_bytes([["clip_id", "split", *asking.columns], *listed]))
    return path


def _labelled(cache: FeatureCache, plan: Plan, table: ClipTable, known: KnownFailures) -> LabelledSplit | None:
    """The labelled clips of training and validation sessions with the answers about them; None without any."""
    splits = [
        load_split(table, split, cache, plan.spaces, known=known).data
        for split in ("train", "validation")
        if any(clip.split == split and clip.labelled for clip in table.clips)
    ]
    return joined_splits(splits) if splits else None
