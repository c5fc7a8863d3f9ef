"""The project: `featurecache.toml` read into typed, checked settings, and written by `init`.

Settings are frozen dataclasses kept apart by what they change: `[features]` alters values and is part
of the fingerprint; `[extract]` alters only speed. Sections that learning owns (`[train]`,
`[search]`, `[timeline]`, `[lora]`, `[finetune]`) are kept as plain tables here and read with
`parse_section` by whoever owns their dataclass.
"""

import dataclasses
import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, PlainValidator, TypeAdapter, ValidationError

from featurecache.errors import ProjectExistsError, ProjectNotFoundError, SettingsError
from featurecache.files import private_folder, write_private
from featurecache.project.columns import ColumnSettings
from featurecache.project.rules import broken_rule
from featurecache.project.toml_text import mapping_line, quoted, toml_list
from featurecache.spelling import plain_name

SETTINGS_NAME = "featurecache.toml"
DEFAULT_PROMPT = "USER: Watch the hands and the objects they hold. Which activities take place? <video>"
_LARGEST_BATCH = 4096
_SECONDS_OVERLAP = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6})? ?s")

T = TypeVar("T")
Name = Annotated[str, AfterValidator(plain_name)]
Seconds = Annotated[Decimal, Field(ge=Decimal("0.01"), le=3600, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


def _keep(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names):
        raise ValueError("at least one tap/pooling, e.g. final/mean, none of them twice")
    return names


def _batch_size(size: object) -> int | str:
    if size == "auto" or (isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= _LARGEST_BATCH):
        return size
    raise ValueError(f'"auto" or a whole number from 1 to {_LARGEST_BATCH}')


@dataclass(frozen=True)
class DataSettings:
    """Where recordings and annotations are, and how they are read.

    Attributes:
        videos: The folder of recordings.
        annotations: A folder of .eaf files or tables, or one such file; None where there is none.
        labels_from: Whether a tier's name or an annotation's value is the label, for tiers without a `mapping`.
        tiers: The tiers that are read besides those of `mapping`; empty reads all.
        labels: The columns of the clip table.
        mapping: Tier -> value -> label; a label "" says that the value means absence, a value "*" is any other.
        rename: Label or tier as it was typed -> as it is meant; to itself where two look alike and are not.
        columns: The columns of a table of annotations.
        media_folders: "must_agree": a media path in another folder than the recording's is no match.
        empty_files: What a file without any annotation says of its recording: nothing, or that nothing happened.
        unannotated_time: What time without an annotation is in an annotated recording: negative, or that up to the
            last annotation alone.
        annotators: Whose annotation trains where a recording has several: "" refuses them; "union" and "intersection"
            join them; else a name that stands in the file's name, its folders, its AUTHOR or the column `annotator`.
        annotated_span: The tier or label that marks what was annotated; outside of it clips are unlabelled.
        session_from: What names a recording's session.
        session_pattern: The regular expression of "pattern".
    """

    videos: Path
    annotations: Path | None = None
    labels_from: Literal["tiers", "values"] = "tiers"
    tiers: tuple[Name, ...] = ()
    labels: tuple[Name, ...] = ()
    mapping: dict[Name, dict[Name, Name]] = field(default_factory=dict)
    rename: dict[Name, Name] = field(default_factory=dict)
    columns: ColumnSettings = field(default_factory=ColumnSettings)
    media_folders: Literal["must_agree", "ignored"] = "must_agree"
    empty_files: Literal["unlabelled", "negative"] = "unlabelled"
    unannotated_time: Literal["negative", "until_last_annotation"] = "negative"
    annotators: str = ""
    annotated_span: Name | None = None
    session_from: Literal["file", "folder", "pattern", "column"] = "file"
    session_pattern: str | None = None


def _min_overlap(value: object) -> "Decimal | str":
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) and 0 < value <= 1:
        return Decimal(str(value))
    if isinstance(value, str) and (value == "any" or _SECONDS_OVERLAP.fullmatch(value)):
        return value
    raise ValueError('a share of the clip up to 1 (0.5), seconds ("0.2 s") or "any"')


@dataclass(frozen=True)
class ClipSettings:
    """The windows that recordings are cut into, and how much of one a label must cover to be on."""

    length_s: Seconds = Decimal(3)
    stride_s: Seconds = Decimal(3)
    min_overlap: Annotated[Decimal | str, PlainValidator(_min_overlap)] = Decimal("0.5")

    @property
    def min_overlap_us(self) -> int:
        """The time that a label must cover, in microseconds; 1 where any time counts.

        Raises:
            SettingsError: If it is longer than a clip.
        """
        if isinstance(self.min_overlap, Decimal):
            return max(1, int((self.min_overlap * self.length_us).to_integral_value(ROUND_CEILING)))
        if self.min_overlap == "any":
            return 1
        needed_us = max(1, int(Decimal(self.min_overlap.removesuffix("s").strip()) * 1_000_000))
        if needed_us > self.length_us:
            raise SettingsError(
                f"clips.min_overlap must fit into a clip, but it is {self.min_overlap!r} and length_s is "
                f"{self.length_s}. Lower it in {SETTINGS_NAME}."
            )
        return needed_us

    @property
    def length_us(self) -> int:
        """Clip length in microseconds."""
        return int(self.length_s * 1_000_000)

    @property
    def stride_us(self) -> int:
        """Distance between clip starts in microseconds."""
        return int(self.stride_s * 1_000_000)


@dataclass(frozen=True)
class SplitSettings:
    """How sessions are divided. `sessions` fixes the split of the sessions it names.

    `allow_clip_level` lets an edited `clips.csv` cut sessions, which every result then says.
    """

    seed: int = 0
    train: Fraction = 0.6
    validation: Fraction = 0.2
    test: Fraction = 0.2
    sessions: dict[str, Literal["train", "validation", "test"]] = field(default_factory=dict)
    allow_clip_level: bool = False


@dataclass(frozen=True)
class FeatureSettings:
    """What alters feature values: part of the fingerprint. `keep` names the features that one pass gives."""

    model: str
    prompt: str = DEFAULT_PROMPT
    frames: Annotated[int, Field(ge=1, le=256)] = 16
    resize: Literal["model", "crop", "pad", "squash"] = "model"
    keep: Annotated[tuple[str, ...], AfterValidator(_keep)] = ("final/mean",)
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    stored_dtype: Literal["float16", "float32"] = "float16"


@dataclass(frozen=True)
class ExtractSettings:
    """What alters only speed and memory."""

    device: str = "auto"
    batch_size: Annotated[int | Literal["auto"], PlainValidator(_batch_size)] = "auto"
    decoders: Annotated[int, Field(ge=1, le=64)] = 2


@dataclass(frozen=True)
class Settings:
    """One section of `featurecache.toml` per field."""

    data: DataSettings
    features: FeatureSettings
    clips: ClipSettings = field(default_factory=ClipSettings)
    splits: SplitSettings = field(default_factory=SplitSettings)
    extract: ExtractSettings = field(default_factory=ExtractSettings)
    train: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    timeline: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Project:
    """A folder with settings, and where its files lie."""

    root: Path
    settings: Settings
    file_name: str = SETTINGS_NAME

    @property
    def path(self) -> Path:
        """The file of the settings: what another process opens the project by."""
        return self.root / self.file_name

    @property
    def videos(self) -> Path:
        """The folder of recordings."""
        return self.root / self.settings.data.videos

    @property
    def annotations(self) -> Path | None:
        """The folder of .eaf files, or the CSV; None where there is none."""
        return None if self.settings.data.annotations is None else self.root / self.settings.data.annotations

    @property
    def clips(self) -> Path:
        """The clip table."""
        return self.root / "clips.csv"

    @property
    def failures(self) -> Path:
        """The clips that could not be extracted, with the reasons."""
        return self.root / "failed_clips.csv"

    @property
    def cache(self) -> Path:
        """The feature cache."""
        return self.root / "features.zarr"

    @property
    def runs(self) -> Path:
        """The folder of results."""
        return self.root / "runs"

    @property
    def predictions(self) -> Path:
        """Where timelines are written and the report looks for them, unless told otherwise."""
        return self.root / "predictions"

    @property
    def state(self) -> Path:
        """What this toolkit remembers about files outside the cache (digests, the last written table)."""
        return self.root / ".featurecache"

    @property
    def digest_memo(self) -> Path:
        """Remembered digests of unchanged files."""
        return self.state / "digests.json"


def open_project(config: Path) -> Project:
    """Reads a project.

    Args:
        config: A `featurecache.toml`, or the folder that holds one.

    Raises:
        ProjectNotFoundError: If there is none.
        SettingsError: If it is not TOML, or a setting is unknown, of the wrong type or out of range.
    """
    path = config / SETTINGS_NAME if config.is_dir() else config
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ProjectNotFoundError(
            f"a project must have a {SETTINGS_NAME}, but there is none at {path}. "
            "Make one: featurecache init --videos VIDEOS --annotations ANNOTATIONS; or name it with --config."
        ) from error
    except OSError as error:
        raise ProjectNotFoundError(
            f"{path} must be readable, but it gave: {error.strerror}. Check its permissions."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path} must be TOML in UTF-8, but reading it gave: {error}. Correct that line."
        ) from error
    settings = parse_section(table, Settings, "")
    splits = settings.splits
    total = splits.train + splits.validation + splits.test
    if abs(total - 1) > 1e-6:
        raise SettingsError(
            f"splits.train + splits.validation + splits.test must be 1, but {splits.train} + {splits.validation} "
            f"+ {splits.test} = {total:g}. Correct them in {SETTINGS_NAME}."
        )
    if (settings.data.session_from == "pattern") != (settings.data.session_pattern is not None):
        raise SettingsError(
            f"data.session_pattern must be given exactly when data.session_from is 'pattern', but they are "
            f"{settings.data.session_pattern!r} and {settings.data.session_from!r}. "
            f"Correct one of them in {SETTINGS_NAME}."
        )
    return Project(path.parent, settings, path.name)


