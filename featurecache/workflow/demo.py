"""The demo's project: drawn recordings, their annotations, and settings for the embedded backbone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from featurecache.backbones import DEMO_MODEL
from featurecache.clips.csv_file import read_table
from featurecache.demo.captions import LIST_REQUESTS, QUESTIONS
from featurecache.demo.dataset import make_dataset
from featurecache.demo.script import LABEL_OF, LABELS
from featurecache.files import private_folder, write_private
from featurecache.project.settings import SETTINGS_NAME, Project, open_project
from featurecache.project.template import write_settings

_LORA: dict[str, int | float | bool] = {
    "rank": 16,
    "alpha": 32,
    "learning_rate": 2e-3,
    "head_learning_rate": 2e-3,
    "epochs": 8,
    "patience": 0,
    "batch_size": 16,
    "micro_batch": 16,
    "gradient_checkpointing": False,
}
"""Of `[lora]`: a small model on few clips learns by larger steps than a 7B model on thousands."""


def make_demo(
    directory: Path,
    *,
    sessions: int = 20,
    recordings_per_session: int = 2,
    sections: Mapping[str, type[Any]] | None = None,
    on_drawing: Callable[[bool], None] = lambda _is_new: None,
) -> Project:
    """Makes the demo's project, or opens the one that the folder holds already.

    Args:
        directory: Where it is made; the folder is made if missing.
        sessions: Sessions that are drawn, each with its own colours, light and camera.
        recordings_per_session: Recordings of each, 42 s long.
        sections: Sections of the settings that other packages own, as `write_settings` takes them.
        on_drawing: Called before anything is drawn: whether there is anything to draw.

    Returns:
        The project; its clip table, features and runs are still to be made.
    """
    is_new = not (directory / SETTINGS_NAME).exists()
    on_drawing(is_new)
    if is_new:
        make_dataset(private_folder(directory), sessions=sessions, recordings_per_session=recordings_per_session)
        data = {"videos": "videos", "annotations": "annotations", "labels_from": "tiers", "session_from": "folder"}
        values: dict[str, Mapping[str, Any]] = {
            "data": {**data, "tiers": LABELS, "labels": LABELS},
            "splits": {"train": 0.5, "validation": 0.2, "test": 0.3},
            "features": {
                "model": DEMO_MODEL,
                "dtype": "float32",
                "select": ("final/mean", "final/motion", "layer_2/mean"),
            },
            "lora": _LORA,
            "zeroshot": {"implies": dict.fromkeys(LABELS[1:], ("baby_visible",))},
        }
        write_settings(directory, values, sections=sections, reason="each activity has a tier of its own")
        _write_prompts(directory)
    return open_project(directory)


def _write_prompts(directory: Path) -> None:
    """What zero-shot methods ask, in wordings that the embedded backbone was trained on."""
    asked = {behaviours[0]: own for behaviours, own in QUESTIONS if len(behaviours) == 1}
    wordings = {label: asked[behaviour] for behaviour, label in LABEL_OF.items()}
    texts = {f"zs-b/{label}.txt": "\n---\n".join(map(_asked, own)) + "\n" for label, own in wordings.items()}
    texts["zsc-co/prompt.txt"] = _asked(LIST_REQUESTS[1]) + "\n"
    for name, text in texts.items():
        path = directory / "prompts" / name
        private_folder(path.parent)
        write_private(path, text.encode())


def _asked(question: str) -> str:
    return f"USER: <video>\n{question} ASSISTANT:"


def unseen_recording(project: Project) -> Path:
    """The first recording of the test split, which no head was trained on."""
    table = read_table(project.clips)
    return project.videos / min(clip.recording for clip in table.clips if clip.split == "test")
