"""`samples.csv`: the sample table as people read and write it.

One line per part: sample, part (a clip id; empty where the part is missing), role, order, then one column per label (0,
1 or empty), any others that the settings name as slices, and if wanted "findings", a text. A sample's lines agree in
all but part, role and order. Where lines have roles, each role is a place of its own; otherwise parts stand in their
order, or as listed.
"""

import csv
import io
import re
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
from featurecache.csv_fields import UNWRITABLE, guard_cell, unguard_cell
from featurecache.errors import ClipTableError
from featurecache.project.settings import Project
from featurecache.spelling import caseless, look_alikes, plain_name

COLUMNS = ("sample", "part", "role", "order")
FINDINGS = "findings"
"""An optional column: what somebody wrote of the sample, which is no label."""
SAMPLES_NAME = "samples.csv"

_KEEP = 'Set rule = "file" under [samples] to read it as it is'
_NO_ROLES = "a role must be empty, for the samples of the bundle have none"
_LONGEST_NAME = 500
_ORDER = re.compile(r"-?[0-9]{1,9}(\.0+)?")  # "1.0" is how programs write a column of numbers that has an empty cell
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
        nothing = "leads to no file" if path.is_symlink() else "does not exist"
        raise ClipTableError(
            f'there must be a sample table where samples.rule is "file", but {path} {nothing}. Write it, with the '
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
        nothing = "leads to no file" if path.is_symlink() else "does not exist"
        raise ClipTableError(
            f"samples must stand in a table, but {path} {nothing}. Write it, with columns {', '.join(COLUMNS)}."
        )
    _, of_sample = _rows(path)
    for number, cells in (row for rows in of_sample.values() for row in rows):
        if cells["role"] not in (roles or ("",)):
            must = f"a role must be one of the bundle's, {', '.join(roles)}" if roles else _NO_ROLES
            raise _fault(path, number, "role", must, f"it is {cells['role']!r}")
    ids = {cells["part"] for rows in of_sample.values() for _, cells in rows}
    clips = {one: clip for one in sorted(ids) if (clip := clip_of(one)) is not None}
    return _samples(path, of_sample, clips, roles, where="the recordings that are given, of the bundle's length")


def _rows(path: Path, slices: Sequence[str] = ()) -> tuple[list[str], dict[str, list[_Row]]]:
    """The header of a sample table, and its rows by sample."""
    of_sample: defaultdict[str, list[_Row]] = defaultdict(list)
    spelled: dict[tuple[str, str], tuple[int, str]] = {}
    with opened_table(path) as file:
        rows = csv.reader(file, delimiter=delimiter_of(file, COLUMNS[0]), strict=True)
        try:
            header = [unguard_cell(cell.strip()) for cell in next(rows, [])]
            _check_header(path.name, header, slices)
            for row in rows:
                if any(row):
                    if len(row) != len(header):
                        must = f"a line must have the header's {len(header)} cells"
                        raise _fault(path, rows.line_num, "sample", must, f"it has {len(row)}")
                    cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
                    for column in ("sample", "role"):
                        cells[column] = plain_name(unguard_cell(cells[column]))
                        _check_name(path, (rows.line_num, cells), column, spelled)
                    of_sample[cells["sample"]].append((rows.line_num, cells))
        except csv.Error as error:
            raise _fault(path, rows.line_num, "sample", "it must be CSV", f"reading it gave: {error}") from error
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
            raise _fault(
                path,
                line,
                "part",
                "each sample must have clips of its own",
                f"{sample.name!r} has the clips of {other!r}",
            )
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
        held = (row for *_, row in spans if row and (is_its_part(row[part].strip()) or is_named(row[sample])))
        gone = {plain_name(unguard_cell(row[sample].strip())) for row in held}
    except (UnicodeDecodeError, csv.Error, IndexError, ValueError, StopIteration) as error:
        raise ClipTableError(
            f"{SAMPLES_NAME} must be a sample table, but it cannot be read. Look it over, and take out what is of the "
            "recording."
        ) from error
    kept = [lines[: spans[0][0] if spans else len(lines)]]
    kept += [
        lines[start:end]
        for start, end, row in spans
        if not row or plain_name(unguard_cell(row[sample].strip())) not in gone
    ]
    text = "".join(line for some in kept for line in some).encode()
    return (b"\xef\xbb\xbf" if data.startswith(b"\xef\xbb\xbf") else b"") + text


def _check_header(name: str, header: Sequence[str], slices: Sequence[str]) -> None:
    missing = [column for column in (*COLUMNS, *slices) if column not in header]
    if missing or tuple(header[: len(COLUMNS)]) != COLUMNS or len({*header}) < len(header):
        raise ClipTableError(
            f"{name}, line 1: the columns must be {', '.join(COLUMNS)}, then labels and slices, each once, but are "
            f"{', '.join(map(repr, header)) or 'none'}{f', and {missing[0]!r} is missing' if missing else ''}. "
            'Correct the header, and save the file as "CSV UTF-8".'
        )


def _labels(name: str, header: Sequence[str], slices: Sequence[str]) -> tuple[str, ...]:
    labels = tuple(column for column in header[len(COLUMNS) :] if column not in (*slices, FINDINGS))
    try:
        check_labels([*labels, *slices])
    except ClipTableError as error:
        raise ClipTableError(f"{name}, line 1: {error}") from error
    if alike := look_alikes(labels):
        raise ClipTableError(
            f"{name}, line 1: labels must differ by more than case or punctuation, but "
            f"{' and '.join(map(repr, alike[0]))} do not. Join the columns, or rename one."
        )
    if not labels:
        raise ClipTableError(f"{name}, line 1: a label must be among the columns, but there is none. Add a column.")
    return labels


def _roles(path: Path, rows: Sequence[_Row]) -> tuple[str, ...]:
    """The roles by the order of their lines; none where no line has one."""
    without = next((number for number, cells in rows if not cells["role"]), None)
    if without is not None:
        if any(cells["role"] for _, cells in rows):
            raise _fault(path, without, "role", "all lines must have a role, or none", "it is empty")
        return ()
    first = sorted(rows, key=lambda row: _order(path, row))
    return tuple(dict.fromkeys(cells["role"] for _, cells in first))


def _check_name(path: Path, row: _Row, column: str, spelled: dict[tuple[str, str], tuple[int, str]]) -> None:
    """Refuses the name of a sample or role that is none, or that another line spells otherwise."""
    number, cells = row
    name = cells[column]
    if UNWRITABLE.search(name) or len(name) > _LONGEST_NAME or (not name and column == "sample"):
        found = "holds a control character" if UNWRITABLE.search(name) else f"has {len(name)} characters"
        raise _fault(
            path, number, column, f"a {column} must be a plain name of up to {_LONGEST_NAME} characters", f"it {found}"
        )
    line, other = spelled.setdefault((column, caseless(name)), (number, name))
    if other != name:
        raise _fault(path, number, column, f"a {column} must be spelled alike", f"{name!r} is {other!r} on line {line}")


def _check_order(path: Path, name: str, rows: Sequence[_Row]) -> None:
    """Refuses a sample of which two lines have one order, or some have none."""
    first: dict[int, int] = {}
    stated = [row for row in rows if row[1]["order"]]
    for number, cells in rows if stated else ():
        if not cells["order"]:
            found = f"{name!r} has an order on line {stated[0][0]} and none here"
            raise _fault(path, number, "order", "all parts of a sample must have an order, or none", found)
        earlier = first.setdefault(_order(path, (number, cells)), number)
        if earlier != number:
            found = f"{name!r} has the order {cells['order']} on line {earlier} too"
            raise _fault(path, number, "order", "parts of a sample must have different orders", found)


def _order(path: Path, row: _Row) -> int:
    number, cells = row
    text = cells["order"]
    if text and not _ORDER.fullmatch(text):
        raise _fault(path, number, "order", "an order must be a whole number of up to 9 digits", f"it is {text[:40]!r}")
    return int(text.partition(".")[0] or 0)


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
        part, at = cells["part"], roles.index(cells["role"]) if roles else place
        if part and part not in clips:
            raise _fault(path, number, "part", f"a part must be a clip_id of {where}, or empty", f"it is {part[:60]!r}")
        if at in places or (part and part in places.values()):
            found = f"{name!r} has its role or its clip on another line too"
            raise _fault(path, number, "part", "parts of a sample must differ", found)
        places[at] = part
    there = [clips[part] for part in places.values() if part]
    first, cells = rows[0]
    if not there:
        raise _fault(path, first, "part", "a sample must have a clip", f"{name!r} has none on any line")
    for column, of in (("session", [clip.session for clip in there]), ("split", [clip.split for clip in there])):
        if len(set(of)) > 1:
            found = f"{name!r} lies in the {column}s {' and '.join(sorted(set(of)))}"
            raise _fault(path, first, "part", f"a sample must lie whole in one {column}", found)
    also = (*slices, *((FINDINGS,) if FINDINGS in cells else ()))
    for number, others in rows[1:]:
        unlike = next((column for column in (*labels, *also) if _value(others[column]) != _value(cells[column])), None)
        if unlike is not None:
            found = f"{name!r} has {cells[unlike][:60]!r} on line {first} and {others[unlike][:60]!r} here"
            raise _fault(path, number, unlike, "the lines of a sample must agree", found)
    unknown = next((label for label in labels if cells[label] not in _TARGETS), None)
    if unknown is not None:
        raise _fault(path, first, unknown, "a target must be 0, 1 or empty", f"it is {cells[unknown][:60]!r}")
    parts = tuple(places.get(place, "") for place in range(len(roles) or len(rows)))
    columns = {column: unguard_cell(cells[column]) for column in slices}
    targets = tuple(_TARGETS[cells[label]] for label in labels)
    findings = unguard_cell(cells.get(FINDINGS, ""))
    return Sample(name, parts, there[0].session, there[0].split, targets, columns, findings)


def _value(cell: str) -> str | int | None:
    """What two cells must share to agree: 1 is 1.0."""
    return _TARGETS.get(cell, cell)


def _fault(path: Path, line: int, column: str, must: str, found: str) -> ClipTableError:
    return ClipTableError(
        f"{path.name}, line {line}, column {column}: {must}, but {found}. Correct the line, or delete the sample."
    )