def parse_section(table: Mapping[str, Any], kind: type[T], name: str) -> T:
    """A table of settings as the dataclass `kind`, strictly: no unknown key, no value of another type.

    Raises:
        SettingsError: Naming the setting as `section.key`, what was found, and the nearest valid name.
    """
    _refuse_unknown(table, kind, name)
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(table)
    except ValidationError as error:
        at, rule, found = broken_rule(error)
        where = ".".join(str(part) for part in (name, *at) if part != "")
        if not rule:
            raise SettingsError(f"{where} must be set, but {SETTINGS_NAME} does not name it. Add it.") from error
        raise SettingsError(f"{where} must be {rule}, but it is {found!r}. Correct it in {SETTINGS_NAME}.") from error


def _refuse_unknown(table: Mapping[str, Any], kind: type[Any], name: str) -> None:
    fields = {f.name: f.type for f in dataclasses.fields(kind)}
    for key, value in table.items():
        where = f"{name}.{key}" if name else key
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            what = f"[{name}] has no such setting" if name else "there is no such section"
            hint = f"Did you mean {near[0]!r}?" if near else f"Valid names: {', '.join(fields)}."
            raise SettingsError(f"every name in {SETTINGS_NAME} must be known, but {where!r} is not: {what}. {hint}")
        inner = fields[key]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            if not isinstance(value, Mapping):
                raise SettingsError(
                    f"{where} must be a section, but it is {value!r}. Write it as [{where}] in {SETTINGS_NAME}."
                )
            _refuse_unknown(value, inner, where)


