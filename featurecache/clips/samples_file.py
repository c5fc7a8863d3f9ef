"""`samples.csv`: the sample table as people read and write it.

One line per part: sample, part (a clip id; empty where the part is missing), role, order, then one column per label (0,
1 or empty), any others that the settings name as slices, and if wanted "findings", a text. A sample's lines agree in
all but part, role and order. Where lines have roles, each role is a place of its own; otherwise parts stand in their
order, or as listed.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from featurecache.clips.clip import Clip, ClipTable, check_labels
from featurecache.clips.csv_file import (
    delimiter_of,
    keep_edited,
    opened_table,
    refuse_edited,
    write_unedited,
)
from featurecache.clips.record import read_record
from featurecache.clips.samples import Sample, SampleTable, make_samples
from featurecache.csv_fields import guard_cell, unguard_cell
from featurecache.errors import ClipTableError
from featurecache.project.settings import Project

COLUMNS = ("sample", "part", "role", "order")
FINDINGS = "findings"
"""An optional column: what somebody wrote of the sample, which is no label."""
SAMPLES_NAME = "samples.csv"

_KEEP = 'Set rule = "file" under [samples] to read it as it is'
_TARGETS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "": None}

_Row = tuple[int, Mapping[str, str]]
"""Line number, and cells by column."""


def samples_record(project: Project) -> Path:
    """What tells whether `samples.csv` was edited."""
    return project.state / "samples.json"


def write_samples(project: Project, table: ClipTable, *, force: bool = False) -> SampleTable:
    """Writes the samples that the project's rule makes of a clip table, but never over a person's edits.

    Args:
        project: The project.
        table: The clip table.
        force: Replace an edited file; it is kept as `samples.edited.csv`.

    Raises:
        EditedTableError: If the file was edited and `force` is not set.
        SettingsError, ClipTableError: As `make_samples`; or if it cannot be written.
    """
    path, state = project.root / SAMPLES_NAME, samples_record(project)
    found = make_samples(table, project.settings.samples)
    written = read_record(state).written
    if force:
        keep_edited(path, written)
    else:
        refuse_edited(path, written, keep=_KEEP)
    write_unedited(format_samples(found), path, state_path=state, force=force)
    return found


def project_samples(project: Project, table: ClipTable) -> SampleTable:
    """The project's samples: by its rule from the clips of today, or as `samples.csv` says.

    Raises:
        EditedTableError: If the file was edited, but the rule is not "file".
        SettingsError, ClipTableError: As `make_samples` and `read_samples`.
    """
    settings, path = project.settings.samples, project.root / SAMPLES_NAME
    if settings.rule == "file":
        return read_samples(path, table, settings.slices)
    refuse_edited(path, read_record(samples_record(project)).written, keep=_KEEP)
    return make_samples(table, settings)


def format_samples(table: SampleTable) -> bytes:
    """The samples as the bytes of `samples.csv`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *map(guard_cell, table.labels)])
    for sample in table.samples:
        for place, part in enumerate(sample.parts):
            role = guard_cell(table.roles[place]) if table.roles else ""
            writer.writerow([guard_cell(sample.name), part, role, place + 1, *sample.targets])
    return text.getvalue().encode()


def read_samples(path: Path, table: ClipTable, slices: Sequence[str] = ()) -> SampleTable:
    """Reads `samples.csv`, checked against the clips that it puts together.

    Args:
        path: The file.
        table: The clip table.
        slices: Columns that are no labels.

    Raises:
        ClipTableError: Naming line and column, if it is not a sound sample table: a part is no clip of the table, a
            sample lies in several sessions or splits, or its lines differ in what must agree.
    """
    if not path.exists():
        raise ClipTableError(
            f'there must be a sample table where samples.rule is "file", but {path} does not exist. Write it, with the '
            f"columns {', '.join(COLUMNS)} and one per label; or choose another rule under [samples]."
        )
    header, of_sample = _rows(path, slices)
    labels = _labels(path.name, header, slices)
    clips = {clip.clip_id: clip for clip in table.clips}
    roles = _roles(path, [row for rows in of_sample.values() for row in rows])
    return SampleTable(labels, _samples(path, of_sample, clips, roles, labels, slices), roles)


