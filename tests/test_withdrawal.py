"""Withdrawal of a recording from a whole project: cleaned, removed, listed, written down."""

import gzip
import json
import shutil
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from featurecache.clips.csv_file import read_table
from featurecache.errors import ClipTableError, UsageError
from featurecache.extraction.boxes import RecordingBoxes
from featurecache.extraction.plan import why_unfit
from featurecache.files import sha256_of_file
from featurecache.project.settings import Project, open_project
from featurecache.store import FeatureCache, Row
from featurecache.store.withdrawn import read_withdrawn
from featurecache.video.recordings import find_recordings
from featurecache.workflow.care import verify_project
from featurecache.workflow.clips import make_clips
from featurecache.workflow.withdrawal import withdraw
from tests.cache_samples import feature, segments, write
from tests.projects import make_project, make_table


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Three recordings of two clips with their features, and files that name them."""
    made = make_project(tmp_path / "project", tmp_path / "no model", sessions=3, clips=2)
    make_table(made)
    recordings, _ = find_recordings(made.videos, made.digest_memo)
    write(
        made.cache,
        [
            Row(one.sha256, start, start + 1_000_000, feature(one.sha256, start), np.arange(4) + start)
            for one in recordings
            for start in (0, 1_000_000)
        ],
    )
    bundle = made.runs / "tune" / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "bundle.json").write_text(json.dumps({"fitted_on": [one.sha256[:16] for one in recordings]}))
    (made.runs / "tune" / "test_timelines.json").write_text(json.dumps({"S1.mp4": {"bouts": [[0, 3]]}}))
    (made.runs / "tune" / "settings.json").write_text("{}")
    (made.runs / "report.html").write_text("<td>S1.mp4</td>")
    (made.runs / "report.activities.csv").write_text("recording,S1,S1.mp4,test")
    (made.runs / "confusions.csv").write_text("0.98,S1.mp4,S2.mp4")
    (made.runs / "tune" / "part_weights.csv").write_text("S1.mp4,0.7")
    for one in recordings[1:]:
        of_clip = made.runs / "maps" / f"{one.sha256[:16]}-0-1000000"
        of_clip.mkdir(parents=True)
        (of_clip / "map.csv").write_text(f"0,{one.name}")
        (of_clip / "label-0.jpg").write_bytes(b"\xff\xd8 a picture")
    (made.runs / "shortcuts").mkdir()
    (made.runs / "shortcuts" / "examples.csv").write_text("S1.mp4")
    (made.root / "suggestions" / "round-1").mkdir(parents=True)
    (made.root / "suggestions" / "round-1" / "suggestions.csv").write_text("1,S1.mp4")
    made.predictions.mkdir()
    (made.predictions / "S1.predicted.csv").write_text("a,b")
    (made.predictions / "S11.predicted.csv").write_text("S11.mp4")
    (made.root / "notes.txt").write_text("look at S1.mp4 again")
    return made


def content(project: Project, name: str = "S1.mp4") -> str:
    return sha256_of_file(project.videos / name)


def made_of_it(project: Project) -> tuple[str, ...]:
    """The files that only repeat what was computed of the recording."""
    maps = f"runs/maps/{content(project)[:16]}-0-1000000"
    return (
        "predictions/S1.predicted.csv",
        "runs/confusions.csv",
        f"{maps}/label-0.jpg",
        f"{maps}/map.csv",
        "runs/report.activities.csv",
        "runs/report.html",
        "runs/shortcuts/examples.csv",
        "runs/tune/part_weights.csv",
        "runs/tune/test_timelines.json",
        "suggestions/round-1/suggestions.csv",
    )


def test_withdrawal_lists_every_file_that_holds_the_recording(project: Project) -> None:
    done = withdraw(project, "S1.mp4")
    assert {path for path, _ in done.remaining} == {
        ".featurecache/digests.json",
        "clips.csv",
        "labels.csv",
        "notes.txt",
        "runs/tune/bundle/bundle.json",
        "videos/S1.mp4",
        *made_of_it(project),
    }
    assert (done.files_cleaned, done.files_removed, done.unsearched) == ((), (), ())
    assert done.to_mapping()["rows"] == 2


def test_withdrawal_of_everything_leaves_only_what_a_person_must_decide(project: Project) -> None:
    digest = content(project)
    table = project.clips.read_text()
    done = withdraw(project, "S1.mp4", everything=True)
    assert set(done.files_cleaned) == {"clips.csv", ".featurecache/digests.json"}
    assert done.files_removed == made_of_it(project)
    remaining = dict(done.remaining)
    assert set(remaining) == {"labels.csv", "notes.txt", "runs/tune/bundle/bundle.json", "videos/S1.mp4"}
    assert "learned from it" in remaining["runs/tune/bundle/bundle.json"]
    assert project.clips.read_text() == "".join(
        line for line in table.splitlines(keepends=True) if digest[:16] not in line
    )
    assert {clip.recording for clip in read_table(project.clips).clips} == {"S0.mp4", "S2.mp4"}
    for path in project.root.rglob("*"):
        if path.is_file() and path.relative_to(project.root).as_posix() not in remaining:
            assert digest[:16].encode() not in path.read_bytes(), path
            assert bytes.fromhex(digest) not in path.read_bytes(), path
    assert not (project.runs / "maps" / f"{digest[:16]}-0-1000000").exists(), "the folder's name is the recording's"
    again = withdraw(project, digest[:16], everything=True)
    assert set(dict(again.remaining)) >= set(remaining) - {"notes.txt"}


def test_the_record_of_a_withdrawal_does_not_name_the_recording(project: Project) -> None:
    done = withdraw(project, "S1.mp4", everything=True)
    text = (project.root / done.record).read_text()
    record = json.loads(text)
    assert (record["cache"]["rows"], record["mark"], record["everything"]) == (2, done.mark, True)
    assert {"path": "videos/<recording>.mp4", "what": "the recording itself, or named like it: remove it"} in record[
        "remaining"
    ]
    assert record["at"].endswith("+00:00")
    assert "S1" not in text
    for name in ("S1.mp4", "S2.mp4"):
        assert content(project, name)[:16] not in text


def test_withdrawal_tells_what_it_could_not_search(project: Project) -> None:
    text, numbers = b"of another recording " * 99, np.random.default_rng(0).standard_normal((200, 64))
    root = project.root
    (root / "backup.tar.gz").write_bytes(gzip.compress(b"S1.mp4"))
    (root / ".git").mkdir()
    (root / "elsewhere").symlink_to(root.parent)
    (root / "dangling").symlink_to(root / "nowhere")
    (root / "encrypted").write_bytes(np.random.default_rng(0).bytes(5000))
    (root / "plain then packed").write_bytes(text * 9 + zlib.compress(numbers.tobytes()))
    (root / "packed far within").write_bytes(text * 99 + zlib.compress(numbers[:60].tobytes()) + text * 99)
    (root / "prefixed.zip").write_bytes(text)
    with zipfile.ZipFile(root / "prefixed.zip", "a") as archive:
        archive.writestr("stored", text)
        archive.writestr("deflated", text, zipfile.ZIP_DEFLATED)
    for name, options in {
        "gzip.h5": {"compression": "gzip"},
        "shuffle.h5": {"shuffle": True},
        "narrow.h5": {"chunks": (200, 4)},
        "plain.h5": {"fletcher32": True},
    }.items():
        with h5py.File(root / name, "w") as file:
            file.create_dataset("a/b", data=numbers[:10] if name == "gzip.h5" else numbers, **options)
    np.savez_compressed(root / "compressed.npz", text=np.zeros(99))
    np.savez(root / "plain.npz", numbers=numbers.astype(np.float32))
    numbers.tofile(root / "plain.f8")
    (root / "plain.txt").write_bytes(text)
    (root / "other.mp4").write_bytes((project.videos / "S0.mp4").read_bytes()[:-1])
    (project.cache / "copy.gz").write_bytes(gzip.compress(b"x"))
    assert {path for path, _ in withdraw(project, "S1.mp4").unsearched} == {
        *("backup.tar.gz", ".git", "elsewhere", "dangling", "encrypted", "plain then packed", "prefixed.zip"),
        "packed far within",
        *("gzip.h5", "shuffle.h5", "narrow.h5", "compressed.npz", "other.mp4", "features.zarr/copy.gz"),
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", b"media: S1.MPG"),
        ("table.csv", b"S1,0,3,a"),
        ("wide.csv", "\ufeffS1.mp4\t0\t3".encode("utf-16")),
        ("big endian.csv", "S1.mp4".encode("utf-16-be")),
        ("S1_coderA.eaf", b"<xml/>"),
        ("S1/frames.json", b"{}"),
        ("link.csv", b"file:///D:/videos/S1.mp4"),
    ],
)
def test_withdrawal_finds_the_name_as_tables_and_documents_write_it(
    project: Project, name: str, content: bytes
) -> None:
    path = project.root / "other" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert f"other/{name}" in dict(withdraw(project, "S1.mp4").remaining)


def test_withdrawal_finds_copies_of_the_recording_and_its_features_under_any_name(project: Project) -> None:
    cache = FeatureCache.open(project.cache)
    ids = [one for one in cache.clip_ids() if one.startswith(content(project)[:16])]
    np.save(project.root / "X.npy", cache.load(ids[:1]))
    shutil.copy(project.videos / "S1.mp4", project.root / "clip.mkv")
    shutil.copy(project.videos / "S1.mp4", project.videos / "A.mp4")
    assert {"X.npy", "clip.mkv", "videos/A.mp4", "videos/S1.mp4"} <= set(dict(withdraw(project, "S1.mp4").remaining))


def test_withdrawal_looks_where_recordings_and_annotations_lie_outside_the_project(project: Project) -> None:
    outside = project.root.parent / "hospital"
    outside.mkdir()
    for name in ("videos", "labels.csv"):
        (project.root / name).rename(outside / name)
    settings = (project.root / "featurecache.toml").read_text()
    for name in ("videos", "labels.csv"):
        settings = settings.replace(f'"{name}"', f'"../hospital/{name}"')
    (project.root / "featurecache.toml").write_text(settings)
    done = withdraw(open_project(project.root), "S1.mp4")
    assert {str(outside / "videos" / "S1.mp4"), str(outside / "labels.csv")} <= set(dict(done.remaining))
    record = (project.root / done.record).read_text()
    assert "hospital" not in record
    assert "(videos)/<recording>.mp4" in record


def test_withdrawal_removes_nothing_of_recordings_whose_names_hold_its_name(project: Project) -> None:
    table = project.clips.read_text()
    project.clips.write_text(table.replace("S2.mp4", "S1_2.mp4").replace("S0.mp4", "pre-S1.mp4"))
    for name in ("S1_2", "pre-S1"):
        (project.predictions / f"{name}.predicted.csv").write_text(f"{name}.mp4")
    assert withdraw(project, "S1.mp4", everything=True).files_removed == made_of_it(project)


@pytest.mark.parametrize("mark", [",", ";"])
def test_withdrawal_takes_samples_of_the_recording_out_of_samples_csv_whole(project: Project, mark: str) -> None:
    own, other = content(project)[:16], content(project, "S2.mp4")[:16]
    lines = ["sample,part,role,order,x", f"a,{other}-0-1000000,,1,1", f'"b\nc",{own}-0-1000000,,1,1']
    lines += [f'"b\nc",{other}-1000000-2000000,,2,1', "S1.mp4 from 0 s,,,1,0", "S11.mp4,,,1,0"]
    path = project.root / "samples.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(line.replace(",", mark) for line in lines).encode())
    assert dict(withdraw(project, "S1.mp4").remaining)["samples.csv"].endswith("the same command with --everything")
    assert "samples.csv" in withdraw(project, "S1.mp4", everything=True).files_cleaned
    assert path.read_text("utf-8-sig").replace(mark, ",").split() == [*lines[0].split(), lines[1], lines[-1]]


def test_withdrawal_lists_a_sample_table_that_it_cannot_read(project: Project) -> None:
    (project.root / "samples.csv").write_text(f'what is it? "{content(project)[:16]}-0-1000000')
    done = withdraw(project, "S1.mp4", everything=True)
    assert "must be a sample table, but it cannot be read" in dict(done.remaining)["samples.csv"]


def test_withdrawal_tells_of_hard_links_to_what_it_removed(project: Project) -> None:
    (project.root.parent / "kept.html").hardlink_to(project.runs / "report.html")
    shard = next(path for path in project.cache.rglob("c.0.0") if path.parent.name == "features")
    (project.root.parent / "kept").hardlink_to(shard)
    unsearched = dict(withdraw(project, "S1.mp4", everything=True).unsearched)
    assert set(unsearched) == {"runs/report.html", shard.relative_to(project.root).as_posix()}
    assert all("hard links" in why for why in unsearched.values())


def test_withdrawal_tells_that_there_was_no_cache(project: Project) -> None:
    shutil.rmtree(project.cache)
    done = withdraw(project, "S1.mp4")
    assert [path for path, _ in done.unsearched] == ["features.zarr"]
    assert done.to_mapping()["rows"] == 0


def test_a_withdrawn_recording_is_not_extracted_again(project: Project) -> None:
    withdraw(project, "S1.mp4")
    recordings, _ = find_recordings(project.videos, project.digest_memo)
    withdrawn, boxes = read_withdrawn(project.cache), RecordingBoxes(project)
    reasons = {one.name: why_unfit(one, one.sha256, withdrawn, boxes) for one in recordings}
    assert "withdrawn" in reasons["S1.mp4"]
    assert reasons["S0.mp4"] == reasons["S2.mp4"] == ""


def test_a_withdrawn_recording_whose_file_stays_is_left_out_of_a_new_clip_table_and_named(project: Project) -> None:
    for source, number in (("S0.mp4", 3), ("S2.mp4", 4)):  # three sessions must be left
        whole = (project.videos / source).read_bytes().replace(b"take 0", b"take 3").replace(b"take 2", b"take 4")
        (project.videos / f"S{number}.mp4").write_bytes(whole)
        labels = project.root / "labels.csv"
        lines = labels.read_text().splitlines(keepends=True)
        labels.write_text(
            "".join([*lines, *(line.replace(source, f"S{number}.mp4") for line in lines if source in line)])
        )
    withdraw(project, "S1.mp4", everything=True)
    made = make_clips(project, force=True)
    assert [(one.name, "withdrawn" in one.reason) for one in made.unusable] == [("S1.mp4", True)]
    assert {clip.recording for clip in read_table(project.clips).clips} == {f"S{number}.mp4" for number in (0, 2, 3, 4)}


def test_a_damaged_clip_table_does_not_stop_a_withdrawal_and_is_told(project: Project) -> None:
    """Whatever is wrong with it: the recording is known by its digits, its file or the rows that are left."""
    sound, digest, rows = project.clips.read_bytes(), content(project), segments(project.cache)
    (project.videos / "S1.mp4").rename(project.root / "gone from here.bin")
    damages = [
        sound.replace(b",0,1,", b",0,x,", 1),
        sound.replace(b"S1.mp4", b"S1.m\xff4", 1),
        sound[:-20],
        sound + b'"',
    ]
    damages += [sound.decode().encode("utf-16"), sound.replace(digest[:8].encode(), b"0" * 8, 1)]
    for number, data in enumerate(damages):
        project.clips.write_bytes(data)
        for name in ("S1.mp4", digest[:16]):
            done = withdraw(project, name, everything=number % 2 == 0)
            assert "clips.csv" in dict(done.unsearched), (number, name)
            assert digest[:16] not in (project.root / done.record).read_text()
            project.clips.write_bytes(data)
    assert rows
    assert len(FeatureCache.open(project.cache).clip_ids()) == 4
    project.clips.write_bytes(b"\x00" * 64)
    with pytest.raises(ClipTableError, match=r"clips\.csv is damaged"):
        withdraw(project, "S1.mp4")


def test_withdrawal_names_a_recording_that_is_unknown(project: Project) -> None:
    with pytest.raises(ClipTableError, match="Did you mean"):
        withdraw(project, "S1.mp5")


def test_the_memo_of_digests_holds_no_path_and_no_name(project: Project) -> None:
    text = project.digest_memo.read_text()
    assert "S1" not in text
    assert str(project.root) not in text
    assert content(project) in text


# --- verify against the clip table ------------------------------------------------------------------


def test_verify_tells_of_clips_that_a_removed_segment_held(project: Project) -> None:
    assert verify_project(project).is_sound
    shutil.rmtree(segments(project.cache)[0])
    report = verify_project(project)
    assert report.damage == ()
    assert [missing for _, missing in report.missing] == [6]
    assert not report.is_sound


def test_verify_does_not_ask_for_clips_of_a_withdrawn_recording(project: Project) -> None:
    withdraw(project, "S1.mp4")
    assert verify_project(project).is_sound
    assert len(FeatureCache.open(project.cache).clip_ids()) == 4


@pytest.mark.parametrize(("part", "deep"), [("3", True), ("a/b", True), ("1/3", False), ("", True)])
def test_verify_refuses_a_portion_that_is_none(project: Project, part: str, deep: bool) -> None:
    with pytest.raises(UsageError, match="--part"):
        verify_project(project, deep=deep, part=part)
