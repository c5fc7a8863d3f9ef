"""What to annotate next, as `featurecache suggest` shows it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from featurecache.csv_fields import format_seconds
from featurecache.spelling import counted
from featurecache.terminal.clips import left_out
from featurecache.terminal.text import MOST_LISTED, Piece, plain_table, rough_time

if TYPE_CHECKING:
    from heads.workflow.suggesting import Suggestions


def suggested(found: "Suggestions") -> Iterator[Piece]:
    """The first stretches, and where all of them stand."""
    yield from left_out(found.left_out)
    rows = [
        (
            f"{rank}. {one.recording}",
            format_seconds(one.start_us),
            format_seconds(one.end_us),
            "" if one.doubt is None else f"{one.doubt:.2f}",
            "; ".join(one.likely),
        )
        for rank, one in enumerate(found.stretches[:MOST_LISTED], start=1)
    ]
    yield plain_table("Please annotate", ("recording", "from s", "to s", "doubt", "likely"), rows)
    total_s = sum(one.end_us - one.start_us for one in found.stretches) / 1e6
    yield (
        f"{rough_time(total_s)} in {counted(len(found.stretches), 'piece')}, of {rough_time(found.unlabelled_s)} that "
        f"are unlabelled; order: {found.order}; the list: {found.table}"
    )
    if found.without_features:
        yield f"{counted(found.without_features, 'clip')} without features took no part"
    if found.are_recordings:
        yield "annotate these recordings whole: what is not annotated in an annotated recording counts as negative."
    yield (
        f'open the .eaf files of {found.folder} in ELAN; the tier "please annotate" shows where. docs/guide.md says '
        "how they become annotations."
    )
