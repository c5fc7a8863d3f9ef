"""The log of test-set evaluations: JSON lines, one per bundle, synced to disk before a score is returned.

The lines of one evaluation share an id, under the key `look`. Held-out data is identified by content: an evaluation
counts for every later one that scores a recording or a session of it again. So neither dropping, adding or renaming a
test session nor other features, labels or clip lengths make a test split unseen again. Recordings and sessions stand in
the log as 16 digits of a sha256 (of a recording, of its content's digest), never by name.

The same bundle scored again on the same clips with the same targets shows nothing new, whichever command does it: such
an evaluation is logged and not counted again.

A line without that, by an older version or damaged, counts for every test split.
"""

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.clips.samples import BETWEEN_PARTS
from featurecache.files import private_folder


@dataclass(frozen=True)
class EvaluationLog:
    """What an evaluation log says.

    Attributes:
        total: Test-set evaluations of what the last one scored, that one included.
        by_bundle: Digest of a bundle -> number of its evaluations on different clips or targets.
        unreadable: Lines that cannot be read, each of which counts as an evaluation.
    """

    total: int
    by_bundle: Mapping[str, int]
    unreadable: int


@dataclass(frozen=True)
class Scored:
    """One bundle in an evaluation.

    Attributes:
        bundle: Its digest.
        macro_f1: Its score.
        content: What it was scored on (`content_of`); empty where that is unknown.
    """

    bundle: str
    macro_f1: float | None
    content: str = ""


def content_of(clip_ids: Sequence[str] | None, Y: npt.NDArray[np.integer], labels: Sequence[str]) -> str:
    """Digest of N clips with their targets (N, C), in any order; empty where the clips are unknown."""
    if clip_ids is None:
        return ""
    rows = sorted([clip_id, *row] for clip_id, row in zip(clip_ids, np.asarray(Y, int).tolist(), strict=True))
    return hashlib.sha256(json.dumps([list(labels), rows]).encode()).hexdigest()[:16]


def log_evaluation(
    log: Path,
    seen: Sequence[Scored],
    *,
    split: str,
    sessions: Sequence[str],
    clip_ids: Sequence[str] | None,
) -> int:
    """Appends a test-set evaluation and syncs it to disk.

    Args:
        log: The log; created if absent.
        seen: The bundles.
        split: The split's name, or `leave-one-session-out`.
        sessions: The session of each evaluated clip.
        clip_ids: The id of each evaluated clip; None where unknown, so that sessions' names alone tell.

    Returns:
        Number of test-set evaluations of these recordings or sessions, including this one.

    Raises:
        OSError: If it cannot be written.
    """
    evaluation = {
        "look": secrets.token_hex(8),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "split": split,
        "sessions": _digests(sessions),
        "recordings": _digests([part.rsplit("-", 2)[0] for one in clip_ids or () for part in one.split(BETWEEN_PARTS)]),
    }
    lines = [json.dumps({**evaluation, **asdict(one)}) for one in seen]
    private_folder(log.parent)
    _append_lines(log, lines)
    return read_evaluation_log(log).total


def read_evaluation_log(log: Path) -> EvaluationLog:
    """Counts what a log holds; nothing where there is no file.

    Raises:
        OSError: If it cannot be read.
    """
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    evaluations: dict[str | int, frozenset[str] | None] = {}  # None: of whatever was scored
    pairs: dict[str | int, set[tuple[str, str]]] = {}  # bundle and content of each evaluation
    unreadable = 0
    for number, line in enumerate(lines):
        try:
            one = json.loads(line)
            name = str(one["look"]) if "look" in one else number
            pair = str(one["bundle"]), str(one.get("content") or f"unknown, line {number}")
        except (ValueError, KeyError, TypeError, AttributeError):
            evaluations[number] = None
            unreadable += 1
            continue
        evaluations[name] = _scored(one)
        pairs.setdefault(name, set()).add(pair)
    last = next((scored for scored in reversed(evaluations.values()) if scored is not None), None)
    total, known = 0, set[tuple[str, str]]()
    for name, scored in evaluations.items():
        if scored is None or last is None or not scored.isdisjoint(last):
            own = pairs.get(name, set())
            total += not own or not own <= known
            known |= own
    by_bundle = Counter(bundle for bundle, _ in set[tuple[str, str]]().union(*pairs.values()))
    return EvaluationLog(total, by_bundle, unreadable)


def _scored(line: Mapping[str, Any]) -> frozenset[str] | None:
    """What a line's evaluation scored, as digests with their kind; None where it does not say."""
    found = [
        f"{kind} {one}" for kind in ("sessions", "recordings") if isinstance(line.get(kind), list) for one in line[kind]
    ]
    return frozenset(found) or None


def _digests(names: Sequence[str]) -> list[str]:
    return sorted({hashlib.sha256(name.encode()).hexdigest()[:16] for name in set(names)})


def _append_lines(path: Path, lines: Sequence[str]) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        file.write(b"\n" * is_torn + "".join(f"{line}\n" for line in lines).encode())
        os.fsync(descriptor)