def write_settings(
    folder: Path,
    *,
    videos: str,
    annotations: str | None,
    labels_from: str,
    tiers: Sequence[str],
    labels: Sequence[str],
    mapping: Mapping[str, Mapping[str, str]] | None = None,
    columns: ColumnSettings | None = None,
    annotated_span: str | None = None,
    session_from: str,
    session_pattern: str | None = None,
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    model: str,
    dtype: str,
    keep: Sequence[str] = ("final/mean",),
    lora: Mapping[str, int | float | bool] | None = None,
    reason: str,
) -> Path:
    """Writes a commented `featurecache.toml`; never over one that is there.

    `lora` holds settings of `[lora]` that are not the defaults.

    Raises:
        ProjectExistsError: If there is one already.
    """
    path = folder / SETTINGS_NAME
    if path.exists():
        raise ProjectExistsError(
            f"init writes only new settings, but {path} is there. Edit it, or move it away and run init again."
        )
    annotations_line = (
        '# annotations = "annotations"   # a folder of .eaf files, or a CSV: recording,start_s,end_s,label'
        if annotations is None
        else f"annotations = {quoted(annotations)}"
    )
    pattern_line = (
        "# session_pattern = '^(S[0-9]+)'   # its group is the session"
        if session_pattern is None
        else f"session_pattern = {quoted(session_pattern)}"
    )
    mapping_lines = "".join(f"{mapping_line(tier, own)}\n" for tier, own in (mapping or {}).items()) or (
        '# mapping."Hand" = { "left" = "Hand left", "none" = "" }   # value -> label; "": absent, "*": any other\n'
    )
    span_line = (
        '# annotated_span = "annotated"' if annotated_span is None else f"annotated_span = {quoted(annotated_span)}"
    )
    told = dataclasses.asdict(columns or ColumnSettings())
    default = dataclasses.asdict(ColumnSettings())
    columns_lines = (
        "\n".join(f"columns.{key} = {quoted(value)}" for key, value in told.items() if value != default[key])
        or '# columns.start = "Begin Time - ss.msec"   # of another program\'s table; columns.unit = "ms"'
    )
    lora_lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in (lora or {}).items())
    text = f"""\
# Settings of this project. Paths are relative to this file. Every setting not named here has its default.

[data]
videos = {quoted(videos)}
{annotations_line}
# {reason}
labels_from = {quoted(labels_from)}          # "tiers": a tier is a label; "values": an annotation's value is
tiers = {toml_list(tiers)}                  # tiers that are read; empty: all that carry a label
labels = {toml_list(labels)}                # the columns of clips.csv, in this order
{mapping_lines}# rename."Suction" = "suction"     # a spelling, and the label or tier that it means
{span_line}   # a tier or label that marks what was annotated: clips outside are unlabelled
# unannotated_time = "until_last_annotation"   # "negative": in an annotated recording, all time without an annotation
# empty_files = "negative"        # a file without an annotation: nothing happened; "unlabelled": nobody looked
# media_folders = "ignored"       # a media path in another folder than the recording's counts, too
# annotators = "coderA"           # whose annotation counts where there are several; or "union", "intersection"
{columns_lines}
session_from = {quoted(session_from)}        # "file", "folder", "pattern", "column" (of the CSV); never cut by a split
{pattern_line}

[clips]
length_s = 3
stride_s = 3
# min_overlap = 0.5               # of a clip that a label must cover to be on; or "0.2 s", or "any"

[splits]
seed = 0
train = {fractions[0]}
validation = {fractions[1]}
test = {fractions[2]}
# sessions = {{ S01 = "test" }}   # fixes the split of the sessions named here

[features]                        # changing anything here but keep makes new feature spaces
model = {quoted(model)}           # a folder, "org/name" or "org/name@revision" of the hub's cache here, or "demo"
prompt = {quoted(DEFAULT_PROMPT)}
frames = 16
resize = "model"                  # as its processor does: the VLM's crops. "crop" cuts wide frames; "pad", "squash" not
dtype = {quoted(dtype)}
keep = {toml_list(keep)}          # tap/pooling, any number of them from one pass; tokens take much disk
# taps: vision, layer_0 .. the last layer, final; poolings: mean, motion, frames, tokens, cls (where there is one)
stored_dtype = "float16"          # tokens are stored in bfloat16 unless this is "float32"

[extract]                         # changes speed, never values
device = "auto"                   # or "cpu", "cuda", "cuda:1"
batch_size = "auto"               # clips at once; "auto": from the memory that is free
decoders = 2

[train]                           # the head that `featurecache train` fits
# inputs = "final/mean"           # kept features side by side: "final/mean+final/motion"; left out: the first kept
# kind = "linear"                 # or "mlp"; on kept frames "attention", "temporal"
# hidden_width = 128              # of "mlp" and "temporal"
# normalization = "standardize"   # or "l2", "none"
# components = 0                  # principal components; 0 keeps all features
# solver = "adamw"                # "convex": the optimum of a linear head without dropout, for the penalty l2
# l2 = 0.01
# spectral_exponent = 0.0         # 1: that penalty is weaker along directions in which features vary more, and stronger
#                                 # along the others
# learning_rate = 0.001
# weight_decay = 0.01
# positive_weight_exponent = 0.5  # 0: a positive clip counts as a negative one; 1: rare labels are balanced fully;
#                                 # [0.5, 0.2, ...]: one for each label
# positive_weight_scale = 1.0
# label_smoothing = 0.0
# dropout = 0.0
# batch_size = 256
# epochs = 20
# patience = 0                    # epochs without a better validation score that end training; 0: never

[search]                          # what `featurecache tune` chooses from: [lowest, highest], or all choices
# inputs = ["final/mean"]         # left out: each kept vector, each mean beside its motion, and all means together
# kind = ["linear"]
# hidden_width = [16, 256]        # of "mlp" and "temporal"
# normalization = ["standardize"]
# components = [0]                # those that are fewer than the features
# spectral_exponent = [0.0, 1.0]
# solver = ["convex", "adamw"]    # convex first, a grid for each choice above, then trials by steps
# l2 = [1e-3, 10.0]
# folds = 5                       # of the training sessions, to choose in a convex grid; 0: by validation
# learning_rate = [3e-6, 0.03]
# weight_decay = [1e-5, 1.0]
# positive_weight_exponent = [0.0, 1.0]
# positive_weight_scale = [1.0, 1.0]
# label_smoothing = [0.0, 0.0]
# dropout = [0.0, 0.5]
# batch_size = [128, 256, 512]
# epochs = [5, 60]
# patience = [0]

[lora]                            # how `featurecache lora-finetune` trains adapters; defaults are LLaVA's recipe
{lora_lines}# frozen = "layer_0"              # tokens that training starts from; "layer_24": adapters above it
# rank = 128
# alpha = 256
# learning_rate = 2e-4            # of the adapters
# dropout = 0.05                  # of the adapters' input
# targets = ["q_proj", "k_proj", "v_proj", "o_proj"]   # the layers that have adapters
# base_weights = "full"           # "4bit": a quarter of the memory, rounded
# head_learning_rate = 1e-3
# epochs = 5                      # at most
# patience = 2                    # epochs without a better one that end training; 0: never
# select = "macro_f1"             # what makes an epoch better, on validation; or "loss"
# batch_size = 32                 # clips of a step
# micro_batch = 4                 # clips in memory at once; halved where they do not fit
# warmup = 0.03                   # share of the steps in which the learning rate rises
# clip_norm = 1.0                 # of the gradient
# gradient_checkpointing = true   # each layer computed twice instead of kept: less memory, more time
# checkpoint_minutes = 10.0

[finetune]                        # the supervised baseline, `featurecache finetune`
# model = "models/timesformer-base-finetuned-ssv2"   # a folder with TimeSformer's files, or a hub name
# last_layers = 0                 # layers that are trained, from the top; 0: the whole model
# learning_rate = 5e-5            # of the model
# head_learning_rate = 1e-3
# weight_decay = 0.05
# positive_weight_exponent = 0.5
# epochs = 15                     # at most; patience, select, clip_norm, ... as in [lora]
# patience = 3
# batch_size = 8                  # clips of a step
# warmup = 0.1
# gradient_checkpointing = false
# memory_gb = 8.0                 # for decoded pixels; what does not fit is decoded again in each epoch
# search.learning_rate = [1e-5, 3e-4]                # what --trials chooses from

[timeline]                        # how `featurecache predict` makes intervals of clip scores
# stride_s = 1.5                  # from one scored clip to the next; left out: half a clip
# exclusive = [["ventilation", "suction"]]   # labels of which one at most is on at a time
"""  # noqa: S608  # "select" is a setting
    private_folder(folder)
    write_private(path, text.encode())
    return path
