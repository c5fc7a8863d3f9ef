"""`clips.csv`: what is written comes back, edits are kept, and every fault is named by line and column."""

import dataclasses
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.clips.clip import COLUMNS, Clip, ClipTable, clip_id
from featurecache.clips.csv_file import format_table, read_table, write_table
from featurecache.errors import ClipTableError, EditedTableError

LABELS = ("ventilation", "suction")


def make_clip(recording: str, start_s: int, targets: tuple[int | None, ...], split: str = "train") -> Clip:
    start, end = start_s * 1_000_000, (start_s + 3) * 1_000_000
    digest = recording.encode().hex().ljust(16, "0")[:16]
    return Clip(clip_id(digest, start, end), recording, recording.split("/")[0], split, start, end, targets)


TABLE = ClipTable(
    LABELS,
    (
        make_clip("A/1.mp4", 0, (1, 0)),
        make_clip("A/1.mp4", 3, (0, 0)),
        make_clip("B/1.mp4", 0, (0, 1), "test"),
        make_clip("C/1.mp4", 0, (None, None), ""),
    ),
)
TEXT = """\
clip_id,recording,session,split,start_s,end_s,ventilation,suction
412f312e6d703400-0-3000000,A/1.mp4,A,train,0,3,1,0
412f312e6d703400-3000000-6000000,A/1.mp4,A,train,3,6,0,0
422f312e6d703400-0-3000000,B/1.mp4,B,test,0,3,0,1
432f312e6d703400-0-3000000,C/1.mp4,C,,0,3,,
"""

names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8)
plain = names.map(str.strip).filter(bool)


@st.composite
def tables(draw: st.DrawFn) -> ClipTable:
    labels = tuple(draw(st.lists(plain.filter(lambda label: label not in COLUMNS), unique=True, max_size=3)))
    recordings = draw(st.lists(st.tuples(names, plain), unique_by=lambda pair: pair[0], max_size=4))
    split_of = {session: draw(st.sampled_from(["train", "validation", "test", ""])) for _, session in recordings}
    clips = []
    for index, (recording, session) in enumerate(recordings):
        targets = st.tuples(*[st.integers(0, 1) for _ in labels]) | st.just((None,) * len(labels))
        for start in sorted(draw(st.sets(st.integers(0, 10**14), max_size=3))):
            end = start + draw(st.integers(1, 10**7))
            split = draw(st.sampled_from([split_of[session], ""]))
            clips.append(
                Clip(clip_id(f"{index:016x}", start, end), recording, session, split, start, end, draw(targets))
            )
    return ClipTable(labels, tuple(clips))


@settings(deadline=None, max_examples=150)
@given(tables())
def test_table_comes_back_as_written(tmp_path_factory: pytest.TempPathFactory, table: ClipTable) -> None:
    folder = tmp_path_factory.mktemp("table")
    assert write_table(table, folder / "clips.csv", state_path=folder / "state.json")
    assert read_table(folder / "clips.csv") == table


def test_format_table_is_plain_text() -> None:
    assert format_table(TABLE).decode() == TEXT


def test_write_table_is_private_and_leaves_no_other_file(tmp_path: Path) -> None:
    path, state = tmp_path / "clips.csv", tmp_path / ".featurecache" / "clips.json"
    assert write_table(TABLE, path, state_path=state)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path, state, state.parent)] == [0o600, 0o600, 0o700]
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".featurecache", "clips.csv", "clips.json"]


def test_format_table_guards_what_a_spreadsheet_would_run() -> None:
    risky = dataclasses.replace(TABLE.clips[0], recording="=cmd|' /C calc'!A0.mp4", session="@S")
    text = format_table(ClipTable(("-x", "y"), (risky,))).decode()
    assert text.splitlines()[0].endswith(",'-x,y")
    assert ",'=cmd|' /C calc'!A0.mp4,'@S," in text


@pytest.mark.parametrize("bad", ["a\rb", "a\nb", "\x00", "\udcff"])
def test_format_table_refuses_names_that_hold_control_characters(bad: str) -> None:
    with pytest.raises(ClipTableError, match="control character"):
        format_table(ClipTable(LABELS, (dataclasses.replace(TABLE.clips[0], recording=bad),)))
    with pytest.raises(ClipTableError, match="control character"):
        format_table(ClipTable((bad, "y"), ()))


