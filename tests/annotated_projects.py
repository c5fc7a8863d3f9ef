"""Projects of annotations as people keep them: .eaf files and tables are added, settings written, clips made."""

from pathlib import Path
from typing import Any

from featurecache.clips.inventory import take_inventory
from featurecache.clips.table import make_table
from featurecache.project.settings import open_project
from featurecache.setup.proposal import propose

SECOND = 1_000_000


class AnnotatedProject:
    """A project's folder: annotations are added, settings written, and clips made."""

    def __init__(self, root: Path, videos: Path) -> None:
        self.root, self.videos = root, videos
        (root / "notes").mkdir()

    def eaf(self, name: str, tiers: dict[str, list[tuple[float, float, str]]], media: str | None = None) -> Path:
        """An `.eaf` whose annotations have values, as ELAN writes it."""
        from featurecache.annotations import eaf_bytes, new_document, read_eaf

        path = self.root / "notes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        document = new_document(name, media_name=media or f"{name.split('_')[0].split('.')[0]}.mp4")
        text = eaf_bytes(document).decode()
        slots, body, number = "", "", 0
        for tier, items in tiers.items():
            cells = ""
            for start_s, end_s, value in items:
                number += 1
                for at, time_s in enumerate((start_s, end_s)):
                    slots += f'<TIME_SLOT TIME_SLOT_ID="s{number}.{at}" TIME_VALUE="{round(1000 * time_s)}"/>'
                cells += (
                    f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="n{number}" TIME_SLOT_REF1="s{number}.0" '
                    f'TIME_SLOT_REF2="s{number}.1"><ANNOTATION_VALUE>{value}</ANNOTATION_VALUE>'
                    "</ALIGNABLE_ANNOTATION></ANNOTATION>"
                )
            body += f'<TIER LINGUISTIC_TYPE_REF="interval" TIER_ID="{tier}">{cells}</TIER>'
        head, tail = text.split("<TIME_ORDER", 1)
        tail = tail.split(">", 1)[1].removeprefix("</TIME_ORDER>")
        path.write_text(f"{head}<TIME_ORDER>{slots}</TIME_ORDER>{body}{tail}", encoding="utf-8")
        read_eaf(path)
        return path

    def csv(self, text: str, name: str = "labels.csv") -> Path:
        path = self.root / "notes" / name
        path.write_text(text, encoding="utf-8")
        return path

    def open(self, data: str, clips: str = "", place: str = "notes") -> Any:
        (self.root / "featurecache.toml").write_text(
            f'[data]\nvideos = "{self.videos}"\nannotations = "{place}"\n{data}\n'
            f'[clips]\nlength_s = 1\nstride_s = 1\n{clips}\n[features]\nmodel = "demo"\n'
        )
        return open_project(self.root)

    def targets(self, data: str, clips: str = "", place: str = "notes", recording: str = "S0.mp4") -> list[Any]:
        """The targets of a recording's clips: a number for one label, else a tuple."""
        project = self.open(data, clips, place)
        rows = [
            clip.targets
            for clip in make_table(project.settings, take_inventory(project))[0].clips
            if clip.recording == recording
        ]
        return [row[0] if len(row) == 1 else row for row in rows]

    def propose(self, place: str = "notes") -> Any:
        return propose(self.root / "new", videos=self.videos, annotations=self.root / place, model="demo")


def every(annotated: AnnotatedProject, tiers: dict[str, list[tuple[float, float, str]]]) -> None:
    for number in range(4):
        annotated.eaf(f"S{number}.eaf", tiers)


END = "</ANNOTATION_DOCUMENT>"
VOCABULARY = (
    '<LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="coded" TIME_ALIGNABLE="true" CONTROLLED_VOCABULARY_REF="v"/>'
    '<CONTROLLED_VOCABULARY CV_ID="v"><CV_ENTRY_ML CVE_ID="e1"><CVE_VALUE LANG_REF="eng">left</CVE_VALUE>'
    '<CVE_VALUE LANG_REF="deu">links</CVE_VALUE></CV_ENTRY_ML></CONTROLLED_VOCABULARY></ANNOTATION_DOCUMENT>'
)
