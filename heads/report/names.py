"""What recordings and sessions are called on the page: their file's or folder's own name, never a path."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from featurecache.spelling import visible


def isolated(text: str) -> str:
    """A name as it is shown inside other text, which its direction of writing does not reach."""
    return f"\u2068{visible(text)}\u2069"


class ShownNames:
    """Recordings' names without folders, told apart by their folder's last part where two files share a name."""

    def __init__(self, recordings: Sequence[str]) -> None:
        different = dict.fromkeys(recordings)
        files = Counter(visible(last_part(one)) for one in different)
        self._shown: dict[str, str] = {}
        for recording in different:
            file = visible(last_part(recording))
            folder = visible(PurePosixPath(recording).parent.name)
            shown = file if files[file] == 1 else f"{file} ({folder or 'no folder'})"
            taken = sum(one == shown or one.startswith(f"{shown} no. ") for one in self._shown.values())
            self._shown[recording] = f"{shown} no. {taken + 1}" if taken else shown

    def __getitem__(self, recording: str) -> str:
        return self._shown[recording]


def last_part(name: str) -> str:
    """A path's own name, whichever slashes it has."""
    return PurePosixPath(name.replace("\\", "/")).name or name
