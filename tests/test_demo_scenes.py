"""The drawn recordings, the data set made of them, and the shipped backbone's folder."""

import logging
import stat
import subprocess
import sys
from itertools import pairwise

import av
import numpy as np
import pytest

from featurecache.annotations import LabelRule, marks, read_eaf
from featurecache.backbones import DEMO_MODEL, find_model
from featurecache.demo import captions
from featurecache.demo.dataset import drawn_intervals, make_dataset, time_origin_ms
from featurecache.demo.scenes import CHEST, FACE, MOUTH, PURPOSES, Recording, draw_look, make_recording
from featurecache.demo.script import ACTIVE, LABELS, Script, Segment, write_script

BACKBONE = find_model(DEMO_MODEL)
CLIP_TIMES_S = 1.0 + np.arange(16) * 3 / 16
STILL_OF = {"ventilating": "mask_still", "rubbing": "hand_still", "suctioning": "tube_still"}
PLACE_OF = {"ventilating": FACE, "rubbing": CHEST, "suctioning": MOUTH}


def scene(*, head: str = "away", torso: str = "away", seed: int = 0, duration_s: float = 6.0) -> Recording:
    """A baby lies on the table while one thing is done at the head and one at the torso, all the time."""

    def track(behaviour: str) -> tuple[Segment, ...]:
        return (Segment(0.0, duration_s, behaviour, 1.0 if behaviour in ACTIVE else 0.0, 0.25),)

    script = Script(duration_s, track("lying"), track("resting"), track(head), track(torso), track("away"))
    return Recording(script, draw_look(np.random.default_rng(seed)), (seed,))


def motion_energy(recording: Recording, place: np.ndarray) -> float:
    """Mean absolute change between frames within 16 px of a point given on the baby, noise taken off."""
    frames = recording.frames(CLIP_TIMES_S).astype(float).mean(axis=3)
    frames = frames.reshape(16, 24, 4, 32, 4).mean(axis=(2, 4))  # 4 x 4 blocks: less noise
    x, y = recording.look.camera.project(recording.on_baby(place)) * 24 + np.array([16, 12])
    near = frames[:, max(0, int(y) - 4) : int(y) + 4, max(0, int(x) - 4) : int(x) + 4]
    return float(np.abs(np.diff(near, axis=0)).mean())


def test_make_recording_draws_same_pixels_when_seed_is_same():
    times_s = np.linspace(0, 20, 12)
    first = make_recording("dataset", 3, 1, 0, 21.0)
    again = make_recording("dataset", 3, 1, 0, 21.0)
    assert first.script == again.script
    np.testing.assert_array_equal(first.frames(times_s), again.frames(times_s))


def test_frames_depend_on_their_time_alone_when_order_and_neighbours_change():
    recording = make_recording("dataset", 0, 0, 0, 21.0)
    times_s = np.arange(210) / 10
    whole = recording.frames(times_s)
    chosen = np.array([170, 3, 99, 4])
    np.testing.assert_array_equal(recording.frames(times_s[chosen]), whole[chosen])


def test_make_recording_differs_when_session_seed_or_purpose_differ():
    pictures = [
        make_recording(purpose, seed, session, 0, 21.0).frames(np.array([10.0]))
        for purpose in PURPOSES
        for seed in (0, 1)
        for session in (0, 1)
    ]
    for index, picture in enumerate(pictures):
        for other in pictures[:index]:
            assert np.abs(picture.astype(int) - other).mean() > 5


def test_recordings_share_the_look_but_not_the_script_only_when_session_is_same():
    one, other, elsewhere = (make_recording("dataset", 0, *number, 21.0) for number in ((2, 0), (2, 1), (3, 0)))
    assert one.look.camera == other.look.camera != elsewhere.look.camera
    assert one.look.noise_levels == other.look.noise_levels != elsewhere.look.noise_levels
    assert one.script != other.script


