"""Samples of several clips: the rules that make them, the file that holds them, and what is refused by name."""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest

from featurecache import FeatureCache
from featurecache.clips.clip import Clip, ClipTable
from featurecache.clips.leakage import sessions_in, spans_of, touching
from featurecache.clips.samples import SampleTable, make_samples
from featurecache.clips.samples_file import format_samples, read_samples, read_unannotated
from featurecache.errors import ClipTableError, SettingsError, TrainingDataError
from featurecache.extraction.failures import KnownFailures
from featurecache.project.samples import SampleSettings
from heads.loading import load_all_splits, load_split
from tests.cache_samples import make_rows, names, space, values, write

SECOND = 1_000_000


def clip(recording: str, second: int, targets: tuple[int | None, ...], session: str = "", split: str = "train") -> Clip:
    content = f"{sum(map(ord, recording)):016x}"
    start, end = second * SECOND, (second + 1) * SECOND
    name = f"{content}-{start}-{end}"
    return Clip(name, recording, session or recording[:3], split, start, end, targets)


CAMERAS = [clip(f"S0{session}_{camera}.mp4", second, (int(camera == "top"), 0), f"S0{session}")
           for session in (1, 2) for camera in ("front", "top") for second in range(2)]  # fmt: skip


def test_a_recording_is_on_where_any_of_its_clips_is_and_groups_have_the_size_that_is_asked() -> None:
    clips = [clip("a.mp4", second, (int(second == 4), 0)) for second in range(5)] + [clip("b.mp4", 0, (None, None))]
    whole = make_samples(ClipTable(("x", "y"), tuple(clips)), SampleSettings("recording"))
    assert [(len(sample.parts), sample.targets) for sample in whole.samples] == [(5, (1, 0))]
    groups = make_samples(ClipTable(("x", "y"), tuple(clips[::-1])), SampleSettings("recording", most_clips=2))
    assert [len(sample.parts) for sample in groups.samples] == [2, 2, 1]
    assert [sample.targets for sample in groups.samples] == [(0, 0), (0, 0), (1, 0)]
    assert groups.samples[1].parts == (clips[2].clip_id, clips[3].clip_id)


def test_a_moment_holds_the_cameras_of_a_session_and_a_camera_that_failed_is_an_absent_part() -> None:
    unlabelled = [
        dataclasses.replace(one, targets=(None, None)) if "front" in one.recording else one for one in CAMERAS
    ]
    found = make_samples(ClipTable(("x", "y"), tuple(unlabelled[:-1])), SampleSettings("moment"))
    assert found.roles == ("front", "top")
    assert next(sample.parts for sample in found.samples) == (CAMERAS[0].clip_id, CAMERAS[2].clip_id)
    assert [sample.targets for sample in found.samples] == [(1, 0)] * 3  # of S02, second 1, no labelled clip is left
    only_front = make_samples(ClipTable(("x", "y"), tuple(CAMERAS[:-1])), SampleSettings("moment")).samples[-1]
    assert (only_front.parts, only_front.targets) == ((CAMERAS[5].clip_id, ""), (0, 0))


def test_an_event_has_the_clips_right_before_and_after_it_and_the_targets_of_the_latter() -> None:
    states = [(0, 0), (1, 1), (1, 0), (0, 1), (1, 1)]  # the second stretch has no clip after it
    clips = [clip("a.mp4", second, state) for second, state in enumerate(states)]
    gap = [clip("b.mp4", 0, (0, 0)), clip("b.mp4", 3, (1, 1)), clip("b.mp4", 4, (0, 0))]  # nothing right before it
    found = make_samples(ClipTable(("e", "y"), (*clips, *gap)), SampleSettings("event", event="e"))
    assert (found.labels, found.roles) == (("y",), ("before", "after"))
    assert [(sample.parts, sample.targets) for sample in found.samples] == [
        ((clips[0].clip_id, clips[3].clip_id), (1,))
    ]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (SampleSettings("event", event="z"), SettingsError, "samples.event must be a label of clips.csv .* is 'z'"),
        (SampleSettings("event", event="x"), ClipTableError, 'rule = "event" must find samples'),
        (SampleSettings("moment"), ClipTableError, "sessions of several recordings"),
    ],
)
def test_a_rule_that_finds_nothing_says_what_it_needs(
    settings: SampleSettings, error: type[Exception], words: str
) -> None:
    table = ClipTable(("x", "y"), (clip("S01.mp4", 0, (0, 0)),))
    with pytest.raises(error, match=words):
        make_samples(table, settings)


