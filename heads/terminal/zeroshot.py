"""A zero-shot run as commands show it: what is asked, what the answers are like, and what a score is held against."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featurecache.spelling import counted
from featurecache.terminal.extraction import failures, forecast_pieces
from featurecache.terminal.text import MOST_LISTED, Piece, Warn, plain_table, rough_time, score
from heads.terminal.training import trained_run

if TYPE_CHECKING:
    from featurecache.extraction.plan import Plan
    from heads.workflow.zeroshot_report import ZeroShotReport


def asking_lines(plan: "Plan") -> Iterator[Piece]:
    """How much there is to ask, said before it begins."""
    yield f"{counted(plan.planned, 'clip')}: {plan.present} answered already, {plan.todo} to ask about"


def zeroshot_report(report: "ZeroShotReport", width: int) -> Iterator[Piece]:
    """What asking did, or its forecast; the plan was shown before."""
    if report.prompts_written:
        folder = report.prompts_written[0].parent
        yield f"wrote {counted(len(report.prompts_written), 'file')} of prompts to {folder}: edit them, and run again"
    if report.forecast is not None:
        yield from forecast_pieces(report.forecast, report.plan, width)
        yield (
            "nothing was asked"
            if report.method == "text"
            else "counted as if every free answer took all its tokens; nothing was asked"
        )
    if report.judging_s is not None:
        yield f"judging: about {rough_time(report.judging_s)} or more, at the speed of the model's products"
    if report.outcome is not None:
        done = report.outcome.progress
        if done.extracted:
            yield (
                f"asked about {counted(done.extracted, 'clip')} in {done.elapsed_s:.1f} s "
                f"({done.model_s / done.extracted:.2g} s of the model a clip)"
            )
        if done.claimed_by_others:
            yield f"claimed by another process, in progress: {counted(done.claimed_by_others, 'clip')}"
        for crash in report.crashes:
            yield Warn(f"{crash.worker} {crash.reason}; what it had not saved was computed again")
        yield from failures(report.outcome.failures)
    if report.audit is not None:
        yield from _audit(report.audit)
    if report.answers is not None:
        yield f"wrote {report.answers}: what the model said of each clip"
    if report.bundle is None:
        if report.outcome is not None:
            yield "no scores yet: some clips are still to be asked about; run it again"
        return
    yield from _run(report, width)


def _audit(audit: Mapping[str, Any]) -> Iterator[Piece]:
    """What the answers are like, of whichever kind the method asks for."""
    clips = counted(audit["n_clips"], "clip")
    if "words" in audit:
        yield _words(audit["words"], clips)
    elif "questions" in audit:
        yield from _questions(audit, clips)
    else:
        yield from _lists(audit, clips)


def _words(words: Sequence[Mapping[str, Any]], clips: str) -> Piece:
    rows = [
        [
            one["label"],
            str(one["wordings"]),
            f"{one['mean_score']:.2g}",
            *("-" if one[name] is None else str(one[name]) for name in ("above_half", "nearer_than_not")),
        ]
        for one in words
    ]
    headings = ["label", "wordings", "mean score", "clips above 0.5", 'nearer than its "not" words']
    return plain_table(f"Words against {clips}", headings, rows)


def _questions(audit: Mapping[str, Any], clips: str) -> Iterator[Piece]:
    """Free answers to yes/no questions, of the model about the video or of a judge about its captions."""
    rows = [
        [
            f"{one['label']} {'not ' if one['is_negated'] else ''}{one['wording'] + 1}",
            *(str(one[name]) for name in ("yes", "no", "unparsable")),
            f"{one['mean_mass']:.2f}",
        ]
        for one in audit["questions"]
    ]
    is_judged = "captions" in audit
    yes, no = ("1", "0") if is_judged else ("yes", "no")
    headings = ["question", f"free {yes}", f"free {no}", "unparsable", f"mass on {yes}/{no}"]
    who = "judge says about the captions" if is_judged else "model says freely"
    yield plain_table(f"What the {who} of {clips}", headings, rows)
    for one in audit["questions"]:
        if one["is_negated"]:
            continue
        question = f"{one['label']}, wording {one['wording'] + 1}"
        said = [name for name in ("yes", "no", "unparsable") if one[name] == audit["n_clips"]]
        if said and audit["n_clips"] > 1:
            yield Warn(f"{question}: the free answer is {said[0]} for every clip, whatever the video shows.")
        if one["below_least_mass"]:
            yield Warn(
                f"{question}: in {counted(one['below_least_mass'], 'clip')} {yes} and {no} together are less probable "
                "than other words: their scores say little. Change the question."
            )
    if is_judged:
        yield from _judged(audit)
    for label, share in audit["negation"].items():
        yield f"{label}: question and negation fit together in {share:.0%} of the clips (yes to one of them)"


def _lists(audit: Mapping[str, Any], clips: str) -> Iterator[Piece]:
    """Free answers that should be lists of labels, and what is said under that constraint."""
    valid, asked = audit["valid"], audit["n_clips"]
    if audit["labels_not_in_prompt"] and valid < asked:
        yield Warn(
            f"the prompt does not name {', '.join(audit['labels_not_in_prompt'])}: only a model that was trained on it "
            "can know these labels. Write {labels} where they shall stand."
        )
    names = ("valid", "unparsable", "not_ended", "hallucinated", "duplicates", "violations")
    counts = ", ".join(f"{audit[name]} {name.replace('_', ' ')}" for name in names)
    yield f"free answers of {clips}: {counts}"
    if audit["hallucinated_labels"]:
        listed = list(audit["hallucinated_labels"].items())[:MOST_LISTED]
        yield "said, but no label: " + ", ".join(f"{name!r} ({times})" for name, times in listed)
    if audit["broken_rules"]:
        yield "rules broken: " + ", ".join(f"{rule} ({times})" for rule, times in audit["broken_rules"].items())
    yield (
        f"allowed lists ({audit['allowed_lists']}) have {audit['mean_mass_on_allowed']:.2f} of the probability; "
        f"constrained, {len(audit['constrained_answers'])} different ones are said"
    )
    if valid < asked / 2:
        yield Warn(
            f"{asked - valid} of {asked} free answers are no allowed list: what is said under the constraint "
            "hides that. Change the prompt."
        )
    if "samples" in audit:
        of_draws = [one["valid"] for one in audit["samples"]]
        drawn = counted(len(of_draws), "drawn free answer")
        yield f"of {drawn} a clip, {min(of_draws)} to {max(of_draws)} clips' are valid"


def _judged(audit: Mapping[str, Any]) -> Iterator[Piece]:
    """What captions and their judge are like."""
    captions = audit["captions"]
    yield (
        f"{counted(captions['different'], 'different caption')}, the most frequent one of "
        f"{counted(captions['most_frequent'], 'clip')}; {captions['not_ended']} cut off at zeroshot.caption_tokens"
    )
    if audit["hard"]:
        yield Warn(
            f"{counted(audit['hard'], 'answer')} of the judge came without probabilities (logprobs): their scores are "
            "0 or 1, and thresholds and average precision say little."
        )
    judge = audit.get("judge", {})
    if not judge.get("captions"):
        return
    each = ", ".join(f"{label} {share:.0%}" for label, share in judge["agreement"].items())
    yield f"judge, on {counted(judge['captions'], 'perfect caption')} made from targets: agrees in {each}"
    if judge["unparsable"]:
        yield Warn(f"{counted(judge['unparsable'], 'answer')} about perfect captions could not be read as 0 or 1.")
    for name, what in (
        ("constant", "the judge says the same of every perfect caption: it does not read them"),
        ("swapped", "the judge says 0 for 1 and 1 for 0: its question is understood the other way round"),
    ):
        if judge[name]:
            yield Warn(f"{', '.join(judge[name])}: {what}. Change the question, or the judge.")


def _run(report: "ZeroShotReport", width: int) -> Iterator[Piece]:
    if report.run is None or report.controls is None:
        yield Warn(
            "no clip of train or validation is labelled: thresholds are 0.5, no wording was chosen, and how good the "
            "answers are is unknown. Annotate some sessions before a timeline of them is used."
        )
        yield f"wrote {report.bundle}"
        return
    yield from _controls(report.controls, report.run.metrics)
    yield from trained_run(report.run, width)


def _controls(controls: Mapping[str, Any], out_of_fold: Mapping[str, Any]) -> Iterator[Piece]:
    """What tells seeing from guessing, on the same clips."""
    rows = [
        ["the answers; wordings and thresholds fitted to them", score(controls["answers"])],
        ["the answers; wordings chosen out of fold", score(out_of_fold["macro_f1"])],
        ["the free answers (of words: scores at 0.5), as they are", score(controls["free_answers"])],
    ]
    if drawn := controls["drawn_lists"]:
        spread = f"{min(drawn):.2f} to {max(drawn):.2f}"
        rows.append([f"{counted(len(drawn), 'drawn list')} a clip ({spread})", score(sum(drawn) / len(drawn))])
    swapped = controls["another_session"]
    if swapped is not None:
        spread = f"{swapped['lowest']:.2f} to {swapped['highest']:.2f}"
        rows.append([f"answers about another session's video ({spread})", score(swapped["mean"])])
    if controls["black_video"] is not None:
        rows.append(["the answer about a black video", score(controls["black_video"])])
    rows.append(["all-positive baseline", score(controls["always_yes"])])
    yield plain_table("Seeing or guessing: macro-F1 on training and validation sessions", ["", "macro-F1"], rows)
    yield from _candidates(controls)
    for label, one in controls["onsets"].items():
        if one["onsets"]:
            yield (
                f"{label}: at {counted(one['onsets'], 'annotated onset')} the score changes by "
                f"{one['mean_change']:+.2f} and rises in {one['share_rising']:.0%}"
            )
    for label in controls["constant"]:
        yield Warn(f"{label} is predicted alike in every clip: nothing of it is seen.")


def _candidates(controls: Mapping[str, Any]) -> Iterator[Piece]:
    """F1 of each wording or reading, the chosen ones marked."""
    names = list(controls["candidates"])
    rows = []
    for label, chosen in controls["chosen"].items():
        f1 = {name: controls["candidates"][name]["per_class"][label] for name in names}
        rows.append(
            [label, *("-" if f1[name] is None else f"{f1[name]:.2f}{' *' * (name == chosen)}" for name in names)]
        )
    if len(names) > 1:
        yield plain_table("F1 at thresholds of its own; * is taken", ["label", *names], rows)
