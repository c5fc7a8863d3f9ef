"""The public interface: what the packages export is what docs/api.md tells a reader."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import featurecache
import heads

TEXT = (Path(__file__).parents[1] / "docs/api.md").read_text()
PUBLIC = [f"{package.__name__}.{name}" for package in (featurecache, heads) for name in package.__all__]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented(name: str) -> None:
    assert re.search(rf"`{re.escape(name)}\b", TEXT)


def test_every_documented_name_exists() -> None:
    assert set(re.findall(r"`((?:featurecache|heads)\.\w+)", TEXT)) == set(PUBLIC)


def test_example_calls_what_exists_with_arguments_that_exist() -> None:
    code = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[0]
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    checked = 0
    for call in calls:
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            function = getattr({"featurecache": featurecache, "heads": heads}[call.func.value.id], call.func.attr)
            inspect.signature(function).bind(*call.args, **{keyword.arg or "": None for keyword in call.keywords})
            checked += 1
    assert checked == 5
