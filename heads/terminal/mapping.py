"""What a head uses of a clip, as `featurecache maps` shows it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from featurecache.csv_fields import format_seconds
from featurecache.terminal.text import Piece, Warn, plain_table

if TYPE_CHECKING:
    from heads.workflow.mapping import ClipMap


def mapped(found: "ClipMap") -> Iterator[Piece]:
    """Each label's log odds, and the moment and the patch that raise it most."""
    rows = []
    for at, label in enumerate(found.labels):
        steps = found.parts[..., at].sum(axis=1)
        step = int(steps.argmax())
        patch = int(found.parts[step, :, at].argmax())
        place = "row {}, column {}".format(*found.place(patch)) if found.parts.shape[1] > 1 else ""
        sums = (found.log_odds[at], found.base[at], steps.sum(), found.others[at])
        moment = f"{format_seconds(int(found.steps_us[step]))} s ({steps[step]:+.2f})"
        rows.append((label, *(f"{value:+.2f}" for value in sums), moment, place))
    headings = ("label", "log odds", "base", "tokens add", "other inputs", "most at", "there most in")
    yield plain_table(f"{found.clip.recording}: what {found.feature} adds", headings, rows)
    yield f"wrote every token's part to {found.folder}"
    if found.pictures:
        yield Warn("the pictures hold frames of the recording. Store them where the recording may be stored.")
