"""The store: features on disk, committed whole, checked on every read. `FORMAT.md` describes the format."""

from featurecache.store.care import RepairReport, VerifyReport, repair, verify
from featurecache.store.forget import ForgetReport, forget
from featurecache.store.garbage import Garbage, gc
from featurecache.store.index import Damage
from featurecache.store.reader import FeatureCache
from featurecache.store.rewrite import CompactReport, compact
from featurecache.store.view import Space
from featurecache.store.writer import CacheWriter, Row

__all__ = [
    "CacheWriter",
    "CompactReport",
    "Damage",
    "FeatureCache",
    "ForgetReport",
    "Garbage",
    "RepairReport",
    "Row",
    "Space",
    "VerifyReport",
    "compact",
    "forget",
    "gc",
    "repair",
    "verify",
]
