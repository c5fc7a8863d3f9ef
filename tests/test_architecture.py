"""The house: arrows point one way, heavy libraries load only where they must, only cli.py prints."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("featurecache/**/*.py"), *ROOT.glob("heads/**/*.py"), ROOT / "cli.py"])


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    forbidden = {"featurecache": {"heads", "cli"}, "heads": {"cli"}, "cli.py": set()}[_room(path)]
    assert not {name.partition(".")[0] for name in _imports(path)} & forbidden


def test_transformers_is_imported_by_backbones_alone() -> None:
    importers = {
        p.relative_to(ROOT).as_posix() for p in SOURCES if any(n.startswith("transformers") for n in _imports(p))
    }
    makes_the_demo_backbone = {"featurecache/demo/backbone_files.py", "featurecache/demo/train_backbone.py"}
    others = importers - makes_the_demo_backbone
    assert others
    assert {path for path in others if not path.startswith("featurecache/backbones/")} == set()


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if p.name not in ("cli.py", "train_backbone.py")],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_only_the_command_line_prints_or_ends_the_process(path: Path) -> None:
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    if path.relative_to(ROOT).as_posix() != "featurecache/terminal/screen.py":  # which cli.py alone opens
        assert not [function for function in calls if isinstance(function, ast.Attribute) and function.attr == "print"]
        assert "featurecache.terminal.screen" not in _imports(path)
    called = {function.id for function in calls if isinstance(function, ast.Name)}
    assert not called & {"print", "exit", "quit", "breakpoint", "eval", "exec"}


def _loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import featurecache", {"torch", "transformers", "zarr", "numpy"}),
        ("import heads", {"torch", "sklearn", "optuna", "numpy"}),
        ("import cli", {"torch", "transformers", "zarr", "numpy", "optuna", "av", "pydantic_core"} - {"pydantic_core"}),
        ("from featurecache import FeatureCache", {"torch", "transformers"}),
        (
            "import featurecache.clips.inventory, featurecache.clips.audit, featurecache.video.sampling",
            {"torch", "transformers", "zarr"},
        ),
    ],
)
def test_importing_stays_light(statement: str, heavy: set[str]) -> None:
    assert not _loaded_after(statement) & heavy


def test_the_lightness_test_can_fail() -> None:
    assert "numpy" in _loaded_after("import featurecache.video.sampling")
