"""The server of the review page: who may ask, what is saved, and that nothing is lost or overwritten."""

import http.client
import json
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element, fromstring, tostring

import pytest
from filelock import FileLock

pytest.importorskip("bottle", reason="the page needs the extra `review`")

from featurecache.annotations import read_eaf, resolve_times
from featurecache.annotations.eaf import eaf_bytes
from featurecache.annotations.eaf_writer import add_tier
from featurecache.annotations.interval import Interval
from featurecache.annotations.reviews import read_review, remove_leftovers, review_path
from heads.review.server import ReviewServer
from tests.eaf_schema import violations
from tests.review_samples import HOSTILE_NAME, SECOND_US, served

MARKS = [
    {"start_us": 2 * SECOND_US, "end_us": 7 * SECOND_US, "label": "ventilation", "how": "accepted"},
    {"start_us": 0, "end_us": 10 * SECOND_US, "label": "", "how": "reviewed"},
]
FIRST = f"{0:016x}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReviewServer]:
    with served(tmp_path_factory.mktemp("review")) as found:
        yield found


@pytest.fixture
def root(server: ReviewServer) -> Path:
    return server._folder.parent


def ask(
    server: ReviewServer, path: str, *, method: str = "GET", body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; `path` is below the token unless it begins with a slash."""
    address = urlsplit(server.address)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        if sent is not None:
            named.setdefault("Content-Type", "application/json")
        target = path if path.startswith("/") else address.path + path
        connection.request(method, target, sent, named)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def save(server: ReviewServer, marks: Any, version: str, content: str = FIRST) -> tuple[int, dict[str, Any]]:
    status, _, body = ask(server, f"api/recordings/{content}", method="PUT", body={"version": version, "marks": marks})
    return status, json.loads(body)


def version_of(server: ReviewServer, content: str = FIRST) -> str:
    return str(json.loads(ask(server, f"api/recordings/{content}")[2])["version"])


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/wrong-token/", {}),
        ("/wrong-token/api/recordings", {}),
        ("", {"Host": "evil.example"}),
        ("", {"Host": "127.0.0.1"}),
        ("api/recordings", {"Host": "127.0.0.1:1"}),
        ("api/recordings", {"Origin": "http://evil.example"}),
        ("api/recordings", {"Origin": "null"}),
        ("api/recordings", {"Origin": "https://127.0.0.1"}),
        (f"video/{FIRST}", {"Sec-Fetch-Site": "cross-site"}),
        (f"video/{FIRST}", {"Sec-Fetch-Site": "same-site"}),
    ],
)
def test_who_is_not_the_page_is_refused(server: ReviewServer, path: str, headers: dict[str, str]) -> None:
    status, _, body = ask(server, path, **headers)
    assert status == 403
    assert b"ventilation" not in body
    assert b"S1" not in body


def test_token_of_the_next_run_is_another_one_and_the_socket_is_of_the_loopback(
    server: ReviewServer, tmp_path: Path
) -> None:
    assert server.address.startswith("http://127.0.0.1:")
    assert server._server.server_address[0] == "127.0.0.1"
    with served(tmp_path) as other:
        assert urlsplit(other.address).path != urlsplit(server.address).path
        assert len(urlsplit(other.address).path) > 30


@pytest.mark.parametrize("method", ["DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "POST"])
def test_other_methods_are_refused(server: ReviewServer, method: str) -> None:
    assert ask(server, f"api/recordings/{FIRST}", method=method)[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "video/../../etc/passwd",
        "video/..%2f..%2f..%2fetc%2fpasswd",
        "video/%2e%2e/%2e%2e/etc/passwd",
        "video//etc/passwd",
        "..%2fserver.py",
        "server.py",
        "review.html",
        "a.js",
        "api/recordings/ffffffffffffffff",
        "api/video/..",
    ],
)
def test_no_path_of_a_request_reaches_a_file(server: ReviewServer, path: str) -> None:
    assert ask(server, path)[0] == 404


def test_every_answer_forbids_the_page_all_but_this_server(server: ReviewServer) -> None:
    for path in ("", "review.js", "api/recordings", f"video/{FIRST}", "none", "/"):
        _, headers, _ = ask(server, path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers


def test_video_comes_in_the_ranges_that_a_player_asks_for(server: ReviewServer, root: Path) -> None:
    whole = (root / "S1.mp4").read_bytes()
    status, headers, body = ask(server, f"video/{FIRST}", Range="bytes=10-109")
    assert (status, body) == (206, whole[10:110])
    assert headers["content-range"] == f"bytes 10-109/{len(whole)}"
    assert headers["content-type"] == "video/mp4"
    assert ask(server, f"video/{FIRST}")[2] == whole


def test_recordings_tell_disagreement_and_doubt(server: ReviewServer) -> None:
    found = {one["name"]: one for one in json.loads(ask(server, "api/recordings")[2])["recordings"]}
    # In 8 of 20 s one of them has a label: 6 to 7, 9 to 11, 12 to 15 and 16 to 18 s.
    assert found["S1.mp4"]["disagreement"] == pytest.approx(8 / 20)
    assert found[HOSTILE_NAME]["disagreement"] is None
    assert 0 < found[HOSTILE_NAME]["doubt"] < 1


def test_blind_answer_holds_nothing_that_the_model_or_an_annotator_said(server: ReviewServer) -> None:
    seen, blind = (json.loads(ask(server, f"api/recordings/{FIRST}{how}")[2]) for how in ("", "?blind=1"))
    hidden = {"predicted", "annotated", "annotated_us", "scored_us", "thresholds", "clips", "differing"}
    assert hidden <= seen.keys()
    assert not hidden & blind.keys()
    assert blind["marks"] == []


def test_review_is_an_elan_file_that_tells_who_and_when(server: ReviewServer, root: Path) -> None:
    status, saved = save(server, MARKS, version_of(server))
    assert status == 200
    path = review_path(root / "reviewed", "S1.mp4", blind=False)
    document = read_eaf(path)
    assert violations(document.root) == []
    assert document.root.get("AUTHOR") == "anna"
    values = {one.tier: one.value for one in resolve_times(document)}
    assert values["ventilation"].startswith("accepted by anna at 20")
    assert set(document.tiers) == {"ventilation", "suction", "reviewed stretches"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again = json.loads(ask(server, f"api/recordings/{FIRST}")[2])
    assert (again["marks"], again["version"]) == (saved["marks"], saved["version"])


def test_mark_keeps_who_made_it_when_another_one_is_added(server: ReviewServer, root: Path) -> None:
    _, first = save(server, MARKS, version_of(server))
    path = review_path(root / "reviewed", "S1.mp4", blind=False)
    path.write_bytes(path.read_bytes().replace(b"by anna at", b"by ben at"))
    added = {"start_us": 12 * SECOND_US, "end_us": 13 * SECOND_US, "label": "suction", "how": "added"}
    status, second = save(server, [*first["marks"], added], version_of(server))
    assert status == 200
    assert {one["label"]: one["by"] for one in second["marks"]} == {"": "ben", "ventilation": "ben", "suction": "anna"}


def test_tiers_made_in_elan_stay_and_hinder_no_save(server: ReviewServer, root: Path) -> None:
    save(server, MARKS, version_of(server))
    path = review_path(root / "reviewed", "S1.mp4", blind=False)
    document = read_eaf(path)
    add_tier(document, "my notes", [Interval(3 * SECOND_US, 4 * SECOND_US, "look here")], time_origin_ms=0)
    document.tiers["my notes"].element.set("PARTICIPANT", "the child")
    (of,) = (one.get("ANNOTATION_ID") for one in document.tiers["ventilation"].element.iter("ALIGNABLE_ANNOTATION"))
    dependent = (
        '<TIER LINGUISTIC_TYPE_REF="remark" PARENT_REF="ventilation" TIER_ID="remarks"><ANNOTATION>'
        f'<REF_ANNOTATION ANNOTATION_ID="a99" ANNOTATION_REF="{of}"><ANNOTATION_VALUE>a remark</ANNOTATION_VALUE>'
        "</REF_ANNOTATION></ANNOTATION></TIER>"
    )
    at = next(at for at, one in enumerate(document.root) if one.tag == "LINGUISTIC_TYPE")
    kind = Element("LINGUISTIC_TYPE", CONSTRAINTS="Symbolic_Association", LINGUISTIC_TYPE_ID="remark")
    document.root[at:at] = [fromstring(dependent), kind]
    path.write_bytes(eaf_bytes(document))
    kept = tostring(document.tiers["my notes"].element).strip()
    shown = json.loads(ask(server, f"api/recordings/{FIRST}")[2])
    assert {one["label"] for one in shown["marks"]} == {"", "ventilation"}
    status, saved = save(server, shown["marks"][:1], shown["version"])
    assert status == 200
    assert len(saved["marks"]) == 1
    after = read_eaf(path)
    assert violations(after.root) == []
    assert tostring(after.tiers["my notes"].element).strip() == kept
    assert [(one.start_us, one.value) for one in resolve_times(after) if one.tier != "reviewed stretches"] == [
        (3 * SECOND_US, "look here"),
        (2 * SECOND_US, "a remark"),
    ]


def test_second_window_cannot_overwrite_the_first(server: ReviewServer, root: Path) -> None:
    assert save(server, [], version_of(server))[0] == 200
    version = version_of(server)
    assert save(server, MARKS, version)[0] == 200
    kept = review_path(root / "reviewed", "S1.mp4", blind=False).read_bytes()
    status, told = save(server, [], version)
    assert status == 409
    assert "changed since" in told["error"]
    assert review_path(root / "reviewed", "S1.mp4", blind=False).read_bytes() == kept


@pytest.mark.parametrize(
    "marks",
    [
        "no list",
        [{"start_us": 0}],
        [{**MARKS[0], "label": "unknown"}],
        [{**MARKS[0], "how": "predicted"}],
        [{**MARKS[0], "how": []}],
        [{**MARKS[0], "how": {}}],
        [{**MARKS[0], "start_us": -SECOND_US}],
        [{**MARKS[0], "end_us": 2 * SECOND_US}],
        [{**MARKS[0], "start_us": float("inf")}],
        [{**MARKS[0], "start_us": 10**30, "end_us": 10**31}],
        [MARKS[0], {**MARKS[0], "start_us": 3 * SECOND_US, "how": "added"}],
        [MARKS[1], {**MARKS[1], "start_us": SECOND_US}],
    ],
)
def test_marks_that_cannot_be_are_refused_in_one_line(server: ReviewServer, marks: Any) -> None:
    before = version_of(server)
    status, told = save(server, marks, before)
    assert status == 422
    assert "\n" not in told["error"]
    assert version_of(server) == before


def test_body_that_is_no_review_is_refused(server: ReviewServer) -> None:
    path = f"api/recordings/{FIRST}"
    for body, length in [
        (b"{", ""),
        (b"[]", ""),
        (b'{"marks": []}', ""),
        (b"\xff", ""),
        (b"[" * 10**5, ""),
        (b"{}", "abc"),
    ]:
        status, headers, told = ask(server, path, method="PUT", body=body, Content_Length=length or str(len(body)))
        assert (status, headers["content-type"]) == (400, "application/json")
        assert "\n" not in json.loads(told)["error"]
    assert ask(server, path, method="PUT", body=b"{}", Content_Length=str(1 << 40))[0] == 413
    assert ask(server, path, method="PUT", body=b" " * (40 << 20))[0] == 413
    assert ask(server, path, method="DELETE")[1]["content-type"] == "application/json"


def test_review_is_found_by_the_content_of_its_recording_whatever_that_is_called_now(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        assert save(server, MARKS, "")[0] == 200
        folder, second = tmp_path / "reviewed", f"{1:016x}"
        (folder / "S1.mp4.reviewed.eaf").rename(folder / "S2.mp4.reviewed.eaf")  # as if S1.mp4 was S2.mp4 then
        assert len(json.loads(ask(server, f"api/recordings/{FIRST}")[2])["marks"]) == 2
        assert version_of(server, second) == ""
        mark = {"start_us": 0, "end_us": SECOND_US, "label": "suction", "how": "added"}
        assert save(server, [*MARKS, mark], version_of(server))[0] == 200
        assert save(server, [mark], "", second)[0] == 200
        assert {path.name for path in folder.glob("*.eaf")} == {
            "S2.mp4.reviewed.eaf",
            f"S2.mp4.{second}.reviewed.eaf",  # never over the other one's
        }
        found = {one["id"]: one["reviewed_us"] for one in json.loads(ask(server, "api/recordings")[2])["recordings"]}
        assert found == {FIRST: 10 * SECOND_US, second: 0, f"{2:016x}": 0}


def test_damaged_review_hides_no_other_recording(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        assert save(server, MARKS, "")[0] == 200
        review_path(tmp_path / "reviewed", "S1.mp4", blind=False).write_bytes(b"no ELAN file")
        assert ask(server, f"api/recordings/{FIRST}")[0] == 422
        problems = {one["name"]: one["problem"] for one in json.loads(ask(server, "api/recordings")[2])["recordings"]}
        assert [name for name, problem in problems.items() if problem] == ["S1.mp4"]


@pytest.mark.parametrize(
    ("marks", "version"), [(MARKS, "of another window"), ([*MARKS, {**MARKS[0], "end_us": 1}], "")]
)
def test_refused_review_leaves_nothing(tmp_path: Path, marks: Any, version: str) -> None:
    with served(tmp_path) as server:
        assert save(server, marks, version)[0] in (409, 422)
        overlapping = [MARKS[0], {**MARKS[0], "start_us": 3 * SECOND_US, "how": "added"}]
        assert save(server, overlapping, "")[0] == 422
    assert not (tmp_path / "reviewed").exists()


def test_copy_of_a_video_that_no_browser_plays_is_private_and_goes(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        content = f"{2:016x}"
        deadline = time.monotonic() + 300
        while (state := json.loads(ask(server, f"api/video/{content}")[2]))["state"] == "preparing":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert state["state"] == "ready"
        (copy,) = (tmp_path / "copies").iterdir()
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        assert ask(server, f"video/{content}")[2] == copy.read_bytes()
    assert not (tmp_path / "copies").exists()


def test_killed_server_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.review_samples", str(tmp_path)]
    cwd = Path(__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd) as process:
        assert process.stdout is not None
        address = urlsplit(process.stdout.readline().strip())
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
        body = json.dumps({"version": "", "marks": MARKS})
        connection.request("PUT", f"{address.path}api/recordings/{FIRST}", body, {"Content-Type": "application/json"})
        assert connection.getresponse().status == 200
        process.kill()
    connection.close()
    (tmp_path / "copies").mkdir(exist_ok=True)
    (tmp_path / "copies" / "left.mp4").write_bytes(b"frames")
    unsaved = tmp_path / "reviewed" / ".S1.mp4.reviewed.eaf.0123456789ab.tmp"
    unsaved.write_bytes(b"labels")
    with FileLock(unsaved.with_name(".lock")):  # as another process that is saving
        sweep = threading.Thread(target=remove_leftovers, args=(tmp_path / "reviewed",))
        sweep.start()
        sweep.join(0.2)
        assert unsaved.exists()
    sweep.join()
    unsaved.write_bytes(b"labels")
    found = read_review(review_path(tmp_path / "reviewed", "S1.mp4", blind=False), content=FIRST)
    assert [(one.label, one.how) for one in found.marks] == [("", "reviewed"), ("ventilation", "accepted")]
    with served(tmp_path) as server:
        assert not (tmp_path / "copies" / "left.mp4").exists()
        assert not unsaved.exists()
        assert len(json.loads(ask(server, f"api/recordings/{FIRST}")[2])["marks"]) == 2
