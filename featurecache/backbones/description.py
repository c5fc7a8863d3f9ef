"""What a model is, known without its weights and without transformers.

transformers takes seconds to import, and a run with nothing to compute needs of a model only what a first look at its
files found: the shapes of its taps, and the feature spaces of the features asked for. That is remembered in a small
JSON file beside the cache. It holds for the very files (every digest that a fingerprint covers is compared; of all
other files names and sizes, of the small ones digests too), settings, library versions and source of this package.
The memo saves time and decides nothing: damaged it is ignored, and a run that computes opens the model and compares.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featurecache.backbones import open_inputs
from featurecache.backbones.family import TapShape
from featurecache.files import private_folder, sha256_of_file, write_private
from featurecache.project.features import Crop
from featurecache.spec import FeatureSpace, canonical_json

if TYPE_CHECKING:
    from featurecache.backbones.asking import Asked
    from featurecache.backbones.family import Inputs

Resize = Literal["model", "crop", "pad", "squash"]

_MOST_FILES = 1000
_SMALL_BYTES = 64 << 20
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack")
_MOST_ENTRIES = 16


@dataclass(frozen=True)
class ModelDescription:
    """A model without its weights, not opened.

    Attributes:
        folder: The model's files.
        prompt: Words around `<video>`.
        frames: T, frames sampled from a clip.
        resize: How a frame that is not square becomes one.
        crop: The part of each frame that is cut out first; None: the whole frame.
        clip_s: Length of a clip in seconds.
        image_px: Height and width of a frame as the model sees it.
        text_after_video: What the prompt puts after the video; it cannot change a feature. Empty without a prompt.
        taps: Every tap by name, in order of depth, with its shape.
        asked: What the model is asked; None for features of its states.
    """

    folder: Path
    prompt: str
    frames: int
    resize: Resize
    crop: Crop | None
    clip_s: float
    image_px: int
    text_after_video: str
    taps: Mapping[str, TapShape]
    asked: "Asked | None" = None

    def open(self) -> "Inputs":
        """As `open_described`."""
        return open_described(
            self.folder,
            prompt=self.prompt,
            frames=self.frames,
            resize=self.resize,
            crop=self.crop,
            clip_s=self.clip_s,
            asked=self.asked,
        )


def open_described(
    folder: Path,
    *,
    prompt: str,
    frames: int,
    resize: Resize,
    crop: Crop | None,
    clip_s: float,
    asked: "Asked | None",
) -> "Inputs":
    """All of a model but its weights, with what it is asked; errors as of `featurecache.backbones.open_inputs`."""
    inputs = open_inputs(folder, prompt=prompt, frames=frames, resize=resize, crop=crop, clip_s=clip_s)
    if asked is None:
        return inputs
    from featurecache.backbones.asking import AskedInputs

    return AskedInputs(inputs, asked)


class DescriptionMemo:
    """Remembered descriptions with feature spaces, of one model folder.

    Args:
        path: The memo, JSON.
        folder: The model's files.
        sha256_of: Digest of a file's content, remembered for large ones.
        asked: JSON-ready settings on which description and feature spaces depend.
    """

    def __init__(self, path: Path, folder: Path, sha256_of: Callable[[Path], str], asked: Mapping[str, Any]) -> None:
        self._path, self._folder, self._sha256_of = path, folder, sha256_of
        self._digested: dict[str, str] = {}
        self._key = _key(folder, sha256_of, asked)

    def sha256_of(self, path: Path) -> str:
        """Digest of a file that a fingerprint covers: what is remembered holds as long as it is the same."""
        digest = self._digested[os.path.relpath(path, self._folder)] = self._sha256_of(path)
        return digest

    def recall(self, settings: Mapping[str, Any]) -> tuple[ModelDescription, dict[str, FeatureSpace]] | None:
        """What was remembered, None where that is nothing or not of these files; `settings` as for the description."""
        entry = _load(self._path).get(self._key or "")
        if entry is None:
            return None
        with contextlib.suppress(OSError):
            if all(self._sha256_of(self._folder / name) == digest for name, digest in entry["digested"].items()):
                taps = {name: TapShape(**shape) for name, shape in entry["taps"].items()}
                known = {name: entry[name] for name in ("image_px", "text_after_video")}
                spaces = {name: FeatureSpace(inputs) for name, inputs in entry["spaces"].items()}
                return ModelDescription(self._folder, **settings, **known, taps=taps), spaces
        return None

    def remember(self, described: ModelDescription, spaces: Mapping[str, FeatureSpace]) -> None:
        """Keeps what a look at the files found."""
        if self._key is None:
            return
        entries = {key: entry for key, entry in _load(self._path).items() if key != self._key}
        entries[self._key] = {
            "digested": self._digested,
            "image_px": described.image_px,
            "text_after_video": described.text_after_video,
            "taps": {name: asdict(shape) for name, shape in described.taps.items()},
            "spaces": {name: space.inputs for name, space in spaces.items()},
        }
        kept = dict(list(entries.items())[-_MOST_ENTRIES:])
        document = {"sha256": _digest(kept), "models": kept}
        with contextlib.suppress(OSError):  # without it the next run is slower and no less right
            private_folder(self._path.parent)
            write_private(self._path, json.dumps(document).encode())


def _key(folder: Path, sha256_of: Callable[[Path], str], asked: Mapping[str, Any]) -> str | None:
    """Digest of everything that a description follows from; None where that cannot be told."""
    try:
        files = {
            os.path.relpath(path, folder): _state(path, sha256_of) for path in sorted(_files(folder))[: _MOST_FILES + 1]
        }
        code = {path.name: sha256_of_file(path) for path in sorted(Path(__file__).parent.glob("*.py"))}
    except OSError:
        return None
    versions = {name: version(name) for name in ("featurecache", "transformers", "tokenizers", "huggingface-hub")}
    return _digest([files, code, versions, asked]) if len(files) <= _MOST_FILES else None


def _files(folder: Path) -> Iterator[Path]:
    for count, (inside, _, names) in enumerate(os.walk(folder)):
        yield from (Path(inside, name) for name in names)
        if count > _MOST_FILES:
            return


def _state(path: Path, sha256_of: Callable[[Path], str]) -> list[Any]:
    status = path.stat()
    is_small = path.is_file() and status.st_size <= _SMALL_BYTES and path.suffix not in _WEIGHTS
    return [status.st_mode, status.st_size, sha256_of(path) if is_small else ""]


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
        models = document["models"]
        is_whole = isinstance(models, dict) and document["sha256"] == _digest(models)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    return models if is_whole else {}


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
