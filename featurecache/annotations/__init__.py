"""Annotations in and out: ELAN (`.eaf`) and tables to intervals of media time, and intervals to ELAN.

The rest of the toolkit sees `Interval`; identifiers, tiers and time origins stay in here.
"""

from featurecache.annotations.document import EafDocument, MediaDescriptor, Tier
from featurecache.annotations.eaf import eaf_bytes, read_eaf, save_eaf
from featurecache.annotations.eaf_writer import add_tier, new_document, write_eaf
from featurecache.annotations.interval import Interval
from featurecache.annotations.labels import Marks, marks
from featurecache.annotations.linking import link_media, linked_document
from featurecache.annotations.media import MediaMatch, matching_recordings
from featurecache.annotations.predictions import add_predictions, add_requests, predicted_intervals
from featurecache.annotations.proposing import LabelProposal, propose_labels
from featurecache.annotations.rules import LabelRule
from featurecache.annotations.table import AnnotationTable, read_csv
from featurecache.annotations.timing import Annotation, resolve_times, untimed

__all__ = [
    "Annotation",
    "AnnotationTable",
    "EafDocument",
    "Interval",
    "LabelProposal",
    "LabelRule",
    "Marks",
    "MediaDescriptor",
    "MediaMatch",
    "Tier",
    "add_predictions",
    "add_requests",
    "add_tier",
    "eaf_bytes",
    "link_media",
    "linked_document",
    "marks",
    "matching_recordings",
    "new_document",
    "predicted_intervals",
    "propose_labels",
    "read_csv",
    "read_eaf",
    "resolve_times",
    "save_eaf",
    "untimed",
    "write_eaf",
]
