"""The log of test-set evaluations: no change of names, sessions or features makes a test split unseen again."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from heads.evaluation_log import Scored, content_of, log_evaluation, read_evaluation_log

SESSIONS = {"S1": "a" * 16, "S2": "b" * 16, "S3": "c" * 16}


def evaluated(
    log: Path,
    sessions: dict[str, str],
    *,
    length_us: int = 3_000_000,
    known: bool = True,
    bundles: Sequence[str] = ("bundle",),
    target: int = 1,
) -> int:
    """An evaluation of sessions, each with a recording of this content."""
    clip_ids = [f"{content}-0-{length_us}" for content in sessions.values()]
    content = content_of(clip_ids if known else None, np.full((len(sessions), 1), target), ["ventilation"])
    seen = [Scored(bundle, 0.5, content) for bundle in bundles]
    return log_evaluation(log, seen, split="test", sessions=list(sessions), clip_ids=tuple(clip_ids) if known else None)


@pytest.mark.parametrize(
    ("again", "count"),
    [
        (SESSIONS, 2),
        ({"S1": "a" * 16, "S2": "b" * 16}, 2),  # one dropped
        ({**SESSIONS, "S4": "d" * 16}, 2),
        ({f"patient {name}": content for name, content in SESSIONS.items()}, 2),  # renamed
        ({"S1": "e" * 16}, 2),  # encoded again
        ({"S4": "d" * 16, "S5": "e" * 16}, 1),  # others altogether
    ],
)
def test_dropping_adding_or_renaming_a_session_does_not_reset_the_count(
    tmp_path: Path, again: dict[str, str], count: int
) -> None:
    log = tmp_path / "looks.jsonl"
    evaluated(log, SESSIONS)
    assert evaluated(log, again, length_us=2_000_000) == count


def test_a_bundle_scored_again_on_the_same_clips_is_one_evaluation_whatever_it_is_compared_with(tmp_path: Path) -> None:
    log = tmp_path / "looks.jsonl"
    assert evaluated(log, SESSIONS, bundles=["tuned", "asked"]) == 1
    assert evaluated(log, SESSIONS, bundles=["asked"]) == 1
    assert evaluated(log, dict(reversed(SESSIONS.items())), bundles=["tuned", "asked"]) == 1
    assert evaluated(log, SESSIONS, bundles=["tuned", "tuned after it"]) == 2
    assert evaluated(log, SESSIONS, bundles=["tuned"], target=0) == 3, "other targets show something new"
    assert evaluated(log, SESSIONS, bundles=["tuned"], known=False) == 4, "nobody can tell what was scored"
    assert read_evaluation_log(log).by_bundle == {"tuned": 3, "asked": 1, "tuned after it": 1}


def test_features_without_clip_ids_are_counted_by_their_sessions(tmp_path: Path) -> None:
    log = tmp_path / "looks.jsonl"
    evaluated(log, SESSIONS, known=False)
    assert evaluated(log, SESSIONS) == 2


def test_log_names_no_session_and_no_recording(tmp_path: Path) -> None:
    evaluated(tmp_path / "looks.jsonl", {"jane doe": "a" * 16})
    text = (tmp_path / "looks.jsonl").read_text()
    assert "jane" not in text
    assert "a" * 16 not in text
    assert (tmp_path / "looks.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_line_of_an_older_version_or_a_torn_one_counts_for_every_test_split(tmp_path: Path) -> None:
    log = tmp_path / "looks.jsonl"
    older = {"bundle": "x", "sessions_sha256": "s", "look": "1"}
    lines = [older, older, {**older, "look": "2"}, {"bundle": "y", "sessions_sha256": "t"}]
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '"no evaluation"\n{"torn')
    found = read_evaluation_log(log)
    assert (found.total, found.by_bundle, found.unreadable) == (5, {"x": 3, "y": 1}, 2)
    assert evaluated(log, SESSIONS) == 6
