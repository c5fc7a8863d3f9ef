"""Drawn recordings of a newborn on a resuscitation table: any frame of any recording, from a seed.

A recording is a script (what happens, `script.py`), a session's look (colours, light, noise, camera)
and small differences of its own. `Recording.frames` draws any moments in any order: a frame depends
on its time alone. Numpy only; the same seed gives the same pixels.

The data set and the backbone's training scenes draw from separate streams of random numbers
(`PURPOSES`), so no training scene can appear in the data set, whatever the seeds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featurecache.demo.drawing import Camera, Canvas, Colour, Image
from featurecache.demo.script import Script, Segment, write_script

FRAME_WIDTH_PX, FRAME_HEIGHT_PX, FRAMES_PER_S = 128, 96, 10
PURPOSES = {"dataset": 0, "pretraining": 1}

REACH_S = 0.4  # how long a hand takes from one pose to the next
NOISE_MARGIN_PX = 64

# World points. Those on the baby move with it (see `on_baby`).
FACE, MOUTH, CHEST = np.array([-0.18, -0.01]), np.array([-0.2, 0.03]), np.array([0.07, 0.01])
EMPTY_TABLE = np.array([0.1, 0.3])
MASK_PARKED, TUBE_PARKED = np.array([-0.4, 0.3]), np.array([-0.34, -0.1])
OFF_LEFT, OFF_TOP = np.array([-1.1, -0.3]), np.array([-0.45, -0.95])
OFF_BOTTOM, OFF_RIGHT = np.array([0.3, 1.0]), np.array([1.0, -0.4])

RUB_LENGTH, PRESS_LENGTH, TUBE_LENGTH = 0.15, 0.045, 0.1  # how far the cycles travel, in frame heights
BAG_OFFSET, PINCH_OFFSET = np.array([-0.05, -0.17]), np.array([-0.15, 0.1])

Times = NDArray[np.float64]
Poses = NDArray[np.float64]
_NOISE_SHEET = np.random.default_rng(0).standard_normal(
    (FRAME_HEIGHT_PX + NOISE_MARGIN_PX, FRAME_WIDTH_PX + NOISE_MARGIN_PX, 3), np.float32
)

PoseOf = Callable[[Segment, Times], Poses]


@dataclass(frozen=True)
class Look:
    """What all recordings of one session share.

    Attributes:
        colours: Name of a thing -> levels 0 to 255, shape (3,).
        camera: Where the table stands in the frame.
        gain: Brightness and tint per channel, shape (3,).
        light_slope: Change of brightness per frame height to the right and downwards, shape (2,).
        noise_levels: Standard deviation of the sensor noise.
    """

    colours: Mapping[str, Colour]
    camera: Camera
    gain: Colour
    light_slope: NDArray[np.float64]
    noise_levels: float


def draw_look(rng: np.random.Generator) -> Look:
    """Draw a session's look."""

    def near(red: float, green: float, blue: float, spread: float) -> Colour:
        return np.clip(np.array([red, green, blue]) + rng.uniform(-spread, spread, 3), 0, 255).astype(np.float32)

    skin = np.array([225, 172, 145]) * rng.uniform(0.5, 1.08) + rng.uniform(-10, 10, 3)
    gloves = [(70, 120, 205), (95, 85, 190), (60, 160, 190)][int(rng.integers(3))]
    colours = {
        "floor": near(95, 100, 105, 45),
        "table": near(170, 185, 180, 45),
        "towel": near(205, 205, 215, 40),
        "skin": skin.astype(np.float32),
        "nappy": near(235, 235, 235, 15),
        "glove": near(*gloves, 25),
        "sleeve": near(60, 135, 120, 60),
        "mask": near(215, 230, 235, 18),
        "bag": near(120, 140, 175, 40),
        "tube": near(235, 225, 120, 30),
        "blanket": near(190, 150, 170, 55),
    }
    camera = Camera(
        shift_x=rng.uniform(-0.04, 0.04),
        shift_y=rng.uniform(-0.04, 0.04),
        rotation_rad=np.deg2rad(rng.uniform(-12, 12)),
        scale=rng.uniform(0.92, 1.1),
    )
    gain = (rng.uniform(0.7, 1.1) * rng.uniform(0.92, 1.08, 3)).astype(np.float32)
    return Look(colours, camera, gain, rng.uniform(-0.35, 0.35, 2), rng.uniform(2, 8))


