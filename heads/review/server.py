"""The page's server: recordings, their timelines and videos out, reviews in. Loopback alone, behind `Guard`.

    GET  /                              the page, and its own files by name
    GET  /report                        the report of the project, whose moments then lead to their videos
    GET  /api/recordings                what there is to review, what of it is suggested, and who said what is on
    GET  /api/recordings/ID[?blind=1]   a timeline, what was decided so far, and its version
    PUT  /api/recordings/ID[?blind=1]   {"version", "marks"}: replaces the review; 409 where another one was quicker
    GET  /api/video/ID                  whether the video can be played yet
    GET  /api/sample                    a stretch drawn at random from what nobody annotated, for a blind review
    POST /api/retrain                   trains again on what was reviewed; GET says how that went
    GET  /video/ID                      the video, in ranges

An id is the first 16 hex digits of a recording's sha256 and is looked up, so no path ever comes from a request. Blind
answers hold no score, prediction or annotation. Nothing is kept in memory that is not on disk: a killed server loses
nothing.
"""

import contextlib
import json
import logging
import secrets
import socket
import socketserver
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import bottle

from featurecache.annotations.reviews import Mark, Review, find_reviews, read_review, remove_leftovers, save_review
from featurecache.clips.clip import covered_us, union_of
from featurecache.errors import FeatureCacheError, ReviewConflictError
from heads.review.background import Background, Retrain
from heads.review.guard import REPORT_POLICY, Guard
from heads.review.media import PlayableVideos
from heads.review.order import blind_candidates, differing
from heads.review.recordings import Reviewable
from heads.review.saving import stamped_marks

_log = logging.getLogger(__name__)

_MOST_BYTES = 16 << 20
_MOST_UNREAD_PIECES, _PIECE_BYTES, _UNREAD_S = 1 << 14, 1 << 16, 5
_PAGE_FILES = {
    "": "text/html",
    "review.css": "text/css",
    "look.css": "text/css",
    "review.js": "text/javascript",
    "lanes.js": "text/javascript",
    "marks.js": "text/javascript",
    "player.js": "text/javascript",
    "recordings.js": "text/javascript",
    "saver.js": "text/javascript",
}


