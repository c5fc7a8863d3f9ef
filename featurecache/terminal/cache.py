"""The cache as the `cache` commands show it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from featurecache.spelling import counted
from featurecache.terminal.text import MOST_LISTED, Piece, Warn

if TYPE_CHECKING:
    from featurecache.extraction.why import Explanation
    from featurecache.store import FeatureCache
    from featurecache.store.care import RepairReport, VerifyReport
    from featurecache.store.exchange import ExportReport, ImportReport
    from featurecache.store.garbage import Garbage
    from featurecache.store.rewrite import CompactReport
    from featurecache.workflow.withdrawal import Withdrawal


def contents(cache: "FeatureCache") -> Iterator[Piece]:
    """The feature spaces of a cache, and what is damaged in it."""
    table = Table()
    for column in ("feature space", "tap", "pooling", "shape", "dtype", "clips", "segments", "MB"):
        table.add_column(column, justify="left" if column in ("feature space", "tap", "pooling") else "right")
    for space in cache.spaces:
        shape = " x ".join(map(str, space.row_shape))
        counts = (shape, space.stored_dtype, str(space.rows), str(space.segments), f"{space.bytes / 1e6:.1f}")
        table.add_row(space.fingerprint[:16], space.tap, space.pooling, *counts)
    yield table
    yield from (Warn(damage.reason) for damage in cache.damage)


def explanation(found: "Explanation") -> Iterator[Piece]:
    """Why a clip's feature is found or not."""
    yield f"{found.clip_id}: {'found' if found.found else 'not found'}"
    yield from (f"  {reason}" for reason in found.reasons)


def check(report: "VerifyReport") -> Iterator[Piece]:
    """What a check of the cache found."""
    yield from (Warn(damage.reason) for damage in report.damage)
    number, count = report.part
    kind = "quick" if not report.deep else "deep" if count == 1 else f"deep (portion {number} of {count})"
    yield (
        f"{kind} check of {counted(report.segments, 'segment')} in "
        f"{counted(report.spaces, 'feature space')}: {counted(report.rows, 'clip')} served, "
        f"{len(report.damage)} damaged"
    )
    if report.damage:
        yield "Quarantine the damage: featurecache cache repair"
    for fingerprint, missing in report.missing:
        if missing:
            yield Warn(
                f"feature space {fingerprint[:16]} must hold every clip of clips.csv that did not fail, but "
                f"{counted(missing, 'clip')} are missing. Compute them: featurecache extract"
            )
    if report.withdrawn:
        yield Warn(
            f"nothing of a withdrawn recording may be in the cache, but {counted(report.withdrawn, 'feature')} are. "
            "None is served; remove them: featurecache cache gc --apply"
        )


def repaired(report: "RepairReport") -> Iterator[Piece]:
    """What a repair quarantined, and which clips are to be extracted again."""
    yield f"quarantined {len(report.set_aside)} damaged, wrote {counted(len(report.rewritten), 'record')} again"
    yield from _first_of([f"to extract again: {clip}" for _, clip in report.lost])
    if report.set_aside:
        yield "Compute what is missing: featurecache extract"


def garbage(found: "Sequence[Garbage]", *, applied: bool) -> Iterator[Piece]:
    """What nobody needs, or what was removed."""
    yield from (f"  {item.path}: {item.reason} ({item.size_bytes / 1e6:.1f} MB)" for item in found)
    going = [item for item in found if not item.stays]
    size_mb = sum(item.size_bytes for item in going) / 1e6
    yield f"{'removed' if applied else 'can go'}: {counted(len(going), 'item')}, {size_mb:.1f} MB"
    if going and not applied:
        yield "Remove them: the same command with --apply"


def compaction(report: "CompactReport") -> Iterator[Piece]:
    """How many segments became how many."""
    yield f"merged {counted(report.merged, 'segment')} into {report.written} ({counted(report.rows, 'clip')})"
    if report.merged:
        yield "The old ones go after an hour: featurecache cache gc --apply"


def forgotten(report: "Withdrawal") -> Iterator[Piece]:
    """What was removed of a recording, what could not be searched, and what a person must decide."""
    if report.cache is not None:
        features, segments = counted(report.cache.rows, "feature"), counted(report.cache.rewritten, "segment")
        yield f"removed {features}; wrote {segments} anew, removed {counted(report.cache.leftovers, 'leftover')}"
        yield from (Warn(f"damaged, and gone with it: {clip}") for _, clip in report.cache.lost)
        if report.cache.unknown:
            yield Warn(f"{counted(report.cache.unknown, 'damaged feature')} of unknown clips are gone with it")
        if report.cache.lost or report.cache.unknown:
            yield "Compute them again: featurecache extract"
    yield from (f"  cleaned {path}" for path in report.files_cleaned)
    yield from (f"  removed {path}" for path in report.files_removed)
    yield from (f"  remains: {path}: {what}" for path, what in report.remaining)
    yield from (Warn(f"could not be searched: {path}: {why}") for path, why in report.unsearched)
    if not (report.cache and report.cache.rows) and not (
        report.files_cleaned or report.files_removed or report.remaining
    ):
        yield Warn(
            "nothing here is known to be of this recording: compare what you typed with its sha256. It counts as "
            f"withdrawn now; to take that back, remove {report.mark} from withdrawn/ in the cache"
        )
    yield f"the record of it: {report.record}"


def exported(report: "ExportReport") -> Iterator[Piece]:
    """Where which features were written, and which are not in the file."""
    yield f"wrote {counted(report.rows, 'feature')} of {report.fingerprint[:16]} to {report.path}"
    if report.not_in_file:
        yield f"not in the file: {counted(len(report.not_in_file), 'other feature space')}; export each to a file:"
        yield from _first_of([f"--space {fingerprint[:16]}" for fingerprint in report.not_in_file])


def imported(report: "ImportReport", *, name: str | None) -> Iterator[Piece]:
    """What was read in, and how to train on it."""
    yield (
        f"imported {counted(report.rows, 'feature')}, had {report.present} already; "
        f"tap {report.tap}, pooling {report.pooling}"
    )
    if report.withdrawn:
        left_out = counted(sum(rows for _, rows in report.withdrawn), "feature")
        yield Warn(f"left out {left_out} of {counted(len(report.withdrawn), 'withdrawn recording')}:")
        yield from _first_of([f"{recording}: {counted(rows, 'feature')}" for recording, rows in report.withdrawn])
    yield from (f"removed {fingerprint[:16]}, imported under this name before" for fingerprint in report.replaced)
    if name:
        yield f"Train on them: featurecache tune --features {name}"


def _first_of(lines: "Sequence[str]") -> Iterator[str]:
    yield from (f"  {line}" for line in lines[:MOST_LISTED])
    if len(lines) > MOST_LISTED:
        yield f"  and {len(lines) - MOST_LISTED} more (all of them with --json)"