@dataclass(frozen=True)
class Recording:
    """One drawn recording.

    Attributes:
        script: What happens when.
        look: The session's look.
        rng_key: Seed of what this recording alone has: the baby's place, where things lie, noise.
    """

    script: Script
    look: Look
    rng_key: tuple[int, ...]
    _own: "_Own" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_own", _Own(self.look, np.random.default_rng(self.rng_key)))

    def frames(self, times_s: Times) -> NDArray[np.uint8]:
        """Draw the moments `times_s`, shape (T,), as RGB, shape (T, 96, 128, 3)."""
        own, poses = self._own, self.poses(times_s)
        out = np.empty((len(times_s), FRAME_HEIGHT_PX, FRAME_WIDTH_PX, 3), np.uint8)
        for index, time_s in enumerate(times_s):
            image = own.background.copy()
            self._draw_baby(image, float(time_s), poses, index)
            self._draw_head_end(image, poses, index)
            self._draw_arm(image, poses["hand"][index], OFF_BOTTOM)
            self._draw_arm(image, poses["bystander"][index], OFF_RIGHT)
            image *= own.light
            image += self._noise(float(time_s))
            out[index] = np.clip(image, 0, 255)
        return out

    def poses(self, times_s: Times) -> dict[str, Poses]:
        """Where everything is, in world units: name -> shape (T, 2), or (T,) for shares in [0, 1]."""
        own, script = self._own, self.script
        head = _follow(script.head, times_s, self._head_pose)
        limbs = _follow(script.limbs, times_s, lambda _, cycle: cycle[:, None])
        lying = _presence(script.baby, times_s, "lying")
        covered = _presence(script.baby, times_s, "covered")
        return {
            "mask": head[:, 0:2],
            "bag_hand": head[:, 2:4],
            "tip": head[:, 4:6],
            "tube_hand": head[:, 6:8],
            "squeeze": head[:, 8],
            "hand": _follow(script.torso, times_s, self._torso_pose),
            "bystander": _follow(script.bystander, times_s, self._bystander_pose),
            "kick": limbs[:, 0],
            "lying": lying,
            "covered": covered,
            "chest": np.broadcast_to(own.on_baby(CHEST), (len(times_s), 2)),
        }

    def on_baby(self, point: NDArray[np.float64]) -> NDArray[np.float64]:
        """World point, shape (2,), of a point given on the baby, e.g. `FACE`."""
        return self._own.on_baby(point)

    def _head_pose(self, segment: Segment, cycle: Times) -> Poses:
        """Mask, hand on the bag, tube's tip, hand on the tube, squeeze: shape (T, 9)."""
        own, behaviour = self._own, segment.behaviour
        zeros = np.zeros((len(cycle), 1))
        mask, squeeze, bag_hand = own.mask_parked + zeros, 0.15 + zeros, OFF_TOP + zeros
        tip, tube_hand = own.tube_parked + zeros, OFF_LEFT + zeros
        if behaviour in ("ventilating", "mask_still", "bag_test"):
            at = own.mask_parked if behaviour == "bag_test" else own.on_baby(FACE)
            squeeze = cycle[:, None]
            mask = at + squeeze * np.array([0.2, 1.0]) * PRESS_LENGTH
            bag_hand = mask + BAG_OFFSET + squeeze * np.array([0.3, 1.0]) * PRESS_LENGTH
        elif behaviour in ("suctioning", "tube_still"):
            tip = own.on_baby(MOUTH) + cycle[:, None] * np.array([-0.83, 0.55]) * TUBE_LENGTH
            tube_hand = tip + PINCH_OFFSET
        return np.hstack([mask, bag_hand, tip, tube_hand, squeeze])

    def _torso_pose(self, segment: Segment, cycle: Times) -> Poses:
        """Centre of the hand at the torso, shape (T, 2)."""
        if segment.behaviour == "away":
            return OFF_BOTTOM + np.zeros((len(cycle), 2))
        baby_there = _presence(self.script.baby, np.array([segment.start_s]), "absent")[0] == 0
        on_table = segment.behaviour == "wiping"
        centre = EMPTY_TABLE if on_table and baby_there else self._own.on_baby(CHEST)
        return np.asarray(centre + (cycle[:, None] - 0.5) * self._own.rub_axis * RUB_LENGTH)

    def _bystander_pose(self, segment: Segment, cycle: Times) -> Poses:
        if segment.behaviour == "away":
            return OFF_RIGHT + np.zeros((len(cycle), 2))
        return np.asarray(np.array([0.46, -0.3]) + cycle[:, None] * np.array([-0.1, 0.08]))

    def _draw_baby(self, image: Image, time_s: float, poses: Mapping[str, Poses], index: int) -> None:
        own, colours = self._own, self.look.colours
        skin, place = colours["skin"], own.on_baby
        if poses["lying"][index] > 0 or poses["covered"][index] > 0:
            kick = 0.09 * (poses["kick"][index] - 0.5)
            breath = 1 + 0.02 * np.sin(2 * np.pi * 0.7 * time_s)
            for side in (-1.0, 1.0):
                arm, leg = np.array([0.07, side * 0.2 - kick]), np.array([0.34 + kick, side * 0.1 + kick])
                own.canvas.capsule(image, place(np.array([0.0, side * 0.08])), place(arm), 0.028, skin)
                own.canvas.capsule(image, place(np.array([0.2, side * 0.05])), place(leg), 0.036, skin)
            own.canvas.ellipse(image, place(CHEST), (0.17 * breath, 0.105 * breath), own.baby_angle, skin)
            own.canvas.ellipse(image, place(np.array([0.19, 0.01])), (0.055, 0.095), own.baby_angle, colours["nappy"])
            own.canvas.ellipse(image, place(FACE), (0.095, 0.088), own.baby_angle, skin)
            own.canvas.ellipse(image, place(MOUTH), (0.016, 0.016), 0.0, skin * np.float32(0.5))
        if poses["covered"][index] > 0:
            blanket = colours["blanket"]
            own.canvas.capsule(image, place(np.array([-0.17, 0.0])), place(np.array([0.3, 0.0])), 0.19, blanket)

    def _draw_head_end(self, image: Image, poses: Mapping[str, Poses], index: int) -> None:
        """Mask and bag with their hand, then the tube with its hand."""
        canvas, colours = self._own.canvas, self.look.colours
        mask, squeeze = poses["mask"][index], float(poses["squeeze"][index])
        bag = mask + BAG_OFFSET
        canvas.capsule(image, mask, bag, 0.022, colours["bag"])
        canvas.ellipse(image, mask, (0.068, 0.06), 0.0, colours["mask"])
        canvas.ellipse(image, bag, (0.1, 0.075 - 0.04 * squeeze), -0.3, colours["bag"])
        self._draw_arm(image, poses["bag_hand"][index], OFF_TOP)
        tip, tube_hand = poses["tip"][index], poses["tube_hand"][index]
        canvas.capsule(image, tip, tip + PINCH_OFFSET, 0.013, colours["tube"])
        canvas.capsule(
            image, tip + PINCH_OFFSET, tip + 2.5 * PINCH_OFFSET * np.array([1, -0.4]), 0.013, colours["tube"]
        )
        self._draw_arm(image, tube_hand, OFF_LEFT)

    def _noise(self, time_s: float) -> Image:
        """Sensor noise of one moment: a window of one sheet of noise, at a place that the time decides."""
        place = round(time_s * 1e3) * 2654435761 + self._own.noise_start
        top, left = (place >> 8) % NOISE_MARGIN_PX, (place >> 16) % NOISE_MARGIN_PX
        window = _NOISE_SHEET[top : top + FRAME_HEIGHT_PX, left : left + FRAME_WIDTH_PX]
        return window * np.float32(self.look.noise_levels)

    def _draw_arm(self, image: Image, hand: Poses, shoulder: NDArray[np.float64]) -> None:
        towards = shoulder - hand
        distance = float(np.hypot(*towards))
        if distance < 0.3:
            return
        towards /= distance
        self._own.canvas.capsule(image, hand + 0.07 * towards, shoulder, 0.05, self.look.colours["sleeve"])
        angle = float(np.arctan2(towards[1], towards[0]))
        self._own.canvas.ellipse(image, hand, (0.085, 0.058), angle, self.look.colours["glove"])