def read_unannotated(path: Path, clip_of: Callable[[str], Clip | None], roles: Sequence[str]) -> tuple[Sample, ...]:
    """Reads samples to be predicted: a file as `read_samples` reads it, of which other columns say nothing.

    Args:
        path: The file.
        clip_of: The clip of an id; None where there is none.
        roles: The roles that samples have; empty where their places have no meaning.

    Raises:
        ClipTableError: Naming line and column, if it is not a sound sample table, or has other roles.
    """
    if not path.exists():
        raise ClipTableError(
            f"samples must stand in a table, but {path} does not exist. Write it, with columns {', '.join(COLUMNS)}."
        )
    _, of_sample = _rows(path)
    for number, cells in (row for rows in of_sample.values() for row in rows):
        if unguard_cell(cells["role"]) not in (roles or ("",)):
            known = f"one of {', '.join(roles)}" if roles else "empty, for its samples have none"
            raise _fault(path, number, "role", f"a role of the bundle is {known}, and this is {cells['role']!r}")
    ids = {cells["part"] for rows in of_sample.values() for _, cells in rows}
    clips = {one: clip for one in sorted(ids) if (clip := clip_of(one)) is not None}
    return _samples(path, of_sample, clips, roles, where="the recordings that are given, of the bundle's length")


def _rows(path: Path, slices: Sequence[str] = ()) -> tuple[list[str], dict[str, list[_Row]]]:
    """The header of a sample table, and its rows by sample."""
    of_sample: defaultdict[str, list[_Row]] = defaultdict(list)
    with opened_table(path) as file:
        rows = csv.reader(file, delimiter=delimiter_of(file, COLUMNS[0]), strict=True)
        try:
            header = [unguard_cell(cell.strip()) for cell in next(rows, [])]
            _check_header(path.name, header, slices)
            for row in rows:
                if any(row):
                    if len(row) != len(header):
                        raise _fault(path, rows.line_num, "sample", f"it has {len(row)} cells where {len(header)} are")
                    cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
                    if not cells["sample"]:
                        raise _fault(path, rows.line_num, "sample", "it is empty")
                    of_sample[unguard_cell(cells["sample"])].append((rows.line_num, cells))
        except csv.Error as error:
            raise _fault(path, rows.line_num, "sample", f"it is not CSV ({error})") from error
    return header, of_sample


def _samples(
    path: Path,
    of_sample: Mapping[str, Sequence[_Row]],
    clips: Mapping[str, Clip],
    roles: Sequence[str],
    labels: Sequence[str] = (),
    slices: Sequence[str] = (),
    *,
    where: str = "clips.csv",
) -> tuple[Sample, ...]:
    """The samples of a table's rows, each checked against the clips, and against the others."""
    found = [_sample(path, name, rows, clips, roles, labels, slices, where) for name, rows in of_sample.items()]
    if not found:
        raise ClipTableError(
            f"{path.name} must have a line for each part of a sample, but it has a header alone. Write them, with clip "
            "ids of clips.csv as parts; or choose another rule under [samples]."
        )
    first_with: dict[tuple[str, ...], str] = {}
    for sample in found:
        if (other := first_with.setdefault(sample.parts, sample.name)) != sample.name:
            line = of_sample[sample.name][0][0]
            raise _fault(path, line, "part", f"{sample.name!r} has the clips of {other!r}, and would count twice")
    return tuple(found)


def without_recording(data: bytes, is_its_part: Callable[[str], bool], is_named: Callable[[str], bool]) -> bytes:
    """The bytes of `samples.csv` without the samples that hold a withdrawn recording; other lines keep their bytes.

    A sample goes whole: its targets, and often its name, tell of the recording too.

    Args:
        data: The file.
        is_its_part: Whether a clip id is of the recording.
        is_named: Whether a sample's name tells the recording's.

    Raises:
        ClipTableError: If it is no CSV in UTF-8 with the columns of samples.
    """
    try:
        lines = list(io.StringIO(data.decode("utf-8-sig"), newline=""))
        rows = csv.reader(lines, delimiter=delimiter_of(io.StringIO(lines[0]), COLUMNS[0]), strict=True)
        header = [cell.strip() for cell in next(rows)]
        sample, part = header.index("sample"), header.index("part")
        spans, last = [], rows.line_num
        for row in rows:
            spans.append((last, rows.line_num, row))
            last = rows.line_num
        gone = {row[sample] for *_, row in spans if row and (is_its_part(row[part].strip()) or is_named(row[sample]))}
    except (UnicodeDecodeError, csv.Error, IndexError, ValueError, StopIteration) as error:
        raise ClipTableError(
            f"{SAMPLES_NAME} must be a sample table, but it cannot be read. Look it over, and take out what is of the "
            "recording."
        ) from error
    kept = [lines[: spans[0][0] if spans else len(lines)]]
    kept += [lines[start:end] for start, end, row in spans if not row or row[sample] not in gone]
    text = "".join(line for some in kept for line in some).encode()
    return (b"\xef\xbb\xbf" if data.startswith(b"\xef\xbb\xbf") else b"") + text


