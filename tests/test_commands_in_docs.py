"""The commands that pages name are commands of this program, with options that they have, and tests run all of them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


def commands_in(page: Path) -> list[list[str]]:
    """The words of every `featurecache ...`, as a line of a block or inside a line of text."""
    text = page.read_text()
    blocks = "\n".join(re.findall(r"^```(?!python)\w*\n(.*?)^```", text, flags=re.M | re.S)).replace("\\\n", " ")
    lines = re.findall(r"(?:^|\s)featurecache ([^#\n;|&>]*)", blocks)
    inline = re.findall(r"`(?:[\w./ -]*/)?featurecache ([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return [line.split() for line in (*lines, *inline)]


def unknown(words: list[str]) -> list[str]:
    """What of a command line this program does not know."""
    command = typer.main.get_command(cli.app)
    while words and hasattr(command, "commands"):
        if words[0] in command.commands:
            command, words = command.commands[words[0]], words[1:]
        elif words[0].startswith("-"):
            break
        else:
            return words[:1]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
    flags = [word.partition("=")[0].rstrip(".,") for word in words if re.match(r"--\w", word)]
    return [flag for flag in flags if flag not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_a_page_names_exist_with_their_options(page: Path) -> None:
    wrong = {" ".join(words): unknown(words) for words in commands_in(page)}
    assert {line: found for line, found in wrong.items() if found} == {}


def test_this_check_finds_a_command_and_an_option_that_are_not_there(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Run `featurecache extrakt`, then\n\n```\nfeaturecache extract --worker 1/2  # a share\n```\n")
    assert [unknown(words) for words in commands_in(page)] == [["--worker"], ["extrakt"]]


def words_run_by(node: ast.AST) -> Iterator[str]:
    """The first words of `invoke(...)`, `run(...)` or a list."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("invoke", "run", "_run"):
        inside = node.args
    elif isinstance(node, (ast.List, ast.Tuple)):
        inside = node.elts
    else:
        return
    for one in inside[:3]:
        if isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield from one.value.split()[:2]


def test_every_command_is_run_by_some_test() -> None:
    texts = [path.read_text() for path in (ROOT / "tests").glob("test_*.py") if path.name != "test_architecture.py"]
    words = {word for text in texts for node in ast.walk(ast.parse(text)) for word in words_run_by(node)}
    app = typer.main.get_command(cli.app)
    groups = [one for one in app.commands.values() if hasattr(one, "commands")]
    names = {name for group in (app, *groups) for name, one in group.commands.items() if one not in groups}
    assert len(names) > 25
    assert names - words == set()
