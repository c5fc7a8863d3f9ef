"""An extraction as `extract` shows it: what is planned, its forecast, what was done, and what failed."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from featurecache.spelling import counted
from featurecache.terminal.clips import left_out, made_clips
from featurecache.terminal.progress import Say, Show, watching_plan
from featurecache.terminal.text import MOST_LISTED, ROOMY_WIDTH, Piece, Warn, rough_size, rough_time

if TYPE_CHECKING:
    from featurecache.extraction.failures import FailedClip
    from featurecache.extraction.forecast import Forecast, Outlook
    from featurecache.extraction.plan import Plan
    from featurecache.workflow.extraction import ExtractionReport

_LONG_S = 3600.0


@contextmanager
def watching_extraction(console: Console, say: Say, show: Show) -> "Iterator[dict[str, Any]]":
    """Callbacks for `extract` that show an extraction as it goes on.

    Args:
        console: Where a bar is drawn, if it is a terminal.
        say: Shows a line.
        show: Shows lines, tables and warnings.
    """
    with watching_plan(console, say, show, plan_lines) as callbacks:
        yield callbacks | {
            "on_left_out": lambda items: show(left_out(items)),
            "on_clips": lambda made: show(made_clips(made)),
            "on_outlook": lambda found: show(outlook_lines(found)),
        }


def plan_lines(plan: "Plan") -> Iterator[Piece]:
    """How much there is to do, said before it begins."""
    yield f"{counted(plan.planned, 'clip')}: {plan.present} in the cache, {plan.todo} to do"
    if mismatch := plan.mismatch.in_words():
        yield Warn(f"features.crop: {mismatch}. Correct its keys, or give those a box.")
    if plan.model.text_after_video:
        yield Warn(
            f"the text after the video ({plan.model.text_after_video!r}) cannot change a feature: attention is "
            "causal. Move what matters in front of <video>."
        )


def outlook_lines(found: "Outlook") -> Iterator[Piece]:
    """What people should know before an extraction that may take days, or more memory than there is."""
    if found.model_s > _LONG_S:
        yield Warn(
            f"on this CPU the model takes about {rough_time(found.model_s)} for {counted(found.clips, 'clip')} "
            f"({rough_time(found.model_s / found.clips)} each), which is safe to stop at any time. Measure it: "
            "featurecache extract --dry-run. A GPU, or a smaller model (docs/backbones.md), takes far less."
        )
    memory = found.memory
    if not memory.fits and memory.free_bytes is not None:
        yield Warn(
            f"the model and a batch need about {rough_size(memory.weights_bytes + memory.batch_bytes)}, but "
            f"{rough_size(memory.free_bytes)} are free on {found.device}: the system may end the process. Free memory, "
            "or use a smaller model (docs/backbones.md)."
        )


def extraction_report(report: "ExtractionReport", width: int) -> Iterator[Piece]:
    """What an extraction did, or its forecast; the plan was shown before.

    Args:
        report: What `featurecache.workflow.extraction.extract` returned.
        width: Of the screen, in characters.
    """
    if report.forecast is not None:
        yield from forecast_pieces(report.forecast, report.plan, width)
    if report.outcome is not None:
        yield from _outcome(report)
    yield from failures(report.failed)


def _outcome(report: "ExtractionReport") -> Iterator[Piece]:
    assert report.outcome is not None  # noqa: S101 - the caller looked
    done = report.outcome.progress
    if done.extracted:
        yield (
            f"extracted {counted(done.extracted, 'clip')} in {done.elapsed_s:.1f} s "
            f"({done.extracted / done.elapsed_s:.1f} clips/s in batches of {done.batch_size}): "
            f"the model ran {done.model_s / done.elapsed_s:.0%} of it, "
            f"waited for video {done.waited_s / done.elapsed_s:.0%}, preprocessing frames took "
            f"{done.preprocess_s / done.elapsed_s:.0%}; writing, in parallel, {done.write_s / done.elapsed_s:.0%}"
        )
    elif report.plan.todo:
        yield f"extracted nothing in {done.elapsed_s:.1f} s"
    if report.outcome.checked:
        yield f"computed {counted(report.outcome.checked, 'stored clip')} again first: the same as stored"
    for crash in report.outcome.crashes:
        yield Warn(f"{crash.worker} {crash.reason}; what it had not saved was computed again")
    if done.claimed_by_others:
        yield f"claimed by another process, in progress: {counted(done.claimed_by_others, 'clip')}"


def failures(failed: "Sequence[FailedClip]") -> Iterator[Piece]:
    """The first recordings of which clips failed, each with its first reason."""
    by_recording: dict[str, list[str]] = {}
    for failure in failed:
        by_recording.setdefault(failure.recording, []).append(failure.reason)
    for recording, reasons in list(by_recording.items())[:MOST_LISTED]:
        yield Warn(f"{recording}: {counted(len(reasons), 'clip')} failed, the first because {reasons[0]}")
    if failed:
        of = counted(len(by_recording), "recording")
        yield Warn(f"{counted(len(failed), 'clip')} of {of} failed; see failed_clips.csv for all")


def forecast_pieces(found: "Forecast", plan: "Plan", width: int) -> Iterator[Piece]:
    """What an extraction will take: operations and time by part, memory and disk."""
    title = f"One clip, {counted(plan.model.frames, 'frame')} of {plan.model.image_px} px"
    table = Table(title=title, title_justify="left", show_footer=True)
    unit, scale = ("TFLOP", 1.0) if found.tflop_per_clip >= 0.1 else ("GFLOP", 1e3)
    seconds = sum(part.seconds for part in found.parts)
    table.add_column("part", footer="total")
    table.add_column(unit, justify="right", footer=f"{found.tflop_per_clip * scale:.2f}")
    table.add_column("share of time", justify="right", footer=rough_time(seconds))
    for part in found.parts:
        table.add_row(part.name, f"{part.tflop * scale:.2f}", f"{part.seconds / seconds:.0%}")
    yield table
    for name, line in _forecast_lines(found, plan, unit, scale).items():
        filled = min(width, ROOMY_WIDTH)
        yield textwrap.fill(line, filled, initial_indent=f"{name:7} ", subsequent_indent=" " * 8)
    if not found.memory.fits:
        yield Warn("the model and a batch are larger than the free memory of the device")
    if plan.bytes_to_write > found.disk_free_bytes:
        yield Warn("the features are larger than the free space of the disk")


def _forecast_lines(found: "Forecast", plan: "Plan", unit: str, scale: float) -> dict[str, str]:
    memory, on = found.memory, f"{found.device_name} in {found.dtype}"
    decoding = (
        f"{rough_time(found.decode_s)} with {counted(found.decoders, 'decoder')}, each "
        f"{found.video_per_decoder:.0f} times real time"
        if found.decode_s is not None
        else f"unknown: {found.decode_problem}"
    )
    lines = {
        "time": f"{rough_time(found.shortest_s, found.longest_s)} on {on}, measured at "
        f"{found.tflop_per_s * scale:.3g} {unit}/s; "
        + ("decoding limits: add decoders" if found.limit == "decoding" else "the model limits, not decoding"),
        "": f"the model {rough_time(found.model_s)} at that speed, resizing {rough_time(found.preprocess_s)}, "
        f"decoding {decoding}",
        "memory": f"{rough_size(memory.weights_bytes)} of weights and about {rough_size(memory.batch_bytes)} for "
        f"batches of {memory.batch_size}"
        + (f"; {rough_size(memory.free_bytes)} are free" if memory.free_bytes is not None else ""),
        "disk": f"{rough_size(plan.bytes_to_write)} of {rough_size(found.disk_free_bytes)} that are free: "
        + ", ".join(f"{name} {rough_size(size)}" for name, size in found.bytes_of.items()),
    }
    if found.shared_frames:
        lines["frames"] = f"overlapping clips share about {found.shared_frames:.0%} of theirs, computed once"
    return lines