class ReviewServer:
    """Serves the page of some recordings until it is closed.

    Args:
        recordings: What is reviewed.
        folder: The project's folder of reviews.
        copies: Where videos are encoded that a browser cannot play.
        reviewer: Who decides.
        report: The report of the project, which may be missing.
        retrain: Trains again, for the button of that name.
        port: Of the loopback interface; 0 for a free one.

    Raises:
        OSError: If the port is taken, or what a killed server left cannot be removed.
    """

    def __init__(
        self,
        recordings: Sequence[Reviewable],
        *,
        folder: Path,
        copies: Path,
        reviewer: str,
        report: Path,
        retrain: Retrain,
        port: int = 0,
    ) -> None:
        self._recordings = {one.content: one for one in recordings}
        self._folder, self._reviewer, self._report = folder, reviewer, report
        remove_leftovers(folder)
        self._videos = PlayableVideos({one.content: one.path for one in recordings}, copies)
        self._background = Background(retrain, self._replace)
        self._guard = Guard(self._routes())
        self._server = make_server("127.0.0.1", port, self._guard, _ThreadedServer, _QuietHandler)
        self._guard.port = self._server.server_port

    @property
    def address(self) -> str:
        """The page's address, with its token."""
        return self._guard.address

    def serve(self) -> None:
        """Answers until `stop`, or until the process is interrupted."""
        self._server.serve_forever()

    def stop(self) -> None:
        """Ends `serve`, from another thread."""
        self._server.shutdown()

    def close(self) -> None:
        """Frees the port and removes every copy of a video."""
        self._server.server_close()
        self._videos.close()

    def _routes(self) -> bottle.Bottle:
        app = bottle.Bottle()
        bottle.BaseRequest.MEMFILE_MAX = _MOST_BYTES  # larger bodies are refused by `request.json`
        app.default_error_handler = _said
        app.install(_told)
        app.get("/", callback=lambda: _page_file(""))
        app.get("/<name:re:[a-z]+[.](?:css|js)>", callback=_page_file)
        app.get("/report", callback=self._report_page)
        app.get("/api/recordings", callback=self._list)
        app.get("/api/recordings/<content>", callback=self._open)
        app.put("/api/recordings/<content>", callback=self._save)
        app.get("/api/sample", callback=self._sample)
        app.get("/api/retrain", callback=lambda: self._background.state)
        app.post("/api/retrain", callback=lambda: self._background.start())
        app.get("/api/video/<content>", callback=self._video_state)
        app.get("/video/<content>", callback=self._video)
        return app

    def _list(self) -> dict[str, Any]:
        places = {blind: self._places(self._recordings.values(), blind=blind) for blind in (False, True)}
        recordings = [self._summary(one, places) for one in self._recordings.values()]
        return {"reviewer": self._reviewer, "has_report": self._report.is_file(), "recordings": recordings}

    def _report_page(self) -> bottle.HTTPResponse:
        if not self._report.is_file():
            raise bottle.HTTPError(404, "there is no report yet; run: featurecache report")
        headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": REPORT_POLICY}
        return bottle.HTTPResponse(self._report.read_bytes(), headers=headers)

    def _summary(self, one: Reviewable, places: Mapping[bool, Mapping[str, Path]]) -> dict[str, Any]:
        try:
            reviews = [_review(one, places[blind]) for blind in (False, True)]
            problem = ""
        except (FeatureCacheError, OSError) as error:  # one bad file hides no other recording
            reviews, problem = [Review(), Review()], str(error)
        reviewed_us = [sum(end - start for start, end in union_of(review.stretches)) for review in reviews]
        return {
            "id": one.content,
            "name": one.name,
            "session": one.session,
            "split": one.split,
            "duration_us": one.timeline["recording"]["duration_us"],
            "disagreement": one.disagreement,
            "doubt": one.doubt,
            "reviewed_us": reviewed_us[0],
            "blind_us": reviewed_us[1],
            "suggested": _suggested(one, [span for review in reviews for span in review.stretches]),
            "labels": _counted(reviews[0].marks if reviews[0].version else _annotated(one.timeline), reviews[1].marks),
            "problem": problem,
        }

    def _open(self, content: str) -> dict[str, Any]:
        one, blind = self._recording(content), _is_blind()
        review = _review(one, self._places([one], blind=blind))
        timeline = one.timeline
        answer = {
            "id": content,
            "name": one.name,
            "split": one.split,
            "duration_us": timeline["recording"]["duration_us"],
            "fps": one.fps or 25.0,
            "labels": timeline["labels"],
            "blind": blind,
            "suggested": one.suggested,
            **_sent(review),
        }
        if blind:
            return answer
        if not review.version:
            answer["marks"] = [asdict(one) for one in _annotated(timeline)]
        shown = ("predicted", "annotated", "annotated_us", "scored_us", "thresholds", "clips")
        return {**answer, **{key: timeline[key] for key in shown}, "differing": differing(timeline)}

    def _save(self, content: str) -> dict[str, Any]:
        one, blind, sent = self._recording(content), _is_blind(), _sent_json()
        if not isinstance(sent, dict) or not isinstance(sent.get("version"), str):
            raise bottle.HTTPError(400, "a review must be sent as JSON with its version")
        labels, places = one.timeline["labels"], self._places([one], blind=blind)
        marks = stamped_marks(
            sent.get("marks"),
            _review(one, places),
            labels=labels,
            duration_us=one.timeline["recording"]["duration_us"],
            reviewer=self._reviewer,
        )
        saved = save_review(
            places[content],
            marks,
            labels=labels,
            recording=one.path,
            content=content,
            author=self._reviewer,
            version=sent["version"],
        )
        return _sent(saved.of(labels))

    def _sample(self) -> dict[str, Any]:
        free, places = {}, self._places(self._recordings.values(), blind=True)
        for content, one in self._recordings.items():
            with contextlib.suppress(FeatureCacheError, OSError):  # the list tells of a bad file
                free[content] = blind_candidates(one.timeline, _review(one, places).stretches)
        every = [(content, span) for content, spans in free.items() for span in spans]
        if not every:
            raise bottle.HTTPError(404, "all that nobody annotated is reviewed blind")
        content, (start, end) = every[secrets.randbelow(len(every))]
        return {"id": content, "start_us": start, "end_us": end, "left": len(every)}

    def _replace(self, recordings: Sequence[Reviewable]) -> None:
        """The recordings as another head sees them; those that were not on the page stay away."""
        seen = {one.content: one for one in recordings if one.content in self._recordings}
        self._recordings = {**self._recordings, **seen}

    def _video_state(self, content: str) -> dict[str, Any]:
        self._recording(content)
        found = self._videos.of(content)
        return {"state": found.state, "share": found.share, "reason": found.reason}

    def _video(self, content: str) -> bottle.HTTPResponse:
        self._recording(content)
        path = self._videos.of(content).path
        if path is None:
            raise bottle.HTTPError(404, "the video is not ready")
        mime_type = "video/webm" if path.suffix.lower() == ".webm" else "video/mp4"
        return bottle.static_file(path.name, root=str(path.parent.absolute()), mimetype=mime_type)

    def _recording(self, content: str) -> Reviewable:
        if content not in self._recordings:
            raise bottle.HTTPError(404, "there is no such recording")
        return self._recordings[content]

    def _places(self, recordings: Iterable[Reviewable], *, blind: bool) -> dict[str, Path]:
        return find_reviews(self._folder, {one.content: one.name for one in recordings}, blind=blind)


