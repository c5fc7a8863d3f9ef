"""Finding recordings: real files, odd files, and a memo that saves work but never decides."""

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import pytest

from featurecache.errors import NoRecordingsError
from featurecache.spec import sealed
from featurecache.video import digests, recordings
from featurecache.video.recordings import Recording, UnusableRecording, find_recordings

TWIN = "delete one of them (they are one recording, of one session), or copy the right file here"
SHARED = Path(__file__).parents[1].parent / "shared/data/video"


def make_video(path: Path, shade: int = 0, frames: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            image = np.full((48, 64, 3), (shade + 5 * index) % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def age(path: Path, seconds: float = 10) -> None:
    """Makes a memo as if the files had been read that much later after their last change."""
    document = json.loads(path.read_bytes())
    for entry in document["files"].values():
        entry["noted_ns"] += round(seconds * 1e9)
    path.write_text(json.dumps(sealed({name: one for name, one in document.items() if name != "sha256"})))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    make_video(tmp_path / "videos" / "b.mp4", 10)
    make_video(tmp_path / "videos" / "a" / "-x 1.MP4", 20, frames=20)
    return tmp_path / "videos"


@pytest.fixture
def memo(tmp_path: Path) -> Path:
    return tmp_path / "project" / ".featurecache" / "digests.json"


def opened_by_probe(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are probed from now on; the probing itself is real."""
    seen: list[str] = []
    real = recordings.probe
    monkeypatch.setattr(recordings, "probe", lambda path, **options: (seen.append(path.name), real(path, **options))[1])
    return seen


def names(items: tuple[Recording, ...] | tuple[UnusableRecording, ...]) -> list[str]:
    return [item.name for item in items]


def test_find_recordings_gives_names_digests_and_streams(videos: Path) -> None:
    found, unusable = find_recordings(videos)
    assert unusable == ()
    assert names(found) == ["a/-x 1.MP4", "b.mp4"]
    assert [r.sha256 for r in found] == [hashlib.sha256((videos / r.name).read_bytes()).hexdigest() for r in found]
    assert [(r.info.width_px, r.info.height_px, r.info.duration_us) for r in found] == [
        (64, 48, 2_000_000),
        (64, 48, 1_000_000),
    ]
    assert all(r.path.is_absolute() and r.path.is_file() for r in found)


def test_find_recordings_skips_hidden_and_other_files(videos: Path) -> None:
    make_video(videos / ".hidden.mp4", 30)
    make_video(videos / ".cache" / "c.mp4", 40)
    (videos / "._b.mp4").write_bytes(b"AppleDouble")
    (videos / "b.eaf").write_text("<x/>")
    assert [names(items) for items in find_recordings(videos)] == [["a/-x 1.MP4", "b.mp4"], []]


def test_find_recordings_lists_what_is_unusable_and_continues(videos: Path) -> None:
    (videos / "empty.mp4").touch()
    (videos / "noise.mp4").write_bytes(b"not a video" * 1000)
    (videos / "c.mp4").write_bytes((videos / "b.mp4").read_bytes())
    os.mkfifo(videos / "pipe.mp4")
    (videos / "dangling.mp4").symlink_to("nowhere.mp4")
    (videos / "loop.mp4").symlink_to("loop.mp4")
    (videos / "inside.mp4").symlink_to("b.mp4")
    (videos.parent / "outside").mkdir()
    (videos / "outside.mp4").symlink_to(make_video(videos.parent / "outside" / "o.mp4", 50))
    (videos / "linked").symlink_to(videos.parent / "outside")
    (videos / "line\nbreak.mp4").write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(videos) + b"/caf\xe9.mp4")).write_bytes(b"x")
    found, unusable = find_recordings(videos)
    assert names(found) == ["a/-x 1.MP4", "b.mp4"]
    reasons = {item.name: item.reason for item in unusable}
    assert list(reasons) == sorted(reasons)
    assert reasons.pop("noise.mp4")
    assert reasons == {
        "empty.mp4": "the file is empty",
        "c.mp4": f"same content as b.mp4; {TWIN}",
        "inside.mp4": f"same content as b.mp4; {TWIN}",
        "pipe.mp4": "not a plain file",
        "dangling.mp4": "No such file or directory",
        "loop.mp4": "Too many levels of symbolic links",
        "outside.mp4": "a link that leaves the folder of videos; copy the file, or set videos to its folder",
        "linked": "a link to a folder, which is not followed",
        "line\\nbreak.mp4": "the name holds a control character or is not UTF-8; rename it",
        "caf\\udce9.mp4": "the name holds a control character or is not UTF-8; rename it",
    }
    json.dumps(reasons).encode()


def test_find_recordings_uses_the_first_name_when_contents_are_equal(videos: Path) -> None:
    (videos / "a.mp4").write_bytes((videos / "b.mp4").read_bytes())
    found, unusable = find_recordings(videos)
    assert names(found) == ["a.mp4", "a/-x 1.MP4"]
    assert unusable == (UnusableRecording("b.mp4", f"same content as a.mp4; {TWIN}"),)


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may read everything; so the test gives that up for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_find_recordings_lists_files_and_folders_without_rights() -> None:
    with TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        videos = Path(place) / "videos"
        for name in ("a.mp4", "b.mp4", "closed/c.mp4"):
            make_video(videos / name, len(name))
        (videos / "closed").chmod(0)
        (videos / "b.mp4").chmod(0)
        with ordinary_user():
            found, unusable = find_recordings(videos)
        assert names(found) == ["a.mp4"]
        assert names(unusable) == ["b.mp4", "closed"]
        assert ["ermission" in item.reason for item in unusable] == [True, True]
        videos.chmod(0)
        with ordinary_user(), pytest.raises(NoRecordingsError, match="Permission denied"):
            find_recordings(videos)
        videos.chmod(0o700)
        (videos / "closed").chmod(0o700)


def test_find_recordings_says_so_when_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(NoRecordingsError, match="No such file or directory"):
        find_recordings(tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NoRecordingsError, match="Not a directory"):
        find_recordings(tmp_path / "file")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(NoRecordingsError, match="Too many levels"):
        find_recordings(tmp_path / "loop")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.txt").touch()
    with pytest.raises(NoRecordingsError, match=r"has none among 1 file \(known: \.3g2"):
        find_recordings(tmp_path / "videos")


def test_find_recordings_opens_nothing_when_the_memo_knows_it(
    videos: Path, memo: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "featurecache")
    first = find_recordings(videos, memo)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (memo, memo.parent)] == [0o600, 0o700]
    age(memo)
    written = memo.read_bytes()
    probed = opened_by_probe(monkeypatch)
    monkeypatch.setattr(digests, "sha256_of_file", lambda path: probed.append(path.name))
    assert find_recordings(videos, memo) == first
    assert probed == []
    assert memo.read_bytes() == written
    assert len([one for one in caplog.messages if one.startswith("reading ")]) == 1


def test_find_recordings_reads_again_when_the_memo_was_made_too_soon(
    videos: Path, memo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_recordings(videos, memo)
    probed = opened_by_probe(monkeypatch)
    find_recordings(videos, memo)
    assert probed == ["-x 1.MP4", "b.mp4"]


def test_find_recordings_sees_new_content_when_size_and_mtime_are_kept(videos: Path, memo: Path) -> None:
    before, _ = find_recordings(videos, memo)
    age(memo)
    path = videos / "b.mp4"
    times, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    after, _ = find_recordings(videos, memo)
    assert after[0] == before[0]
    assert after[1].sha256 == hashlib.sha256(data).hexdigest() != before[1].sha256


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", '{"files": {}, "sha256": ""}', "[" * 100_000, "flip", "\udcff"]
)
def test_find_recordings_ignores_the_memo_when_it_is_damaged(videos: Path, memo: Path, damage: str) -> None:
    first = find_recordings(videos, memo)
    age(memo)
    if damage == "flip":
        digest = first[0][0].sha256
        damage = memo.read_text().replace(digest, digest[:-1] + ("0" if digest[-1] != "0" else "1"))
    memo.write_bytes(damage.encode(errors="surrogateescape"))
    assert find_recordings(videos, memo) == first
    assert json.loads(memo.read_bytes())["files"]


def test_find_recordings_reads_again_when_another_version_probed(
    videos: Path, memo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_recordings(videos, memo)
    age(memo)
    monkeypatch.setattr(recordings, "_probed_by", lambda: "probe of another version")
    probed = opened_by_probe(monkeypatch)
    find_recordings(videos, memo)
    assert probed == ["-x 1.MP4", "b.mp4"]


def test_find_recordings_needs_no_memo_when_its_place_cannot_be_written(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file, not a folder")
    assert len(find_recordings(videos, tmp_path / "blocked" / "digests.json")[0]) == 2


@pytest.mark.parametrize("growing", ["b.mp4", "a/-x 1.MP4"], ids=["itself", "one read before"])
def test_find_recordings_refuses_a_file_that_grows_while_it_or_another_is_read(
    videos: Path, memo: Path, monkeypatch: pytest.MonkeyPatch, growing: str
) -> None:
    real = recordings.probe

    def probe_while_one_grows(path: Path, **options: object) -> object:
        info = real(path, **options)
        if path.name == "b.mp4":
            time.sleep(0.02)
            with (videos / growing).open("ab") as file:
                file.write(b"more")
        return info

    monkeypatch.setattr(recordings, "probe", probe_while_one_grows)
    found, unusable = find_recordings(videos, memo)
    assert {*names(found), growing} == {"a/-x 1.MP4", "b.mp4"}
    assert unusable == (UnusableRecording(growing, "it changed while it was read; run again when it is complete"),)
    assert names(find_recordings(videos, memo)[1]) == [growing]
    monkeypatch.undo()
    assert names(find_recordings(videos, memo)[0]) == ["a/-x 1.MP4", "b.mp4"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not on this machine")
def test_find_recordings_reads_the_real_files() -> None:
    found, unusable = find_recordings(SHARED)
    assert {"-video-with-dash-.mp4", "mp_no_duration.webm", "tc_nasa_13013.mp4"} <= set(names(found))
    assert {item.name: item.reason for item in unusable} == {"mp_result.webm": "the file is empty"}
    assert all(recording.info.duration_us > 0 for recording in found)
