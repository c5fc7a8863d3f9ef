"""A word before an import that takes seconds, so that no command is silent on a terminal while it only loads.

torch takes one to three seconds, transformers some more. Commands import them late, behind every check that needs
neither; where one does import them, this is told by the log as other waits are.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from types import ModuleType

_SLOW = {"torch": "loading PyTorch ...", "transformers": "loading transformers ..."}
_log = logging.getLogger(__name__)


class _Teller(MetaPathFinder):
    """Finds no module, and tells of each slow one that is looked for, once."""

    def __init__(self) -> None:
        self._left = {name: line for name, line in _SLOW.items() if name not in sys.modules}

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        """Leaves the finding to others."""
        del path, target
        if line := self._left.pop(name, ""):
            _log.debug(line, extra={"is_wait": True})


@contextmanager
def slow_imports_told() -> Iterator[None]:
    """Logs at level DEBUG what is loaded, before an import that takes seconds."""
    teller = _Teller()
    sys.meta_path.insert(0, teller)
    try:
        yield
    finally:
        sys.meta_path.remove(teller)
