"""Which columns of a table of annotations mean what: `columns` under `[data]`.

The defaults are the columns of this toolkit's own CSV. Every other table, an export of ELAN or BORIS or a spreadsheet,
is read by naming its columns here; `init` proposes them.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field


@dataclass(frozen=True)
class ColumnSettings:
    """The names in a table's header; "" where a table has no such column.

    Attributes:
        recording: The recording's name, with or without folders and suffix; "": the table's own name.
        start: Where an interval begins; with `event`, when the row's event happened.
        end: Where it ends.
        duration: How long it lasts, in a table without `end`.
        label: The label, or the tier.
        value: The annotation's value, where `mapping` or `labels_from = "values"` makes labels of it.
        event: Says START, STOP or POINT in a table that has a row for each event.
        subject: Who acts: pairs of START and STOP are of one subject.
        session: The recording's session.
        annotator: Who annotated.
        unit: Of times that are plain numbers; hh:mm:ss is read in either.
        frame_rate: Frames a second, of numbers of frames and of timecodes hh:mm:ss:ff: 25, 29.97, ...; 0: not known.
    """

    recording: str = "recording"
    start: str = "start_s"
    end: str = "end_s"
    duration: str = ""
    label: str = "label"
    value: str = ""
    event: str = ""
    subject: str = ""
    session: str = "session"
    annotator: str = "annotator"
    unit: Literal["s", "ms", "us", "min", "frames"] = "s"
    frame_rate: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 0.0