TABLE = ClipTable(("x", "y"), tuple(CAMERAS))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "samples.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_a_rule_writes_is_read_back_and_so_is_what_a_spreadsheet_makes_of_it(tmp_path: Path) -> None:
    made = make_samples(TABLE, SampleSettings("moment"))
    text = format_samples(made).decode()
    assert read_samples(written(tmp_path, text), TABLE) == made
    assert read_samples(written(tmp_path, "\ufeff" + text.replace(",", ";").replace("\n", "\r\n")), TABLE) == made


def test_order_is_that_of_the_column_and_a_slice_is_no_label(tmp_path: Path) -> None:
    a, b, c = (one.clip_id for one in (CAMERAS[0], CAMERAS[1], CAMERAS[2]))
    rows = f"sample,part,role,order,ability,better\np,{a},,2,temporal,1\np,{b},,1,temporal,1\nq,{c},,,other,\n"
    found = read_samples(written(tmp_path, rows), TABLE, ["ability"])
    assert isinstance(found, SampleTable)
    assert (found.labels, found.roles, found.places) == (("better",), (), 2)
    assert [sample.parts for sample in found.samples] == [(b, a), (c,)]
    assert [(sample.targets, sample.columns["ability"]) for sample in found.samples] == [
        ((1,), "temporal"),
        ((None,), "other"),
    ]