class _Own:
    """What one recording draws once: its places, the empty table, the light."""

    def __init__(self, look: Look, rng: np.random.Generator) -> None:
        self.canvas = Canvas(FRAME_WIDTH_PX, FRAME_HEIGHT_PX, look.camera)
        self.baby_angle = float(np.deg2rad(rng.uniform(-9, 9)))
        self._baby_shift = rng.uniform(-0.03, 0.03, 2)
        rub_angle = np.deg2rad(rng.uniform(-25, 25))
        self.rub_axis = np.array([np.cos(rub_angle), np.sin(rub_angle)])
        self.mask_parked = MASK_PARKED + rng.uniform(-0.05, 0.05, 2)
        # Half of the recordings have the tube lying beside the head, the others keep it out of sight.
        self.tube_parked = TUBE_PARKED + rng.uniform(-0.03, 0.03, 2) if rng.random() < 0.5 else OFF_LEFT
        self.background = self._empty_table(look)
        x = (np.arange(FRAME_WIDTH_PX) - FRAME_WIDTH_PX / 2) / FRAME_HEIGHT_PX
        y = (np.arange(FRAME_HEIGHT_PX) - FRAME_HEIGHT_PX / 2) / FRAME_HEIGHT_PX
        slope = 1 + look.light_slope[0] * x[None, :] + look.light_slope[1] * y[:, None]
        self.light = (slope[:, :, None] * look.gain).astype(np.float32)
        self.noise_start = int(rng.integers(2**32))

    def on_baby(self, point: NDArray[np.float64]) -> NDArray[np.float64]:
        """World point of a point given on the baby."""
        cosine, sine = np.cos(self.baby_angle), np.sin(self.baby_angle)
        return np.asarray(point @ np.array([[cosine, sine], [-sine, cosine]]) + self._baby_shift)

    def _empty_table(self, look: Look) -> Image:
        image = np.empty((FRAME_HEIGHT_PX, FRAME_WIDTH_PX, 3), np.float32)
        image[:] = look.colours["floor"]
        left, right = np.array([-0.4, 0.0]), np.array([0.42, 0.0])
        self.canvas.capsule(image, left, right, 0.42, look.colours["table"])
        self.canvas.capsule(image, np.array([-0.2, 0.02]), np.array([0.27, 0.02]), 0.25, look.colours["towel"])
        return image


