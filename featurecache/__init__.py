"""featurecache: videos and annotations in, features of a frozen vision-language model on disk.

The public names below load on first use; importing the package loads neither torch nor zarr.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurecache.errors import FeatureCacheError
    from featurecache.project.settings import open_project
    from featurecache.spec import FeatureSpace
    from featurecache.store import FeatureCache
    from featurecache.workflow.clips import make_clips
    from featurecache.workflow.demo import make_demo
    from featurecache.workflow.extraction import extract
    from featurecache.workflow.finding import find

__all__ = [
    "FeatureCache",
    "FeatureCacheError",
    "FeatureSpace",
    "extract",
    "find",
    "make_clips",
    "make_demo",
    "open_project",
]
__version__ = version("featurecache")

_HOMES = {
    "FeatureCache": "featurecache.store",
    "FeatureCacheError": "featurecache.errors",
    "FeatureSpace": "featurecache.spec",
    "extract": "featurecache.workflow.extraction",
    "find": "featurecache.workflow.finding",
    "make_clips": "featurecache.workflow.clips",
    "make_demo": "featurecache.workflow.demo",
    "open_project": "featurecache.project.settings",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