@pytest.mark.parametrize("seed", range(40))
def test_write_script_holds_its_promises_for_many_seeds(seed):
    script = write_script(np.random.default_rng(seed), 42.0)
    for track in (script.baby, script.limbs, script.head, script.torso, script.bystander):
        assert track[0].start_s == 0
        assert track[-1].end_s == pytest.approx(42.0)
        assert all(a.end_s == b.start_s for a, b in pairwise(track))
    for segment in (*script.head, *script.torso, *script.bystander, *script.limbs):
        assert (segment.rate_hz > 0) == (segment.behaviour in ACTIVE)
    labelled = script.labelled()
    of = {label: [(start, end) for start, end, name in labelled if name == label] for label in LABELS}
    assert not [1 for a, b in of["ventilation"] for c, d in of["suction"] if a < d and c < b]
    for label in ("ventilation", "stimulation", "suction"):
        for start, end in of[label]:
            assert any(a <= start and end <= b for a, b in of["baby_visible"]), "treated, so there"


def test_dataset_has_every_label_and_suction_is_the_rarest():
    shares = dict.fromkeys(LABELS, 0.0)
    for session in range(20):
        for index in range(2):
            script = make_recording("dataset", 0, session, index, 42.0).script
            for start_s, end_s, label in script.labelled():
                shares[label] += (end_s - start_s) / (40 * 42.0)
    assert 0.6 < shares["baby_visible"] < 0.9
    assert 0.03 < shares["suction"] < 0.12
    assert min(shares["ventilation"], shares["stimulation"]) > 2 * shares["suction"]


@pytest.mark.parametrize("active", STILL_OF)
def test_frames_move_at_the_place_of_the_activity_when_it_is_active_and_not_when_still(active):
    track = "torso" if active == "rubbing" else "head"
    for seed in range(3):
        moving = motion_energy(scene(**{track: active}, seed=seed), PLACE_OF[active])
        still = motion_energy(scene(**{track: STILL_OF[active]}, seed=seed), PLACE_OF[active])
        assert moving > 1.5 * still, f"{active}: {moving:.2f} against {still:.2f}"


@pytest.mark.parametrize("active", STILL_OF)
def test_one_frame_of_an_active_and_a_still_segment_is_the_same_picture_when_the_cycle_stands_alike(active):
    track = "torso" if active == "rubbing" else "head"
    moment = np.array([2.0])  # two whole turns at 1 Hz: both cycles stand at their phase
    one = scene(**{track: active}).frames(moment)
    other = scene(**{track: STILL_OF[active]}).frames(moment)
    np.testing.assert_array_equal(one, other)


def test_baby_is_drawn_only_when_annotated_visible():
    recording = make_recording("dataset", 0, 0, 0, 42.0)
    empty = recording.script.baby[0]
    assert empty.behaviour == "absent"
    assert recording.poses(np.array([empty.end_s - 0.01]))["lying"] == 0
    assert recording.poses(np.array([empty.end_s + 0.01]))["lying"] == 1
    skin = recording.look.colours["skin"] * recording.look.gain
    before, after = recording.frames(np.array([empty.end_s - 0.05, empty.end_s + 0.05])).astype(float)
    near_skin = [float((np.abs(frame - skin).max(axis=2) < 40).mean()) for frame in (before, after)]
    assert near_skin[1] > near_skin[0] + 0.03


