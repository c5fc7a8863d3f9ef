"""The versions of transformers whose features were held against the plain forward.

transformers renames arguments and moves defaults between minors, and a moved default changes features without a word.
So a minor that the parity tests have not seen is refused, here as by pip. `.ci/run` runs them with the oldest and the
newest. Imports no transformers.
"""

import re
from importlib.metadata import version

from featurecache.errors import UntestedVersionError

OLDEST, NEWEST = (5, 23), (5, 24)
"""Major and minor; `pyproject.toml` says the same."""


def require_tested_transformers() -> None:
    """Refuses a transformers of another minor version than those tested.

    Raises:
        UntestedVersionError: Naming the version that is installed, and the command for a tested one.
    """
    installed = version("transformers")
    found = re.match(r"(\d+)\.(\d+)", installed)
    if found is None or not OLDEST <= (int(found[1]), int(found[2])) <= NEWEST:
        oldest, newest = (".".join(map(str, one)) for one in (OLDEST, NEWEST))
        raise UntestedVersionError(
            f"transformers must be one of {oldest} to {newest}, whose features were compared with the plain forward, "
            f"but {installed} is installed. Install a tested one: "
            f"pip install 'transformers>={oldest},<{NEWEST[0]}.{NEWEST[1] + 1}'."
        )
