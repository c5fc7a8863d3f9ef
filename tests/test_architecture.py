"""The architecture: dependencies point one way, heavy libraries load only where they must, only cli.py prints."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("featurecache/**/*.py"), *ROOT.glob("heads/**/*.py"), ROOT / "cli.py"])
COMMANDS = ("cli.py", "cache_commands.py", "map_commands.py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
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
    [p for p in SOURCES if p.name not in (*COMMANDS, "train_backbone.py")],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_only_the_command_line_prints_or_ends_the_process(path: Path) -> None:
    calls = [node.func for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    if path.relative_to(ROOT).as_posix() in ("featurecache/terminal/screen.py", "featurecache/terminal/command.py"):
        return  # which commands alone use
    assert not [function for function in calls if isinstance(function, ast.Attribute) and function.attr == "print"]
    assert not {"featurecache.terminal.screen", "featurecache.terminal.command"} & set(_imports(path))
    called = {function.id for function in calls if isinstance(function, ast.Name)}
    assert not called & {"print", "exit", "quit", "breakpoint", "eval", "exec"}


def test_what_tests_share_stands_in_modules_of_its_own_that_are_no_tests() -> None:
    found = {p.name: name for p in ROOT.glob("tests/*.py") for name in _imports(p) if name.startswith("tests.test_")}
    assert found == {}


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
        ("from featurecache.store import FeatureCache", {"torch", "zarr", "transformers", "h5py"}),
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


LOWER_FIRST = {
    "featurecache": [
        *("errors", "files", "spelling", "csv_fields", "device", "spec", "project", "annotations", "video", "clips"),
        *("backbones", "store", "extraction", "workers", "setup", "demo", "workflow", "terminal", "__main__"),
    ],
    "heads": [
        *(
            "samples",
            "settings",
            "prior",
            "inputs",
            "methods",
            "clip_rule",
            "data",
            "models",
            "folds",
            "scoring",
            "timelines",
            "engines",
        ),
        *(
            "loading",
            "bundle_files",
            "bundle",
            "cached_features",
            "runs",
            "estimator",
            "search",
            "finetuning",
            "zeroshot",
            "sections",
        ),
        *("evaluation_log", "report", "review", "workflow", "terminal"),
    ],
}
"""The parts of each package; each imports only from itself and from those before it."""


def _imports_at_run_time(path: Path) -> Iterator[str]:
    """As `_imports`, without what is imported for the type checker alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


PACKAGED = [path for path in SOURCES if len(path.relative_to(ROOT).parts) > 1 and path.parent.name not in LOWER_FIRST]


@pytest.mark.parametrize("path", PACKAGED, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_part_of_a_package_imports_no_higher_one(path: Path) -> None:
    package, part = path.relative_to(ROOT).with_suffix("").parts[:2]
    order = LOWER_FIRST[package]
    parts = {name.split(".")[1] for name in _imports_at_run_time(path) if name.startswith(f"{package}.")}
    higher = {other for other in parts if other in order and order.index(other) > order.index(part)}
    assert not higher


def test_every_part_of_a_package_has_its_place() -> None:
    for package, order in LOWER_FIRST.items():
        found = {path.relative_to(ROOT).with_suffix("").parts[1] for path in SOURCES if _room(path) == package}
        assert found - {"__init__"} == set(order)


def test_imports_go_round_in_no_circle() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}
    imported = {
        name: {
            target
            for found in _imports_at_run_time(path)
            for target in (found, found.rpartition(".")[0])
            if target in names and target != name and path.name != "__init__.py"
        }
        for name, path in names.items()
    }
    seen: dict[str, bool] = {}

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' -> '.join((*way[way.index(name) :], name))}"
        if name not in seen:
            for other in sorted(imported[name]):
                visit(other, (*way, name))
            seen[name] = True

    for name in names:
        visit(name, ())


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_commands_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= (699 if path.name == "cli.py" else 400)
    functions = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef)]
    assert path.name not in COMMANDS or max(node.end_lineno - node.lineno + 1 for node in functions) <= 40


def test_no_file_of_tests_is_longer_than_one_can_read() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in ROOT.glob("tests/*.py")}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_wheel_holds_every_package_and_every_file_that_they_read() -> None:
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    own = [path for name in ("featurecache", "heads") for path in (ROOT / name).rglob("*") if path.is_file()]
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in own if path.name == "__init__.py"}
    assert set(find_packages(str(ROOT), include=built["packages"]["find"]["include"])) == packages
    data = {
        path
        for package, patterns in built["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    assert data == {path for path in own if path.suffix not in (".py", ".pyc")}


def test_the_readers_tour_names_files_that_exist_and_at_most_eight_for_each_value() -> None:
    tour = (ROOT / "CONTRIBUTING.md").read_text().partition("## A tour")[2].partition("\n## ")[0]
    walks = dict(re.findall(r"^\*\*(.+?)\*\*(.*?)(?=^\*\*|\Z)", tour, flags=re.M | re.S))
    assert [name.split(",")[0] for name in walks] == [
        "A clip",
        "A trial of a search",
        "A prediction",
        "An annotation",
    ]
    for name, text in walks.items():
        assert 0 < len(re.findall(r"^\d+\. ", text, flags=re.M)) <= 8, name
        for path in re.findall(r"`([\w/]+\.py)`", text):
            assert (ROOT / path).is_file() or (ROOT / "featurecache" / path).is_file(), (name, path)
