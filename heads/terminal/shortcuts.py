"""What a head tells labels by in training sessions alone, as `featurecache shortcuts` shows it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from featurecache.csv_fields import format_seconds
from featurecache.spelling import counted
from featurecache.terminal.text import Piece, Warn, plain_table, score

if TYPE_CHECKING:
    from heads.workflow.ignoring import Ignoring
    from heads.workflow.shortcuts import Shortcut, Shortcuts


def audited(found: "Shortcuts") -> Iterator[Piece]:
    """The listed clusters, or the nearest to it, and where to look at them."""
    rate = f"a false-discovery rate of {found.rate:g}"
    headings = (
        "label",
        "cluster",
        "p",
        "training",
        "validation",
        "with it: FP",
        "without: FP",
        "with: missed",
        "without",
    )
    title = f"{found.clusters} clusters of {found.feature}: log odds that they add to clips with a label"
    yield plain_table(title, headings, [_row(one) for one in found.found or found.nearest])
    for label, gaps in found.tested.items():
        if (reason := gaps.why_untested(found.rate)) is not None:
            yield f"{label} is not tested: {reason}"
        elif (together := found.needed_together[label] or 1) > 1:
            yield (
                f"{label} cannot be listed alone: so few sessions give no p value below {gaps.least_p:.2g}, so "
                f"at least {together} labels must be listed together. More sessions give smaller p values."
            )
    if not found.found:
        yield f"no cluster is listed at {rate}; the table shows the nearest of each label. All: {found.folder}"
        return
    for one in found.examples:
        yield (
            f"cluster {one.cluster}, {one.label}, {one.kind}: {one.clip.recording} {format_seconds(one.at_us)} s "
            f"({one.clip.split})"
        )
    yield Warn(
        f"{counted(len(found.found), 'cluster')} listed at {rate}: the head tells labels by them in training "
        f"sessions and not in validation sessions. Look at the examples; if it is no part of the activity, fit without "
        f"it: featurecache shortcuts --bundle {found.bundle} --ignore {found.found[0].cluster}. All: {found.folder}"
    )
    if any(one.picture for one in found.examples):
        yield Warn("the pictures hold frames of recordings. Store them where the recordings may be stored.")


def ignoring(found: "Ignoring") -> Iterator[Piece]:
    """Scores before and after, out of fold."""
    rows = [
        (label, split, score(before), score(after))
        for label, splits in found.result["average_precision"].items()
        for split, (before, after) in splits.items()
    ]
    title = "average precision on sessions that the scoring head has not seen"
    yield plain_table(title, ("label", "split", "with", "without"), rows)
    before, after = (score(found.result[name]["macro_f1"]) for name in ("before", "after"))
    yield f"out-of-fold macro-F1 {before}, without cluster {', '.join(map(str, found.clusters))} {after}"
    yield (
        f"wrote {found.bundle}, whose weights are orthogonal to what was ignored. On the test split: "
        f"featurecache evaluate {found.bundle} --against {found.audited}"
    )


def _row(one: "Shortcut") -> tuple[str, ...]:
    separations = ("unknown" if value is None else f"{value:+.2f}" for value in (one.training, one.validation))
    shares = (one.false_positives_with, one.false_positives_without, one.missed_with, one.missed_without)
    return (
        one.label,
        str(one.cluster),
        f"{one.p:.3f}",
        *separations,
        *("none" if value is None else f"{value:.0%}" for value in shares),
    )
