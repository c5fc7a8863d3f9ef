"""The documentation as a site: `make site` builds it from the pages as they lie in the repository, without a network.

The source folder is the repository's root, so that a link which works among the files works on the site. README.md is
its first page; the list of all pages is added to it here, because a reader of the file would only see a directive.
"""

from importlib import metadata

from sphinx.application import Sphinx

project = "featurecache"
release = metadata.version("featurecache")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "featurecache/*.md", "featurecache/demo/backbone/*.md", "benchmarks/*.md"]
html_theme = "furo"
html_title = "featurecache"
myst_heading_anchors = 4
autodoc_typehints = "description"
autodoc_typehints_format = "short"
napoleon_attr_annotations = False
autodoc_member_order = "groupwise"

PAGES = {
    "For the study": [
        "docs/guide",
        "docs/review",
        "docs/install",
        "docs/splits",
        "docs/samples",
        "docs/evaluation",
        "docs/finetuning",
        "docs/zeroshot",
    ],
    "For the machine": [
        "docs/backbones",
        "docs/cache",
        "docs/scale",
        "docs/cluster",
        "featurecache/FORMAT",
        "featurecache/demo/backbone/MODEL_CARD",
    ],
    "In Python": ["docs/api", "docs/reference"],
    "The project": ["CHANGELOG", "benchmarks/RESULTS", "CONTRIBUTING", "SECURITY"],
}


def _add_pages(_: Sphinx, page: str, content: list[str]) -> None:
    if page == root_doc:
        content[0] += "".join(
            f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(f"/{name}" for name in names) + "\n```\n"
            for caption, names in PAGES.items()
        )


def _skip(_app: Sphinx, _of: str, name: str, member: object, skip: bool, _options: object) -> bool:
    """Leaves out what classes inherit from scikit-learn, whose docstrings link to its own site."""
    return skip or name.endswith("_request") or (getattr(member, "__module__", None) or "").startswith("sklearn.")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _add_pages)
    app.connect("autodoc-skip-member", _skip)
