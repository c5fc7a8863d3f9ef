"""Writes an annotation file, and never over another one unless told to."""

import os
from pathlib import Path

from featurecache.errors import OutputExistsError
from featurecache.files import write_private


def save_private(path: Path, data: bytes, *, replace: bool) -> None:
    """Write `data` to `path`, mode 0600, whole or not at all.

    Args:
        path: The file to make; its folder must exist.
        data: The whole content.
        replace: Whether a file that is already there may be replaced.

    Raises:
        OutputExistsError: If something is there and `replace` is false.
    """
    if not replace and os.path.lexists(path):
        raise OutputExistsError(
            f"a new file must not replace another, but {path} exists. Choose another name, or ask for replacement."
        )
    write_private(path, data)
