"""Named errors, one for each promise the library makes.

Each is also the builtin exception people already catch. A message has three parts on one line: what
must hold, what was found (with names and values), and what to do next:

    the label must be one of ventilation, suction, but 'suktion' was asked for. Did you mean 'suction'?

Only `cli.py` turns these into an exit code; the library never ends the process.
"""


class FeatureCacheError(Exception):
    """Base of every error this project raises on purpose."""

    def __str__(self) -> str:
        # KeyError and OSError would quote or number the message.
        return " ".join(str(part) for part in self.args)


# --- the project and its settings -----------------------------------------------------------------


class ProjectNotFoundError(FeatureCacheError, FileNotFoundError):
    """There is no `featurecache.toml` where one was expected."""


class ProjectExistsError(FeatureCacheError, FileExistsError):
    """`init` or `demo` would replace a file that is already there."""


class SettingsError(FeatureCacheError, ValueError):
    """A setting is unknown, of the wrong type, or out of its range."""


class UsageError(FeatureCacheError, ValueError):
    """Options of a call are malformed or exclude each other; the command line ends with 2."""


# --- recordings, annotations, clips, splits -------------------------------------------------------


class NoRecordingsError(FeatureCacheError, FileNotFoundError):
    """A folder of recordings is missing, unreadable, or holds no video."""


class UnreadableVideoError(FeatureCacheError, ValueError):
    """A video cannot be opened or decoded, or asks for more than the limits allow."""


class AnnotationError(FeatureCacheError, ValueError):
    """An annotation file is malformed, inconsistent, or names what does not exist."""


class UnsafeFileError(FeatureCacheError, ValueError):
    """A file uses a construct that is refused because it can do harm."""


class ClipTableError(FeatureCacheError, ValueError):
    """`clips.csv` is malformed, or does not fit the recordings or the request."""


class EditedTableError(FeatureCacheError, FileExistsError):
    """`clips.csv` was edited by a person and would be replaced."""


class OutdatedTableError(FeatureCacheError, ValueError):
    """The settings that `clips.csv` was made with have changed since."""


class SplitError(FeatureCacheError, ValueError):
    """The sessions cannot be split as asked."""


class ReviewConflictError(FeatureCacheError, RuntimeError):
    """A review was changed by another window or program since it was read."""


class OutputExistsError(FeatureCacheError, FileExistsError):
    """A file to be written is already there, and replacing it was not asked for."""


# --- backbone and extraction ----------------------------------------------------------------------


class ModelNotFoundError(FeatureCacheError, FileNotFoundError):
    """The backbone's folder, or a file in it, is not on this machine."""


class UnsupportedModelError(FeatureCacheError, ValueError):
    """The backbone's architecture or its processor is not one this toolkit runs."""


class JudgeUnreachableError(FeatureCacheError, ConnectionError):
    """A served language model that judges captions does not answer, or no more."""


class UnansweredError(FeatureCacheError, ValueError):
    """A judge gave no answer to a question; others may be answered."""


class UntestedVersionError(FeatureCacheError, ImportError):
    """A library is installed in a version with which nobody has compared the features."""


class NoVideoTokensError(FeatureCacheError, ValueError):
    """A prompt or a clip has no video token to pool."""


class ChangedFeaturesError(FeatureCacheError, ValueError):
    """Stored clips, computed again at the start of a run, do not come out as they were stored."""


class WorkerDiedError(FeatureCacheError, RuntimeError):
    """Processes that shared an extraction died, and clips are left that none survived to compute."""


# --- the cache ------------------------------------------------------------------------------------


class CacheNotFoundError(FeatureCacheError, FileNotFoundError):
    """There is no feature cache at the path."""


class CacheWriteError(FeatureCacheError, OSError):
    """The cache could not be written; what was committed before is intact."""


class CacheReadError(FeatureCacheError, OSError):
    """The disk refused to give what the cache holds; nothing is known to be missing."""


class CacheBusyError(FeatureCacheError, TimeoutError):
    """Another gc, compact, forget or repair is working on the cache; nothing was changed."""


class WithdrawnRecordingError(FeatureCacheError, ValueError):
    """The recording was withdrawn from this cache (`cache forget`); nothing of it is stored again."""


class CacheFormatError(FeatureCacheError, ValueError):
    """The folder is not a cache, or is of a format version this toolkit does not read."""


class NewerFormatError(CacheFormatError):
    """The cache was written by a newer version of this toolkit; nothing is wrong with it."""


class DamagedSegmentError(FeatureCacheError, ValueError):
    """A committed segment is incomplete or fails a checksum."""


class FingerprintMismatchError(FeatureCacheError, ValueError):
    """Two feature spaces that must be the same are not."""


class AmbiguousSpaceError(FeatureCacheError, LookupError):
    """Several feature spaces match a request that must match one."""


class MissingFeaturesError(FeatureCacheError, KeyError):
    """The cache has no feature for clips that were asked for."""


class NonFiniteFeatureError(FeatureCacheError, ValueError):
    """A feature holds NaN or infinity and is refused."""


class OutdatedTableWarning(UserWarning):
    """Recordings, annotations or settings differ from what `clips.csv` was made from; the table is used as it is."""


class WithdrawnRecordingWarning(UserWarning):
    """Rows that were gathered to be saved are of a recording that was withdrawn meanwhile, and were dropped."""


class ConstantFeatureWarning(UserWarning):
    """All features of a segment are equal: the tap or the prompt is probably wrong."""


class LowMemoryWarning(UserWarning):
    """A device's memory was not enough, and the work goes on with less: fewer heads at once, or on the CPU."""


# --- learning -------------------------------------------------------------------------------------


class TrainingDataError(FeatureCacheError, ValueError):
    """The labelled clips cannot train or score a head (no positives, one session, wrong shapes)."""


class BundleError(FeatureCacheError, ValueError):
    """A bundle or a search result is missing, incomplete, or made for other features."""


class StudyError(FeatureCacheError, ValueError):
    """A study cannot be resumed: started with other data or ranges, in use by another process, damaged, or empty."""


class TimelineError(FeatureCacheError, ValueError):
    """Clip scores, intervals or rules that cannot make or score a timeline."""


class CheckpointError(FeatureCacheError, ValueError):
    """A training run cannot go on from its checkpoint: it is damaged, or of other data or settings."""


class DivergedError(SettingsError):
    """Training diverged: the loss or its gradient is not finite."""