def _review(one: Reviewable, places: Mapping[str, Path]) -> Review:
    return read_review(places[one.content], content=one.content).of(one.timeline["labels"])


def _is_blind() -> bool:
    return bool(bottle.request.query.get("blind") == "1")


def _sent_json() -> Any:
    try:
        return bottle.request.json
    except (ValueError, RecursionError) as error:  # of the length that is named, or of lists in lists
        raise bottle.HTTPError(400, "a review must be sent as JSON, with its length in bytes") from error


def _sent(review: Review) -> dict[str, Any]:
    return {"version": review.version, "marks": [asdict(one) for one in review.marks]}


def _suggested(one: Reviewable, reviewed: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Suggested stretches that are not wholly reviewed yet."""
    spans = [(start, end) for _, start, end in one.suggested]
    done = covered_us(spans, reviewed).tolist()
    return [each for each, us in zip(one.suggested, done, strict=True) if us < each[2] - each[1]]


def _counted(marks: Sequence[Mark], blind: Sequence[Mark]) -> dict[str, int]:
    """Bouts by who said so: annotators, a reviewer with predictions in sight or without, or nobody but the head."""
    how = Counter(one.how for one in marks)
    return {
        "annotated": how["annotated"],
        "reviewed": how["corrected"] + how["added"],
        "accepted": how["accepted"],
        "blind": sum(one.how not in ("rejected", "reviewed") for one in blind),
    }


def _annotated(timeline: Mapping[str, Any]) -> list[Mark]:
    """What a review begins with: the annotators' own intervals."""
    return [
        Mark(start, end, label, "annotated")
        for label, own in (timeline["annotated"] or {}).items()
        for start, end in union_of([(start, end) for start, end in own])
    ]


def _page_file(name: str) -> bottle.HTTPResponse:
    if name not in _PAGE_FILES:
        raise bottle.HTTPError(404, "there is no such file")
    place = files("heads.report") / "parts" if name == "look.css" else files("heads.review") / "page"
    body = (place / (name or "review.html")).read_bytes()
    return bottle.HTTPResponse(body, headers={"Content-Type": f"{_PAGE_FILES[name]}; charset=utf-8"})


def _told(answer: Callable[..., Any]) -> Callable[..., Any]:
    """A route whose named errors are answered in the library's own words."""

    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return answer(*args, **kwargs)
        except ReviewConflictError as error:
            return _refusal(409, str(error))
        except FeatureCacheError as error:
            return _refusal(422, str(error))
        except OSError as error:
            _log.warning("the page could not be answered: %s", error.strerror or type(error).__name__)  # names no file
            return _refusal(500, f"it could not be read or saved: {error.strerror or error}")

    return told


def _said(error: bottle.HTTPError) -> str:
    """An error of Bottle's own as this server tells of errors; headers such as `Allow` stay."""
    bottle.response.content_type = "application/json"
    return json.dumps({"error": str(error.body)})


def _refusal(status: int, why: str) -> bottle.HTTPResponse:
    return bottle.HTTPResponse(json.dumps({"error": why}), status, {"Content-Type": "application/json"})


class _ThreadedServer(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each request, so that a save does not wait for a video."""

    daemon_threads = True

    def shutdown_request(self, request: Any) -> None:
        """Ends a connection after what is still being sent: closed at once, it would take the answer with it."""
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            request.settimeout(_UNREAD_S)
            for _ in range(_MOST_UNREAD_PIECES):
                if not request.recv(_PIECE_BYTES):
                    break
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - as the base class calls it
        """A browser that goes away in the middle of a video is no error."""
        _log.debug("a connection ended early", exc_info=True)


class _QuietHandler(WSGIRequestHandler):
    def address_string(self) -> str:
        return str(self.client_address[0])

    def log_message(self, format: str, *args: Any) -> None:
        """Addresses hold the token, so none is logged."""
