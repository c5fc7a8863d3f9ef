"""All methods as `compare` shows them: the paper's Table 1 with intervals, and what stands beside it."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from featurecache.spelling import counted
from featurecache.terminal.extraction import failures
from featurecache.terminal.text import Piece, Warn, plain_table, rough_time, score
from heads.methods import TIMESFORMER, ZSC_J
from heads.terminal.scores import method_scores, unit_of

if TYPE_CHECKING:
    from heads.workflow.comparing import Comparison, Row

_NEEDS = {TIMESFORMER: " (set finetune.model first)", ZSC_J: " (set zeroshot.judge first)"}
"""What a method's command needs besides the project's own model."""


def comparison(found: "Comparison", width: int) -> Iterator[Piece]:
    """What `compare` found."""
    yield from failures(found.failed)
    for run, reason in found.left_out.items():
        yield Warn(f"{run} is left out: {reason}")
    methods: dict[str, Mapping[str, Any]] = dict(found.floors)
    methods |= {f"{row.method} ({row.run})": row.metrics for row in found.rows}
    yield from method_scores(methods, width)
    headings = ["method", "to the highest", "p (Holm)", "another session's video", "time a clip", "free answers"]
    yield plain_table("Beside the scores", headings, [_controls(row) for row in found.rows])
    for method, command in found.missing.items():
        yield f"{method}: missing; make it: {command}{_NEEDS.get(method, '')}"
    unit = unit_of(found.rows[0].metrics)
    yield (
        f"another session's video: macro-F1 when each {unit} is given the scores of another session's {unit}; time a "
        "clip: the model's matrix products for one clip, measured here"
    )
    written = ", ".join(path.name for path in found.written)
    yield f"test-set evaluation no. {found.looks} of these sessions; wrote {written} in {found.written[0].parent}"
    for name in ("looks_warning", "split_warning"):
        if name in found.rows[0].metrics:
            yield Warn(f"{found.rows[0].metrics[name]}.")


def _controls(row: "Row") -> list[str]:
    difference, p_value = "highest", "-"
    if row.difference is not None:
        value, span = row.difference["difference"], row.difference["difference_ci95"]
        difference = "undefined" if value is None else f"{value:+.3f}"
        difference += "" if span is None else f" ({span[0]:+.3f} to {span[1]:+.3f})"
        difference += f" on {counted(len(row.difference['labels']), 'label')}" if "labels" in row.difference else ""
        p_value = f"{row.difference['p_holm']:.3g}" if "p_holm" in row.difference else "-"
    seconds = "unknown" if row.seconds_per_clip is None else rough_time(row.seconds_per_clip)
    counts = [f"{row.audit[name]} {name}" for name in ("unparsable", "hallucinated", "violations") if name in row.audit]
    said = f"of {counted(row.audit['n_clips'], 'clip')}: {', '.join(counts)}" if counts else "-"
    return [f"{row.method} ({row.run})", difference, p_value, score(row.another_session), seconds, said]
