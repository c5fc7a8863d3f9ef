"""What an export proves about itself: sha256 of every array and note in it, and of these digests together.

`proof` is canonical JSON `{"arrays": {name: [dtype, shape, sha256]}, "notes": {name: sha256}}`, and `proof_sha256` its
digest. A flipped bit, a truncated array or an exchanged one is found; a forgery is not, for whoever can change a file
can also compute new digests.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import CacheFormatError
from featurecache.spec import canonical_json
from featurecache.store.external import ExternalFile

_TEXT, _DIGEST = "proof", "proof_sha256"


@dataclass(frozen=True)
class ArrayDigest:
    """What an array must be: numpy's dtype as text, dimensions, sha256 of the values in C order, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


def digest_of(array: npt.NDArray[Any]) -> ArrayDigest:
    """The digest of a whole array."""
    return ArrayDigest(array.dtype.str, array.shape, hashlib.sha256(np.ascontiguousarray(array).data).hexdigest())


def proof_notes(arrays: Mapping[str, ArrayDigest], notes: Mapping[str, str]) -> dict[str, str]:
    """The two notes that prove arrays and other notes."""
    text = canonical_json(
        {
            "arrays": {name: [one.dtype, list(one.shape), one.sha256] for name, one in arrays.items()},
            "notes": {name: _sha256(note) for name, note in notes.items()},
        }
    )
    return {_TEXT: text, _DIGEST: _sha256(text)}


class Proof:
    """The proof of an external file.

    Args:
        file: An export.

    Raises:
        CacheFormatError: If the proof is not there or not whole.
    """

    def __init__(self, file: ExternalFile) -> None:
        self._file = file
        text = file.note(_TEXT)
        if not text or _sha256(text) != file.note(_DIGEST):
            raise damaged(file, "its proof is not as it was written")
        try:
            found = json.loads(text)
            self._notes = {str(name): str(digest) for name, digest in found["notes"].items()}
            self._arrays = {
                str(name): ArrayDigest(str(dtype), tuple(map(int, shape)), str(digest))
                for name, (dtype, shape, digest) in found["arrays"].items()
            }
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise damaged(file, f"its proof cannot be read ({error!r})") from None

    def note(self, name: str) -> str:
        """A note as it was written.

        Raises:
            CacheFormatError: If it is not.
        """
        note = self._file.note(name)
        if _sha256(note) != self._notes.get(name):
            raise damaged(self._file, f"{name} does not match its sha256")
        return note

    def has_array(self, name: str) -> bool:
        """Whether an array was written."""
        return name in self._arrays

    def array(self, name: str) -> npt.NDArray[Any]:
        """A whole array as it was written.

        Raises:
            CacheFormatError: If it is not.
        """
        array = self._file.array(name).read()
        self.require(name, digest_of(array))
        return array

    def require(self, name: str, found: ArrayDigest) -> None:
        """Check the digest of an array that was read in parts.

        Raises:
            CacheFormatError: If it is another.
        """
        if found != self._arrays.get(name):
            raise damaged(self._file, f"{name} does not match its sha256")


def damaged(file: ExternalFile, what: str) -> CacheFormatError:
    """The error for an export that is not as it was written."""
    return CacheFormatError(f"a file must be whole, but {file.path.name} is damaged ({what}). Export it again.")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