A, B, OTHER = CAMERAS[0].clip_id, CAMERAS[1].clip_id, CAMERAS[4].clip_id
HEADER = "sample,part,role,order,x\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{HEADER}p,{A},,1,1\np,{OTHER},,2,1\n", "line 2, column part: .*'p' lies in the sessions S01 and S02"),
        (
            f"{HEADER}p,{A},,1,1\np,0-0-1,,2,1\n",
            "line 3, column part: .* a clip_id of clips.csv, or empty, but it is '0-0-1'",
        ),
        (f"{HEADER}p,{A},,1,1\np,{B},,2,0\n", "line 3, column x: .*'p' has '1' on line 2"),
        (f"{HEADER}p,{A},,1,yes\n", "line 2, column x: a target must be 0, 1 or empty, but it is 'yes'"),
        (f"{HEADER}p,{A},,1,1\np,{A},,2,1\n", "line 3, column part: .*another line too"),
        (f"{HEADER}p,{A},a,1,1\np,{B},a,2,1\n", "line 3, column part: .*another line too"),
        (f"{HEADER}p,{A},a,1,1\np,{B},,2,1\n", "line 3, column role: all lines must have a role, or none"),
        (f"{HEADER}p,{A},,one,1\n", "line 2, column order: .* a whole number of up to 9 digits, but it is 'one'"),
        (f"{HEADER}p,,,1,1\n", "line 2, column part: a sample must have a clip, but 'p' has none"),
        (f"{HEADER}p,{A},,1,1\np,{B},,1,1\n", "line 3, column order: .*'p' has the order 1 on line 2 too"),
        (f"{HEADER}p,{A},a,01,1\np,{B},b,1,1\n", "line 3, column order: .*'p' has the order 1 on line 2 too"),
        (f"{HEADER}p,{A},,,1\np,{B},,2,1\n", "line 2, column order: .* 'p' has an order on line 3 and none here"),
        (f"{HEADER}p,{A},,1,1\nq,{A},,1,0\n", "line 3, column part: .*'q' has the clips of 'p'"),
        (f"{HEADER[:-1]},findings\np,{A},,1,1,one\np,{B},,2,1,other\n", "line 3, column findings: .*'p' has 'one'"),
        (HEADER, "must have a line for each part of a sample, but it has a header alone"),
        (f"{HEADER}p,{A},,1\n", "line 2, column sample: .*5 cells, but it has 4"),
        ("sample,part,order,x\n", "line 1: the columns must be sample, part, role, order"),
        ("sample,part,role,order\n", "line 1: a label must be among the columns"),
        (f"{HEADER[:-1]},x\n", "line 1: the columns must be .* each once"),
        (f"{HEADER[:-1]},part\np,{A},,1,1,{B}\n", "line 1: the columns must be .* each once"),
        (f"{HEADER[:-1]},split\n", "line 1: labels must be distinct, plain names, but 'split' is not"),
        (f"{HEADER}p,{A},,1,nan\n", "line 2, column x: .*'nan'"),
        (f"{HEADER}p,{A},,1,2\n", "line 2, column x: .*'2'"),
        (f"{HEADER}p,{A},,{'9' * 5000},1\n", r"line 2, column order: .* it is '9{40}'\."),
        (f"{HEADER}Jos\u00e9,{A},,1,1\njos\u00e9,{B},,2,1\n", "line 3, column sample: .*'josé' is 'José' on line 2"),
        (f"{HEADER}p,{A},Top,1,1\nq,{B},top,2,1\n", "line 3, column role: .*'top' is 'Top' on line 2"),
        (f'{HEADER}"p\nq",{A},,1,1\n', "line 3, column sample: .* it holds a control character"),
        (f"{HEADER}p\0q,{A},,1,1\n", "line 2, column sample: .* it holds a control character"),
        (f"{HEADER}{'p' * 501},{A},,1,1\n", "line 2, column sample: .* it has 501 characters"),
        (f'{HEADER}"p,{A},,1,1\n', "line 2, column sample: it must be CSV"),
        (f"{HEADER[:-1]},X\np,{A},,1,1,1\n", "line 1: labels must differ by more than case .* 'X' and 'x' do not"),
        ("", "line 1: the columns must be .* but are none, and 'sample' is missing"),
        (HEADER.encode("utf-16-le").decode("latin-1"), r"line 1: the columns must be .*'s\\x00.*\"CSV UTF-8\""),
        (f"{HEADER},{A},,1,1\n", "line 2, column sample: .*up to 500 characters, but it has 0"),
    ],
)
def test_a_file_that_is_no_sound_sample_table_is_refused_by_line_and_column(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(ClipTableError, match=words):
        read_samples(written(tmp_path, text), TABLE)


def test_a_sample_is_one_however_its_name_is_composed_and_numbers_are_written(tmp_path: Path) -> None:
    names = "Jos\u00e9", "Jose\u0301", "Jos\u00e9\u200b "
    rows = [f"{names[0]},{A},,1.0,1", f"{names[1]},{B},,2,1.0", f"=cmd(),{OTHER},,,0", f"{names[2]},,,3,1"]
    found = read_samples(written(tmp_path, HEADER + "\n".join(rows)), TABLE).samples
    assert [(one.name, one.parts, one.targets) for one in found] == [
        ("Jos\u00e9", (A, B, ""), (1,)),
        ("=cmd()", (OTHER,), (0,)),
    ]


def test_what_is_no_file_in_the_place_of_a_sample_table_is_neither_waited_for_nor_taken_for_missing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "samples.csv"
    for make, words in (
        (path.mkdir, "must be a table, but it is a folder. Move it away"),
        (lambda: os.mkfifo(path), "must be a table, but it is no plain file. Move it away"),
        (lambda: path.symlink_to(path), "leads to no file. Write it"),
        (lambda: path.symlink_to(tmp_path / "gone"), "leads to no file. Write it"),
    ):
        make()
        with pytest.raises(ClipTableError, match=re.escape(words)):
            read_samples(path, TABLE)
        with pytest.raises(ClipTableError, match=re.escape(words)):
            read_unannotated(path, lambda _: None, ())
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_missing_file_says_what_to_write_in_it(tmp_path: Path) -> None:
    with pytest.raises(
        ClipTableError, match=r'rule is "file", but .* does not exist. Write it, with the columns sample'
    ):
        read_samples(tmp_path / "samples.csv", TABLE)


def test_cameras_are_known_by_what_names_say_besides_the_session_which_must_agree() -> None:
    named = [dataclasses.replace(one, recording=f"{one.session}/{one.recording}") for one in CAMERAS]
    assert make_samples(ClipTable(("x", "y"), tuple(named)), SampleSettings("moment")).roles == ("front", "top")
    differ = [dataclasses.replace(one, recording=f"{at // 2}.mp4") for at, one in enumerate(CAMERAS)]
    with pytest.raises(ClipTableError, match=r"a camera must have the same name in all sessions, but .*0, 1, 2, 3"):
        make_samples(ClipTable(("x", "y"), tuple(differ)), SampleSettings("moment"))


def test_a_sample_that_splits_cut_is_refused_even_where_splits_go_by_clips(tmp_path: Path) -> None:
    cut = ClipTable(("x", "y"), (*CAMERAS[:1], dataclasses.replace(CAMERAS[1], split="test"), *CAMERAS[2:]))
    with pytest.raises(ClipTableError, match="must lie whole in one split, but 'p' lies in the splits test and train"):
        read_samples(written(tmp_path, f"{HEADER}p,{A},,1,1\np,{B},,2,1\n"), cut)


SPACES = {"final/mean": space()}
ROWS = make_rows(4) + make_rows(2, "b")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    root = tmp_path_factory.mktemp("cache") / "features.zarr"
    write(root, ROWS)
    return FeatureCache.open(root)


def test_features_of_parts_are_padded_and_a_part_that_could_not_be_extracted_is_absent(cache: FeatureCache) -> None:
    ids, sha = names(ROWS), [row.video_sha256[:8] for row in ROWS]
    clips = [
        Clip(name, of, of, "train", row.start_us, row.end_us, (int(at == 1),))
        for at, (name, of, row) in enumerate(zip(ids, sha, ROWS, strict=True))
    ]
    gone = [dataclasses.replace(clips[0], clip_id=f"{ids[0][:16]}-{90 + n}-{91 + n}", start_us=n - 9) for n in (0, 1)]
    alone = dataclasses.replace(gone[0], recording="c", session="c", clip_id="f" * 16 + "-0-1")
    table = ClipTable(("x",), (*clips, *gone, alone))
    samples = make_samples(table, SampleSettings("recording"))
    known = KnownFailures({(one.clip_id, space().fingerprint): "torn" for one in (*gone, alone)})
    loaded = load_split(table, "train", cache, SPACES, known=known, samples=samples)
    X = loaded.data.of("final/mean").X
    assert X.shape == (2, 6, ROWS[0].feature.size)
    assert loaded.left_out == 1  # the sample that has no other part
    np.testing.assert_array_equal(
        np.isnan(X[..., 0]), [[True, True, False, False, False, False], [False] * 2 + [True] * 4]
    )
    np.testing.assert_array_equal(X[0, 2:], values(ROWS)[:4])
    assert loaded.data.Y.tolist() == [[1], [0]]
    np.testing.assert_array_equal(
        load_all_splits(table, cache, SPACES, known=known, samples=samples).data.Y, [[1], [0]]
    )
    with pytest.raises(TrainingDataError, match="the test split must have labelled samples"):
        load_split(table, "test", cache, SPACES, known=known, samples=samples)


def test_what_a_sample_was_fitted_on_is_known_clip_by_clip() -> None:
    pair = f"{A}+{B}"
    assert spans_of([pair]) == spans_of([A, B])
    assert sessions_in([f"{OTHER}+{B}", OTHER], ["s", "t"], spans_of([B])) == ["s"]
    assert touching([pair, OTHER], [B]).tolist() == [True, False]
