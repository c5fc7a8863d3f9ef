"""`python -m featurecache`, and what the installed command starts.

The command line (`cli.py`) and `heads` lie beside this package under names that other files have too. So they are
loaded from there and not by a search: another `cli.py` or `heads` that comes first on PYTHONPATH, or lies in the folder
the user stands in, is passed over.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def main() -> None:
    """Runs the command line that belongs to this package."""
    beside = Path(__file__).resolve().parents[1]
    _load("heads", beside / "heads" / "__init__.py")
    _load("featurecache.cli", beside / "cli.py").main()


def _load(name: str, path: Path) -> ModuleType:
    """The module of a file, known under a name from then on."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} must be a Python file of this installation. Install featurecache again.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
