"""The run of a zero-shot method: wording or reading chosen, thresholds set, controls computed, a bundle written.

Choices are made on training and validation sessions, each clip's by sessions other than its own (`choosing.py`), and
thresholds, calibration and timeline settings are set on these out-of-fold scores, as those of any head are. Without a
labelled clip the first candidate serves, thresholds are 0.5, and nothing says how sure a timeline is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.clips.leakage import spans_of
from featurecache.files import private_folder
from featurecache.spec import FeatureSpace
from heads.bundle import Bundle, load_bundle, save_bundle, tool_versions
from heads.clip_rule import ClipRule
from heads.data import LabelledSplit
from heads.methods import method_of_question
from heads.models import Head, head_scores
from heads.runs import ChooseTimeline, HeldOut, default_thresholds, write_document, write_fitted
from heads.scoring.metrics import macro_f1
from heads.settings import HeadSettings
from heads.zeroshot.choosing import Choice, choose
from heads.zeroshot.controls import controls_document
from heads.zeroshot.methods import Numbers, ZeroShot, kind_of
from heads.zeroshot.words import Words


def write_zero_shot_run(
    asking: ZeroShot,
    data: LabelledSplit,
    *,
    folder: Path,
    spaces: Mapping[str, FeatureSpace],
    black: Numbers | None,
    audit: Mapping[str, Any],
    leakage: Mapping[str, Any],
    clips: ClipRule,
    exclusive: Sequence[Sequence[str]] = (),
    choose_timeline: ChooseTimeline,
) -> dict[str, Any]:
    """Writes the bundle, the out-of-fold scores and, last, `best.json`.

    Args:
        asking: The method with its prompts.
        data: The labelled clips of training and validation sessions, with the answers by the name of what is cached
            (`tap/mean`).
        folder: The run's folder.
        spaces: The feature space of each tap, by the same names.
        black: The answers about a black video by tap, (1, width); None where there are none.
        audit: What the free answers are like.
        leakage: What `featurecache.clips.leakage.leakage_record` says of the table.
        clips: What a clip is.
        exclusive: Groups of labels of which one at most is on at a time.
        choose_timeline: Gives the bundle's timeline settings before it is saved.

    Returns:
        The content of `best.json`, with `audit` and `controls`.
    """
    numbers = {name.partition("/")[0]: one for name, one in data.features.items()}
    candidates = asking.candidates(numbers)
    choice = choose(data.Y, np.stack(list(candidates.values())), data.sessions, jointly=asking.chooses_jointly)
    tap, head = asking.head(choice.of_label)
    bundle = replace(
        _untuned(asking, tap, head, spaces, clips),
        fitted_on=spans_of(data.clip_ids or ()),
        exclusive=tuple(map(tuple, exclusive)),
    )
    best = write_fitted(
        bundle,
        HeldOut("out-of-fold", choice.out_of_fold, data.Y, data.sessions, data.clip_ids),
        seed=0,
        folder=folder,
        leakage=leakage,
        of_run={
            "method": method_of_question(kind_of(asking)),
            "prompts": asking.prompts(),
            "audit": dict(audit),
        },
        choose_timeline=choose_timeline,
    )
    controls = controls_document(
        data.Y,
        head_scores(head, numbers[tap]),
        load_bundle(folder / "bundle").thresholds,
        data.sessions,
        data.clip_ids or (),
        labels=asking.labels,
        black=None if black is None else head_scores(head, black[tap])[0],
    )
    controls["free_answers"] = macro_f1(data.Y, asking.free(numbers, choice.of_label).astype(float))
    controls["drawn_lists"] = [macro_f1(data.Y, drawn.astype(float)) for drawn in asking.drawn(numbers)]
    best |= {"controls": controls | _choices(choice, list(candidates), asking.labels)}
    write_document(folder / "best.json", best)
    return best


def write_unsure_run(
    asking: ZeroShot, *, folder: Path, spaces: Mapping[str, FeatureSpace], audit: Mapping[str, Any], clips: ClipRule
) -> dict[str, Any]:
    """Writes the bundle of a project without a labelled clip; arguments and result as `write_zero_shot_run`."""
    tap, head = asking.head(np.zeros(len(asking.labels), np.int64))
    bundle = _untuned(asking, tap, head, spaces, clips)
    private_folder(folder)
    save_bundle(bundle, folder / "bundle")
    best = {
        "method": method_of_question(kind_of(asking)),
        "settings": bundle.settings.to_mapping(),
        "inputs": bundle.settings.inputs,
        "fingerprints": {name: space.fingerprint for name, space in bundle.selected.items()},
        "versions": dict(bundle.versions),
        "labels": list(asking.labels),
        "prompts": asking.prompts(),
        "audit": dict(audit),
        "controls": None,
    }
    write_document(folder / "best.json", best)
    return best


def _untuned(asking: ZeroShot, tap: str, head: Head, spaces: Mapping[str, FeatureSpace], clips: ClipRule) -> Bundle:
    """A bundle that reads a tap, at thresholds of 0.5."""
    name = next(one for one in spaces if one.startswith(f"{tap}/"))
    settings = HeadSettings(inputs=name, normalization="none")
    thresholds = default_thresholds(asking.labels)
    made_by, made_of = tool_versions(), (spaces[name],)
    words = asking.made_of | asking.made_with if isinstance(asking, Words) else None
    return Bundle(head, asking.labels, thresholds, settings, made_of, made_by, clips=clips, words=words)


def _choices(choice: Choice, names: list[str], labels: tuple[str, ...]) -> dict[str, Any]:
    """Which candidate each label takes, and F1 of each candidate by label and macro-averaged, JSON-ready."""
    found = {}
    for name, f1 in zip(names, choice.f1, strict=True):
        own = {label: None if np.isnan(one) else float(one) for label, one in zip(labels, f1, strict=True)}
        scored = [one for one in own.values() if one is not None]
        found[name] = {"per_class": own, "macro_f1": float(np.mean(scored)) if scored else None}
    chosen = {label: names[at] for label, at in zip(labels, choice.of_label.tolist(), strict=True)}
    return {"chosen": chosen, "candidates": found}