def make_recording(purpose: str, seed: int, session: int, recording: int, duration_s: float) -> Recording:
    """The recording number `recording` of session number `session`.

    Args:
        purpose: A key of `PURPOSES`; different purposes never share random numbers.
        seed: The data set's seed.
        session: Chooses the look.
        recording: Chooses the script and the small differences within the session.
        duration_s: Length.

    Returns:
        The recording, ready to draw.
    """
    key = (PURPOSES[purpose], seed, session)
    look = draw_look(np.random.default_rng(key))
    script = write_script(np.random.default_rng((*key, recording, 0)), duration_s)
    return Recording(script, look, (*key, recording, 1))


def _presence(track: tuple[Segment, ...], times_s: Times, behaviour: str) -> Times:
    """1 where the track shows `behaviour`, else 0, shape (T,)."""
    present = np.zeros(len(times_s))
    for segment in track:
        if segment.behaviour == behaviour:
            present[(times_s >= segment.start_s) & (times_s < segment.end_s)] = 1
    return present


def _cycle(segment: Segment, times_s: Times) -> Times:
    """Where in its cycle a segment is, 0 to 1 and back; constant where the rate is 0."""
    turns = segment.phase + segment.rate_hz * (times_s - segment.start_s)
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * turns))


def _follow(track: tuple[Segment, ...], times_s: Times, pose: PoseOf) -> Poses:
    """Poses along a track; each segment starts with a reach from the pose that the last one left.

    Args:
        track: Segments without gaps.
        times_s: Shape (T,).
        pose: Maps a segment and its cycle, shape (T,), to poses, shape (T, K).

    Returns:
        Shape (T, K).
    """
    index = np.clip(np.searchsorted([s.start_s for s in track], times_s, side="right") - 1, 0, None)
    poses = np.empty((len(times_s), pose(track[0], np.zeros(1)).shape[1]))
    for number in np.unique(index):
        here, segment = index == number, track[number]
        now = pose(segment, _cycle(segment, times_s[here]))
        if number > 0:
            before = track[number - 1]
            left_at = pose(before, _cycle(before, np.array([before.end_s])))
            reached = np.clip((times_s[here] - segment.start_s) / REACH_S, 0, 1)[:, None]
            now = left_at + (3 * reached**2 - 2 * reached**3) * (now - left_at)
        poses[here] = now
    return poses