def test_make_dataset_writes_private_h264_and_eaf_that_map_back_to_what_is_drawn(tmp_path):
    make_dataset(tmp_path, sessions=2, recordings_per_session=2, duration_s=15.0)
    videos = sorted((tmp_path / "videos").rglob("*.mp4"))
    assert [v.relative_to(tmp_path).as_posix() for v in videos] == [
        f"videos/{name[:3]}/{name}.mp4" for name in ("S01_a", "S01_b", "S02_a", "S02_b")
    ]
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    for number, video in enumerate(videos):
        recording = make_recording("dataset", 0, *divmod(number, 2), 15.0)
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            decoded = [(float(f.time), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
        times_s = np.array([time for time, _ in decoded])
        np.testing.assert_allclose(times_s, np.arange(150) / 10, atol=1e-6)
        drawn = recording.frames(times_s[::30])
        for (_, got), expected in zip(decoded[::30], drawn, strict=True):
            assert np.abs(got.astype(int) - expected).mean() < 12, "lossy, but this picture"

        document = read_eaf(tmp_path / "annotations" / f"{video.stem}.eaf")
        (media,) = document.media
        assert media.time_origin_ms == time_origin_ms(recording) > 0
        read = marks(document, LabelRule(), time_origin_ms=media.time_origin_ms).intervals
        assert sorted(read) == sorted(drawn_intervals(recording.script))


def test_captions_tell_the_truth_when_facts_hold_for_the_clip():
    told = captions.caption(scene(head="ventilating", torso="hand_still").script, 1.0, 4.0)
    assert "pressed rhythmically" in told
    assert "lies still on the body" in told
    assert captions.activity_list(scene(head="suctioning", torso="rubbing").script, 1.0, 4.0) == (
        "baby visible, stimulation, suction"
    )
    asked = captions.exchanges(scene(head="mask_still").script, 1.0, 4.0, np.random.default_rng(0), 200)
    answers = {exchange.question: exchange.answer for exchange in asked}
    assert answers["Is the baby ventilated?"] == "no"
    assert answers["Is the mask on the face?"] == "yes"


# --- the shipped backbone -------------------------------------------------------------------------


def test_backbone_folder_is_small_and_holds_no_code():
    files = {path.name: path.stat().st_size for path in BACKBONE.iterdir()}
    assert sum(files.values()) < 6_000_000
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "MODEL_CARD.md"} <= set(
        files
    )
    assert not [name for name in files if name.endswith((".py", ".bin", ".pt", ".pkl"))]


def test_backbone_loads_without_a_word_and_with_the_real_classes():
    program = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "from transformers import AutoProcessor, LlavaNextVideoForConditionalGeneration as Model\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1])\n"
        "model, report = Model.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "print(type(processor).__name__, type(processor.video_processor).__name__, type(model).__name__, model.dtype)\n"
        "print({name: sorted(found) for name, found in report.items() if found})\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(BACKBONE)], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.splitlines() == [
        "LlavaNextVideoProcessor LlavaNextVideoVideoProcessor LlavaNextVideoForConditionalGeneration torch.float16",
        "{}",
    ]
    said = [line for line in done.stderr.splitlines() if "Loading weights" not in line and line.strip()]
    assert said == []


@pytest.fixture(scope="module")
def loaded():
    import torch
    from transformers import LlavaNextVideoForConditionalGeneration, LlavaNextVideoProcessor

    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = LlavaNextVideoForConditionalGeneration.from_pretrained(BACKBONE, dtype=torch.float32).eval()
    return model, LlavaNextVideoProcessor.from_pretrained(BACKBONE)


def test_tokenizer_has_single_yes_and_no_and_adds_its_own_start(loaded):
    _, processor = loaded
    ids = processor.tokenizer(" yes no")["input_ids"]
    assert processor.tokenizer.convert_ids_to_tokens(ids) == ["<s>", "Ġyes", "Ġno"]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == " yes no"


def test_chat_template_puts_the_video_before_the_question_as_the_7b_model_does(loaded):
    _, processor = loaded
    content = [{"type": "text", "text": "Is the hand rubbing?"}, {"type": "video"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == "USER: <video>\nIs the hand rubbing? ASSISTANT:"


def test_backbone_answers_and_captions_when_asked_about_clear_scenes(loaded):
    import torch

    model, processor = loaded
    yes, no = (processor.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in ("yes", "no"))
    margins: dict[str, list[float]] = {"visible": [], "rubbing": [], "still": []}
    for seed in range(4):
        for name, recording, question in (
            ("visible", scene(torso="rubbing", seed=seed), "Is the baby visible?"),
            ("rubbing", scene(torso="rubbing", seed=seed), "Is the baby stimulated?"),
            ("still", scene(torso="hand_still", seed=seed), "Is the baby stimulated?"),
        ):
            frames = torch.from_numpy(recording.frames(CLIP_TIMES_S)).permute(0, 3, 1, 2)
            text = f"USER: <video>\n{question} ASSISTANT:"
            inputs = processor(text=text, videos=[frames], do_sample_frames=False, return_tensors="pt")
            with torch.inference_mode():
                logits = model(**inputs).logits[0, -1]
            margins[name].append(float(logits[yes] - logits[no]))
    assert np.mean(margins["visible"]) > 1
    assert np.mean(margins["rubbing"]) > np.mean(margins["still"])

    inputs = processor(
        text="USER: <video>\nDescribe the video. ASSISTANT:",
        videos=[frames],
        do_sample_frames=False,
        return_tensors="pt",
    )
    told = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(told, skip_special_tokens=True).strip().startswith("The baby")
