"""Agreement of annotators: of two files, with or without a project, or over all that a project has doubly annotated."""

import json
import logging
from pathlib import Path
from typing import Any

from featurecache.files import private_folder, write_private
from featurecache.project.settings import SETTINGS_NAME, open_project

AGREEMENT_NAME = "agreement.json"
_log = logging.getLogger(__name__)


def annotators_agreement(config: Path, files: tuple[Path, Path] | None) -> dict[str, Any]:
    """Compares two annotation files, or all doubly annotated recordings of a project.

    Args:
        config: A `featurecache.toml` or its folder. Two files need none: labels are then those that the files have.
        files: The reference and the other; None for the project's, whose result is written to `runs/agreement.json`
            for the report.

    Returns:
        The document of `heads.timelines.agreement`.

    Raises:
        ProjectNotFoundError: If no files are named and there is no project.
        SettingsError: If the project's settings are wrong.
        AnnotationError: If annotations cannot be read or compared.
    """
    if files is None:
        project = open_project(config)
        from heads.timelines.agreement import project_agreement  # imports behind the first word: they take longer

        found = project_agreement(project)
        write_private(private_folder(project.runs) / AGREEMENT_NAME, json.dumps(found, indent=1).encode())
        return found
    _log.debug("reading %s and %s ...", *files, extra={"is_wait": True})
    from featurecache.clips.annotated import rule_of
    from heads.timelines.agreement import agreement

    if config == Path() and not Path(SETTINGS_NAME).exists():
        return {**agreement(*files), "left_out": []}
    data = open_project(config).settings.data
    return {**agreement(*files, labels=data.labels, rule=rule_of(data), columns=None), "left_out": []}