class TestEdits:
    """An edited table is kept until the user forces it."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> tuple[Path, Path]:
        write_table(TABLE, tmp_path / "clips.csv", state_path=tmp_path / "clips.json")
        return tmp_path / "clips.csv", tmp_path / "clips.json"

    def test_write_table_replaces_its_own_table(self, place: tuple[Path, Path]) -> None:
        path, state = place
        assert not write_table(TABLE, path, state_path=state)
        shorter = ClipTable(LABELS, TABLE.clips[:2])
        assert write_table(shorter, path, state_path=state)
        assert write_table(TABLE, path, state_path=state)
        assert read_table(path) == TABLE

    def test_write_table_keeps_an_edited_table_unless_forced(self, place: tuple[Path, Path]) -> None:
        path, state = place
        edited = path.read_bytes().replace(b"train,0,3,1,0", b"train,0,3,1,1")
        path.write_bytes(edited)
        for _ in range(2):
            with pytest.raises(EditedTableError, match="featurecache clips --force"):
                write_table(TABLE, path, state_path=state)
            assert path.read_bytes() == edited
        assert write_table(TABLE, path, state_path=state, force=True)
        assert path.read_bytes() == TEXT.encode()
        assert not write_table(TABLE, path, state_path=state)

    def test_write_table_takes_an_equal_table_for_unedited(self, place: tuple[Path, Path]) -> None:
        path, state = place
        state.unlink()
        assert not write_table(TABLE, path, state_path=state)
        assert write_table(ClipTable(LABELS, TABLE.clips[:1]), path, state_path=state)

    @pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"written": 3}', b'{"written": [1]}', b"\xff\xfe"])
    def test_write_table_takes_the_table_for_edited_when_the_state_is_damaged(
        self, place: tuple[Path, Path], damage: bytes
    ) -> None:
        path, state = place
        state.write_bytes(damage)
        with pytest.raises(EditedTableError):
            write_table(ClipTable(LABELS, ()), path, state_path=state)

    def test_write_table_is_no_edit_when_it_was_killed_between_state_and_table(self, place: tuple[Path, Path]) -> None:
        path, state = place
        before = path.read_bytes()
        write_table(ClipTable(LABELS, ()), path, state_path=state)
        path.write_bytes(before)
        assert write_table(ClipTable(LABELS, ()), path, state_path=state)

    def test_write_table_writes_nothing_when_the_folder_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ClipTableError, match="must be writable"):
            write_table(TABLE, tmp_path / "no" / "clips.csv", state_path=tmp_path / "clips.json")


def read(tmp_path: Path, data: str | bytes) -> ClipTable:
    path = tmp_path / "clips.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_table(path)


@pytest.mark.parametrize(
    "habit",
    [
        lambda t: "\ufeff" + t,
        lambda t: t.replace("\n", "\r\n"),
        lambda t: t.replace("\n", "\r"),
        lambda t: t.replace(",", ";"),
        lambda t: t.replace(",", "\t"),
        lambda t: "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in t.splitlines()),
        lambda t: "\n".join(";".join(f'"{cell}"' for cell in line.split(",")) for line in t.splitlines()),
        lambda t: t + ",,,,,,,\n\n",
        lambda t: t.replace("\n", ",,\n"),
        lambda t: t.replace(",0,3,1,0\n", ",0.0,3.0,1.0,0.0\n"),
        lambda t: t.replace(",0,3,1,0\n", ", 0, 3.000000,1 , 0,,\n"),
        lambda t: t.replace(",", ";").replace(";0;3;1;0\n", ";0,0;3,0;1,0;0,0\n"),
    ],
)
def test_read_table_understands_what_spreadsheets_do(tmp_path: Path, habit) -> None:  # type: ignore[no-untyped-def]
    assert read(tmp_path, habit(TEXT)) == TABLE


def test_read_table_accepts_the_edits_people_make(tmp_path: Path) -> None:
    lines = TEXT.splitlines(keepends=True)
    assert read(tmp_path, "".join(lines[:1])).clips == ()
    left_out = read(tmp_path, TEXT.replace("A,train,3,6", "A,,3,6"))
    assert [clip.split for clip in left_out.clips] == ["train", "", "test", ""]
    assert read(tmp_path, lines[0] + lines[3] + lines[1]).clips == (TABLE.clips[2], TABLE.clips[0])
    assert read(tmp_path, "".join(line.rpartition(",")[0] + "\n" for line in lines)).labels == ("ventilation",)


FIRST = "412f312e6d703400-0-3000000,A/1.mp4,A,train,0,3,1,0"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("A,train,0,3", "A,trian,0,3", r"line 2, column split: 'trian' must be train.*Did you mean 'train'"),
        ("A,train,3,6", "A,test,3,6", r"line 3, column split: .*session 'A' lies in train and in test \(see line 2\)"),
        ("B/1.mp4,B,test", "B/1.mp4, a ,test", r"line 4, column session: .*'a' is also spelled 'A' \(see line 2\)"),
        ("B/1.mp4,B", "A/1.mp4,A", r"line 4, column recording: .*has the contents"),
        ("422f312e6d703400", "412f312e6d703400", r"line 4, column clip_id: .* it is also on line 2"),
        ("422f312e6d703400-0-3000000,B/1.mp4,B,test,0,3", "412f312e6d703400-6000000-9000000,B/1.mp4,B,test,6,9",
         r"line 4, column recording: .*'A/1.mp4' and 'B/1.mp4' have the same content"),
        ("train,0,3", "train,1,3", r"line 2, column start_s: '1' must be 0 as the clip_id 412f"),
        ("train,0,3", "train,0,4", r"line 2, column end_s: '4' must be 3 as the clip_id"),
        ("train,0,3", "train,0,3s", r"line 2, column end_s: '3s' must be seconds"),
        ("train,0,3", "train,,3", r"line 2, column start_s: '' must be seconds"),
        ("train,0,3", "train,03.jan,3", r"line 2, column start_s: '03.jan' must be seconds"),
        (FIRST, FIRST.replace("-0-3000000", "-3000000-3000000").replace("train,0,3", "train,3,3"),
         "line 2, column end_s: .* after start_s"),
        ("412f312e6d703400-0-", "412F312e6d703400-0-", "line 2, column clip_id: .* 16 hex digits"),
        ("432f312e6d703400-0-3000000", "", "line 5, column clip_id: '' must be 16 hex"),
        ("C/1.mp4,C", ",C", "line 5, column recording: '' must name a recording"),
        ("C/1.mp4,C", "C/1.mp4, ", "line 5, column session: '' must name a session"),
        ("train,0,3,1,0", "train,0,3,TRUE,0", r"line 2, column ventilation: 'TRUE' must be 0, 1, or empty"),
        ("train,0,3,1,0", "train,0,3,0.5,0", r"line 2, column ventilation: '0.5' must be 0, 1"),
        ("train,0,3,1,0", "train,0,3,1,", r"line 2, column suction: .* all targets or none"),
        ("train,0,3,1,0", "train,0,3,1", r"line 2: it must have 8 fields .* it has 7"),
        ("train,0,3,1,0", "train,0,3,1,0,0", r"line 2: it must have 8 fields .* it has 9"),
        (",ventilation,suction", ",ventilation,ventilation", r"column 8 \('ventilation'\): .* stands there twice"),
        (",ventilation,suction", ",,suction", r"line 1, column 7 \(''\): .* it is empty"),
        (",ventilation,suction", ",ventilation,split", r"line 1, column 8 \('split'\): .* name of another column"),
        ("recording,session", "session,recording", r"line 1: column 2 must be 'recording', but it is 'session'"),
        ("clip_id,", "", r"line 1: column 1 must be 'clip_id'"),
        (TEXT, "", r"line 1: column 1 must be 'clip_id', but it is ''"),
        ("A/1.mp4,A,train,0", '"A/1.mp4,A,train,0', r"line 5: it must be CSV"),
    ],
)  # fmt: skip
def test_read_table_names_line_and_column_when_something_is_wrong(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in TEXT
    with pytest.raises(ClipTableError, match=message):
        read(tmp_path, TEXT.replace(old, new, 1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TEXT.encode("utf-16"), "line 1: it must be UTF-8"),
        (TEXT.replace("B/1", "B/ø").encode("latin-1"), "line 4: it must be UTF-8, but byte 0xf8"),
        (TEXT.replace("A/1.mp4", "A" * 200_000).encode(), "line 2: it must be CSV"),
        (TEXT.replace("A,train", "A\0,train").encode(), "line 2, column session: .* control character"),
    ],
)
def test_read_table_says_so_when_the_text_is_unreadable(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ClipTableError, match=message):
        read(tmp_path, data)


def test_read_table_says_so_when_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ClipTableError, match=r"does not exist\. Make it: featurecache clips"):
        read_table(tmp_path / "clips.csv")
    (tmp_path / "clips.csv").mkdir()
    with pytest.raises(ClipTableError, match=r"must be a table, but it is a folder\. Move it away"):
        read_table(tmp_path / "clips.csv")
