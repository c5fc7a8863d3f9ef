"""The project: `featurecache.toml` read into typed, checked settings.

Settings are frozen dataclasses kept apart by what they change: `[features]` alters values and is part
of the fingerprint; `[extract]` alters only speed. Sections that learning owns (`[train]`,
`[search]`, `[timeline]`, `[lora]`, `[finetune]`, `[zeroshot]`) are kept as plain tables here and read with
`parse_section` by whoever owns their dataclass.
"""

import dataclasses
import logging
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, PlainValidator, TypeAdapter, ValidationError

from featurecache.errors import ProjectNotFoundError, SettingsError
from featurecache.project.columns import ColumnSettings
from featurecache.project.features import FeatureSettings
from featurecache.project.rules import first_validation_error
from featurecache.project.samples import SampleSettings
from featurecache.spelling import did_you_mean, plain_name

SETTINGS_NAME = "featurecache.toml"
_LARGEST_BATCH = 4096
_SECONDS_OVERLAP = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6})? ?s")

T = TypeVar("T")
Name = Annotated[str, AfterValidator(plain_name)]
Seconds = Annotated[Decimal, Field(ge=Decimal("0.01"), le=3600, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


def _batch_size(size: object) -> int | str:
    if size == "auto" or (isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= _LARGEST_BATCH):
        return size
    raise ValueError(f'"auto" or a whole number from 1 to {_LARGEST_BATCH}')


@dataclass(frozen=True)
class DataSettings:
    """Where recordings and annotations are, and how they are read.

    Attributes:
        videos: The folder of recordings.
        annotations: A folder of .eaf files or tables, or one such file; a CSV has the columns recording, start_s,
            end_s, label. E.g. `annotations = "annotations"`.
        labels_from: "tiers": a tier's name is the label; "values": an annotation's value is. For tiers without a
            mapping.
        tiers: The tiers that are read besides those of mapping; empty reads all that carry a label.
        labels: The columns of clips.csv, in this order.
        mapping: Tier, then value -> label; a label "" says that the value means absence, a value "*" is any other.
            E.g. `mapping."Hand" = { "left" = "Hand left", "none" = "" }`.
        rename: Label or tier as it was typed -> as it is meant; to itself where two look alike and are not.
            E.g. `rename."Suction" = "suction"`.
        columns: The columns of a table that another program wrote; unit is "s", "ms", "us", "min" or "frames".
            E.g. `columns.start = "Begin Time - ss.msec"`.
        media_folders: "must_agree": a media path in another folder than the recording's is no match; "ignored": it is.
        empty_files: What a file without any annotation says of its recording: "unlabelled", nobody looked; "negative",
            nothing happened.
        unannotated_time: What time without an annotation is in an annotated recording: "negative", or negative only
            "until_last_annotation".
        annotators: Whose annotation trains where a recording has several: "" refuses them; "union" and "intersection"
            join them; else a name that occurs in the file's name, its folders, its AUTHOR or the column annotator.
        annotated_span: A tier or label that marks what was annotated; clips outside of it are unlabelled.
            E.g. `annotated_span = "annotated"`.
        session_from: What names a recording's session, which no split cuts: its "file", its "folder", a "pattern" in
            its name, or a "column" of the table.
        session_pattern: A regular expression whose group is the session. E.g. `session_pattern = '^(S[0-9]+)'`.
        same_session: Groups of recordings that are one session, whatever the rule says of them.
            E.g. `same_session = [["S01_front.mp4", "S01_top.mp4"]]`.
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
    same_session: tuple[Annotated[tuple[str, ...], Field(min_length=2)], ...] = ()


def _min_overlap(value: object) -> "Decimal | str":
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) and 0 < value <= 1:
        return Decimal(str(value))
    if isinstance(value, str) and (value == "any" or _SECONDS_OVERLAP.fullmatch(value)):
        return value
    raise ValueError('a share of the clip up to 1 (0.5), seconds ("0.2 s") or "any"')


@dataclass(frozen=True)
class ClipSettings:
    """The windows that recordings are cut into.

    Attributes:
        length_s: Length of a clip in seconds.
        stride_s: Seconds from one clip's start to the next one's.
        min_overlap: Share of a clip that a label must cover to be on; or seconds, "0.2 s"; or "any".
    """

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
    """How sessions are divided.

    Attributes:
        seed: Seed of the assignment, where several are equally balanced.
        train: Share of the sessions.
        validation: Share of the sessions.
        test: Share of the sessions.
        sessions: Fixes the split of the sessions named here. E.g. `sessions = { S01 = "test" }`.
        allow_clip_level: Let an edited clips.csv cut sessions, and `clips` one or two alone; every result says so.
    """

    seed: int = 0
    train: Fraction = 0.6
    validation: Fraction = 0.2
    test: Fraction = 0.2
    sessions: dict[str, Literal["train", "validation", "test"]] = field(default_factory=dict)
    allow_clip_level: bool = False


@dataclass(frozen=True)
class ExtractSettings:
    """What alters speed and memory, never values.

    Attributes:
        device: "auto", "cpu", "cuda" or "cuda:1".
        batch_size: Clips at once; "auto": from the memory that is free.
        decoders: Threads that decode, one recording each.
    """

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
    samples: SampleSettings = field(default_factory=SampleSettings)
    train: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    timeline: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)
    zeroshot: dict[str, Any] = field(default_factory=dict)


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
    def prompts(self) -> Path:
        """What zero-shot methods ask, a folder for each method."""
        return self.root / "prompts"

    @property
    def predictions(self) -> Path:
        """Where timelines are written and the report looks for them, unless told otherwise."""
        return self.root / "predictions"

    @property
    def state(self) -> Path:
        """What this toolkit remembers about files outside the cache (digests, the last written table)."""
        return self.root / ".featurecache"

    @property
    def table_record(self) -> Path:
        """What the clip table was made from."""
        return self.state / "clips.json"

    @property
    def digest_memo(self) -> Path:
        """Remembered digests of unchanged files."""
        return self.state / "digests.json"


def find_project(config: Path) -> Project | None:
    """The project, as `open_project` reads it; None for a folder that holds none yet."""
    return None if config.is_dir() and not (config / SETTINGS_NAME).exists() else open_project(config)


def open_project(config: Path) -> Project:
    """Reads a project.

    Args:
        config: A `featurecache.toml`, or the folder that holds one.

    Raises:
        ProjectNotFoundError: If there is none.
        SettingsError: If it is not TOML, or a setting is unknown, of the wrong type or out of range.
    """
    path = config / SETTINGS_NAME if config.is_dir() else config
    logging.getLogger(__name__).debug("reading %s ...", path, extra={"is_wait": True})
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
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
    if at := _zero_character(table):
        raise SettingsError(
            f"{at} must be text that a path can hold, but it has a zero character. Correct it in {path.name}."
        )
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
            f"{settings.data.session_pattern!r} and {settings.data.session_from!r}. Correct one in {SETTINGS_NAME}."
        )
    return Project(path.parent, settings, path.name)


def _zero_character(value: object, at: str = "") -> str:
    """Which setting holds a character 0, at which the system ends a path; "" if none does."""
    inner = value.items() if isinstance(value, dict) else enumerate(value, 1) if isinstance(value, list) else ()
    if isinstance(value, str):
        return at if "\0" in value else ""
    places = (_zero_character(one, f"{at}.{key}".lstrip(".")) for key, one in inner)
    return next(filter(None, places), "")


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
        own = error.errors(include_url=False)[0].get("ctx", {}).get("error")
        if isinstance(own, SettingsError):  # of settings that do not fit each other: a sentence of its own
            raise SettingsError(f"[{name}] {own}") from error
        at, rule, found = first_validation_error(error)
        where = ".".join(str(part) for part in (name, *at) if part != "")
        if not rule:
            raise SettingsError(f"{where} must be set, but {SETTINGS_NAME} does not name it. Add it.") from error
        raise SettingsError(f"{where} must be {rule}, but it is {found!r}. Correct it in {SETTINGS_NAME}.") from error


def _rule_of(kind: Any) -> str:
    """What a setting of this type must be, in words."""
    try:
        TypeAdapter(kind).validate_python(object())
    except ValidationError as error:
        return first_validation_error(error)[1]
    return "of another type"


def _refuse_unknown(table: Mapping[str, Any], kind: type[Any], name: str) -> None:
    fields = {f.name: f.type for f in dataclasses.fields(kind)}
    for key, value in table.items():
        where = f"{name}.{key}" if name else key
        if key not in fields:
            what = f"[{name}] has no such setting" if name else "there is no such section"
            hint = did_you_mean(key, fields, f"Valid names: {', '.join(fields)}.")
            raise SettingsError(f"every name in {SETTINGS_NAME} must be known, but {where!r} is not: {what}. {hint}")
        inner = fields[key]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            if not isinstance(value, Mapping):
                raise SettingsError(
                    f"{where} must be a section, but it is {value!r}. Write it as [{where}] in {SETTINGS_NAME}."
                )
            _refuse_unknown(value, inner, where)
        elif isinstance(value, bool) and inner is not bool:
            found = str(value).lower()  # which pydantic would read as 1 or 0
            raise SettingsError(f"{where} must be {_rule_of(inner)}, but it is {found}. Correct it in {SETTINGS_NAME}.")