def _check_header(name: str, header: Sequence[str], slices: Sequence[str]) -> None:
    missing = [column for column in (*COLUMNS, *slices) if column not in header]
    if missing or tuple(header[: len(COLUMNS)]) != COLUMNS or len({*header}) < len(header):
        raise ClipTableError(
            f"{name}, line 1: the columns must be {', '.join(COLUMNS)}, then labels and slices, each once, but are "
            f"{', '.join(header)}{f' and {missing[0]!r} is missing' if missing else ''}. Correct the header."
        )


def _labels(name: str, header: Sequence[str], slices: Sequence[str]) -> tuple[str, ...]:
    labels = tuple(column for column in header[len(COLUMNS) :] if column not in (*slices, FINDINGS))
    try:
        check_labels([*labels, *slices])
    except ClipTableError as error:
        raise ClipTableError(f"{name}, line 1: {error}") from error
    if not labels:
        raise ClipTableError(f"{name}, line 1: a label must be among the columns, but there is none. Add a column.")
    return labels


def _roles(path: Path, rows: Sequence[_Row]) -> tuple[str, ...]:
    """The roles by the order of their lines; none where no line has one."""
    without = next((number for number, cells in rows if not cells["role"]), None)
    if without is not None:
        if any(cells["role"] for _, cells in rows):
            raise _fault(path, without, "role", "it is empty, but other lines have roles")
        return ()
    first = sorted(rows, key=lambda row: _order(path, row))
    return tuple(dict.fromkeys(unguard_cell(cells["role"]) for _, cells in first))


def _check_order(path: Path, name: str, rows: Sequence[_Row]) -> None:
    """Refuses a sample of which two lines have one order, or some have none."""
    first: dict[int, int] = {}
    stated = [row for row in rows if row[1]["order"]]
    for number, cells in rows if stated else ():
        if not cells["order"]:
            raise _fault(path, number, "order", f"it is empty, but {name!r} has an order on line {stated[0][0]}")
        earlier = first.setdefault(_order(path, (number, cells)), number)
        if earlier != number:
            raise _fault(path, number, "order", f"{name!r} has the order {cells['order']} on line {earlier} too")


def _order(path: Path, row: _Row) -> int:
    number, cells = row
    try:
        return int(cells["order"] or 0)
    except ValueError:
        raise _fault(path, number, "order", f"{cells['order']!r} is no whole number") from None


def _sample(
    path: Path,
    name: str,
    rows: Sequence[_Row],
    clips: Mapping[str, Clip],
    roles: Sequence[str],
    labels: Sequence[str],
    slices: Sequence[str],
    where: str,
) -> Sample:
    _check_order(path, name, rows)
    places: dict[int, str] = {}
    for place, row in enumerate(sorted(rows, key=lambda row: _order(path, row))):
        number, cells = row
        part, at = cells["part"], roles.index(unguard_cell(cells["role"])) if roles else place
        if part and part not in clips:
            raise _fault(path, number, "part", f"{part!r} is no clip of {where}")
        if at in places or (part and part in places.values()):
            raise _fault(path, number, "part", f"{name!r} has its role or its clip on another line too")
        places[at] = part
    there = [clips[part] for part in places.values() if part]
    first, cells = rows[0]
    if not there:
        raise _fault(path, first, "part", f"{name!r} has no clip on any line")
    for column, of in (("session", [clip.session for clip in there]), ("split", [clip.split for clip in there])):
        if len(set(of)) > 1:
            raise _fault(
                path, first, "part", f"{name!r} lies in the {column}s {' and '.join(sorted(set(of)))}, not whole in one"
            )
    also = (*slices, *((FINDINGS,) if FINDINGS in cells else ()))
    for number, others in rows[1:]:
        unlike = next((column for column in (*labels, *also) if others[column] != cells[column]), None)
        if unlike is not None:
            raise _fault(path, number, unlike, f"{name!r} has {cells[unlike]!r} on line {first}")
    unknown = next((label for label in labels if cells[label] not in _TARGETS), None)
    if unknown is not None:
        raise _fault(path, first, unknown, f"{cells[unknown]!r} is not 0, 1 or empty")
    parts = tuple(places.get(place, "") for place in range(len(roles) or len(rows)))
    columns = {column: unguard_cell(cells[column]) for column in slices}
    targets = tuple(_TARGETS[cells[label]] for label in labels)
    findings = unguard_cell(cells.get(FINDINGS, ""))
    return Sample(name, parts, there[0].session, there[0].split, targets, columns, findings)


def _fault(path: Path, line: int, column: str, found: str) -> ClipTableError:
    return ClipTableError(
        f"{path.name}, line {line}, column {column}: samples must be of clips of one session and split and agree on "
        f"their lines, but {found}. Correct the line, or delete the sample."
    )
