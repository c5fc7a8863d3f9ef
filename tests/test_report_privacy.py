"""What a report must not hold: connections, folders, paths, what a name would do, frames nobody asked for."""

import io
import json
import re
import shutil
from pathlib import Path

import av

from featurecache.files import sha256_of_file
from featurecache.spelling import visible
from heads.report.figures import plain
from heads.report.frames import thumbnails
from heads.report.timelines import Difference
from tests.make_videos import number_in, write_video
from tests.report_samples import (
    HOSTILE,
    RIGHT_TO_LEFT,
    Page,
    content_of,
    report_on,
    write_project,
)


def test_report_is_private_forbids_every_connection_and_runs_only_its_own_programs(written_report: Path) -> None:
    page = Page(written_report / "runs" / "report.html")
    assert (written_report / "runs" / "report.html").stat().st_mode & 0o777 == 0o600
    (policy,) = (a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules["default-src"] == "'none'"
    assert all(re.fullmatch(r"'sha256-[\w+/=]+'", source) for source in rules["script-src"].split())
    assert not any(scheme in str(policy) for scheme in ("http", "unsafe-eval", "*", "blob: data: http"))
    assert not [a for _, a in page.elements if a.get("src") or re.match("https?:|//", a.get("href") or "")]


def test_report_escapes_names_from_annotations_and_files(tmp_path: Path) -> None:
    labels = (HOSTILE, RIGHT_TO_LEFT, "a&b")
    recordings = (f"S1/{HOSTILE.replace('/', '')}.mp4", f"S2/{RIGHT_TO_LEFT}.mp4", 'S3/"onload="x.mp4')
    root = write_project(tmp_path / "p", labels=labels, recordings=recordings)
    report_on(root, prompt=f"{HOSTILE} <!-- <video>")
    page = Page(root / "runs" / "report.html")
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert len(scripts) == 4  # two JSON blocks, plotly, the page's own
    assert not [a for _, a in page.elements if "onload" in a]
    assert [one["name"] for one in page.blocks["timelines-data"][0]["labels"]] == list(map(visible, labels))
    assert HOSTILE in page.text
    assert page.elements.count(("bdi", {})) > 20
    ticks = page.blocks["figures"]["cooccurrence"]["data"][0]["x"]
    assert ticks[0] == plain(HOSTILE) != HOSTILE  # plotly reads markup


def test_nothing_in_a_name_acts_on_the_page(tmp_path: Path) -> None:
    """Marks of direction, characters without width, separators and controls of the second range stand as escapes."""
    acting = "\x9b\u202e\u2066\u2069\u200b\u2028\ufeff"
    labels = (f"x{acting}y", "z")
    root = write_project(tmp_path / "p", labels=labels, recordings=(f"S1/a{acting}.mp4", "S2/b.mp4"))
    (root / "runs" / "tune").rename(root / "runs" / f"tune-{acting}")
    report_on(root, prompt=f"{acting} <video>")
    text = (root / "runs" / "report.html").read_text(encoding="utf-8")
    page = Page(root / "runs" / "report.html")
    program = text.index("<script>", text.index("timelines-data"))
    shown = text[:program].replace("\u2068", "").replace("\u2069", "")  # ours, around names
    assert not [hex(ord(one)) for one in shown if one != "\n" and visible(one) != one]
    assert visible(f"a{acting}.mp4") in page.text
    blocks = json.dumps(page.blocks, ensure_ascii=False)
    assert not set(blocks) & set(acting) - {"\u2069"}
    assert blocks.count("\u2068") == blocks.count("\u2069")
    figures = {str(a["data-figure"]) for _, a in page.elements if a.get("data-figure")}
    assert figures <= set(page.blocks["figures"])


def test_report_holds_no_folder_of_a_recording_and_no_path(tmp_path: Path) -> None:
    recordings = ("ward 7/jane doe/a.mp4", "ward 7/john doe/a.mp4", "ward 8/b.mp4")
    root = write_project(tmp_path / "p", recordings=recordings)
    (root / "failed_clips.csv").write_text(
        "clip_id,recording,start_s,end_s,feature_space,reason\nx,ward 7/jane doe/a.mp4,0,3,,its picture is damaged\n"
    )
    report_on(root)
    text = (root / "runs" / "report.html").read_text()
    for secret in ("ward 7/", "ward 8", str(tmp_path), "/models/secret", "john doe/a"):
        assert secret not in text, secret
    assert "a.mp4 (jane doe)" in text  # told apart by the nearest folder only
    assert "its picture is damaged" in text


def test_report_holds_frames_only_when_asked(reported: Path) -> None:
    video = reported / "videos" / "S1" / "a.mp4"
    video.parent.mkdir(parents=True)
    write_video(video, count=600, fps=5)
    for path in [reported / "clips.csv", *reported.rglob("*.predicted.json")]:
        path.write_text(path.read_text().replace(content_of("S1/a.mp4")[:16], sha256_of_file(video)[:16]))
    assert report_on(reported).frames == 0
    page = Page(reported / "runs" / "report.html")
    assert "img" not in {tag for tag, _ in page.elements}
    assert "holds frames of the recordings" not in page.text
    report = report_on(reported, with_frames=True)
    page = Page(reported / "runs" / "report.html")
    pictures = [str(a["src"]) for tag, a in page.elements if tag == "img"]
    assert len(pictures) == report.frames > 0
    assert all(picture.startswith("data:image/jpeg;base64,/9j/") for picture in pictures)
    assert "This file holds frames of the recordings" in page.text
    write_video(video, count=599, fps=5)
    report = report_on(reported, with_frames=True)
    assert report.frames == 0, "of another patient, perhaps"
    assert any("frames of a.mp4: another video has its name" in problem for problem in report.problems)
    shutil.rmtree(reported / "videos")
    report = report_on(reported, with_frames=True)
    assert report.frames == 0
    assert any("frames of a.mp4: it is not in the folder" in problem for problem in report.problems)


def test_a_prediction_of_another_video_of_the_same_name_is_left_out_and_named(reported: Path) -> None:
    before = report_on(reported).recordings
    path = reported / "predictions" / "S1" / "a.mp4.predicted.json"
    path.write_text(path.read_text().replace(content_of("S1/a.mp4")[:16], "f" * 16))
    report = report_on(reported)
    assert report.recordings == before - 1
    assert any("a.mp4.predicted.json: it is of another video" in problem for problem in report.problems)


def test_maps_of_what_a_head_uses_are_shown_with_frames_alone_and_a_damaged_one_is_named(reported: Path) -> None:
    for name, label in (("one", "suction"), ("other", "<b>")):
        folder = reported / "runs" / "maps" / name
        folder.mkdir(parents=True)
        labels = {label: {"log_odds": 1.5, "picture": "label-1.jpg"}, "none": {"log_odds": 0, "picture": None}}
        document = {"recording": "ward/z.mp4", "start_us": 0, "labels": labels}
        (folder / "map.json").write_text(json.dumps(document))
        (folder / "label-1.jpg").write_bytes(b"\xff\xd8\xff and so on" if name == "one" else b"<script>")
    assert report_on(reported).frames == 0
    report = report_on(reported, with_frames=True)
    page = Page(reported / "runs" / "report.html")
    assert [str(a["alt"]) for tag, a in page.elements if tag == "img"] == ["What raises suction in z.mp4 at 0:00:00"]
    assert "This file holds frames of the recordings" in page.text
    assert any("maps/other: it is no map" in problem for problem in report.problems)


def test_a_frame_is_the_one_shown_in_the_middle_of_its_difference(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "a.mp4", count=600, fps=5, options={"g": "100"})
    shutil.copy(videos / "a.mp4", tmp_path)
    own = sha256_of_file(videos / "a.mp4")[:16]
    found = [Difference("a.mp4", own, "x", "missed", at * 1_000_000, (at + 1) * 1_000_000) for at in (0, 59, 107)]
    not_there = [Difference(name, own, "x", "missed", 0, 1) for name in ("../a.mp4", str(tmp_path / "a.mp4"), "b.mp4")]
    (videos / "torn.mp4").write_bytes((videos / "a.mp4").read_bytes()[:500])
    cut_off = sha256_of_file(videos / "torn.mp4")[:16]
    torn = [Difference("torn.mp4", cut_off, "x", "extra", at, at + 1) for at in (0, 5)]
    pictures, without = thumbnails([*not_there, *torn, *found], videos)
    assert [picture.of for picture in pictures] == found
    assert [line.split(":")[0] for line in without] == [f"frames of {name}.mp4" for name in ("a", "a", "b", "torn")]
    assert "not in the folder of recordings" in without[2]
    assert "cannot be opened or decoded" in without[3]
    assert str(tmp_path) not in "".join(without)
    (cut, *_), _ = thumbnails(found, videos, (0.25, 0.0, 0.5, 1.0))
    assert (cut.width_px, cut.height_px) == (320, 350), "what the model does not see is not shown"
    for picture in pictures:
        with av.open(io.BytesIO(picture.jpeg)) as file:
            pixels = next(file.decode(video=0)).reformat(176, 96).to_ndarray(format="rgb24")
        assert (picture.width_px, picture.height_px) == (320, 174)
        assert number_in(pixels) == (picture.of.start_us + 500_000) * 5 // 1_000_000
