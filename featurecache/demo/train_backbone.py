"""Train the demo's backbone from nothing: a real LLaVA-NeXT-Video of 1.5 million parameters.

    python -m featurecache.demo.train_backbone --out featurecache/demo/backbone

Three steps, as LLaVA's own recipe in small. (1) The vision tower learns from single frames where
things are. (2) Every training clip goes once through the frozen tower. (3) The projector and the
language model learn captions, lists, and yes/no answers, with the question before or after the video;
its second layer also learns how things moved since the frame before, with their direction, which no
single frame shows and which cancels in a mean over the clip. Notable: the tower is trained through
layer -2 and the 3 x 3 pooling, because that is what the language model gets to see; its last layer
stays as it was drawn.

Training scenes never appear in the demo's data set (`scenes.PURPOSES`). One thread is the default: from
one seed it repeats to the bit on one machine, and on a busy machine it is faster than two.
Not here: anything `featurecache` needs at run time.
"""

import argparse
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss
from transformers import LlavaNextVideoForConditionalGeneration, LlavaNextVideoProcessor

from featurecache.demo import captions
from featurecache.demo.backbone_files import (
    FRAMES,
    TOKENS_PER_FRAME,
    TOWER_WIDTH,
    build_model,
    build_processor,
    save_backbone,
)
from featurecache.demo.scenes import FACE, FRAMES_PER_S, MOUTH, Recording, make_recording
from featurecache.demo.script import Script

log = logging.getLogger("train_backbone")

CLIP_S = 3.0
RECORDING_S, CLIPS_PER_RECORDING = 24.0, 3


@dataclass(frozen=True)
class TrainingClip:
    """A window of a training recording, which is drawn anew when needed."""

    seed: int
    session: int
    script: Script
    start_s: float

    @property
    def recording(self) -> Recording:
        """The recording, ready to draw."""
        return make_recording("pretraining", self.seed, self.session, 0, RECORDING_S)

    def times_s(self) -> np.ndarray:
        """Moments of the frames that a 10 frames/s video has at or before the clip's sampling times."""
        sampled = self.start_s + (np.arange(FRAMES) + 0.5) * CLIP_S / FRAMES
        return np.floor(sampled * FRAMES_PER_S) / FRAMES_PER_S


def training_clips(seed: int, count: int, first_session: int = 0) -> list[TrainingClip]:
    """`count` clips; every recording has a look of its own and gives `CLIPS_PER_RECORDING` clips."""
    clips: list[TrainingClip] = []
    session = first_session
    while len(clips) < count:
        script = make_recording("pretraining", seed, session, 0, RECORDING_S).script
        starts = np.random.default_rng((seed, session)).uniform(0, RECORDING_S - CLIP_S, CLIPS_PER_RECORDING)
        clips += [TrainingClip(seed, session, script, float(start)) for start in starts]
        session += 1
    return clips[:count]


# --- the vision tower -----------------------------------------------------------------------------

POINTS = ("mask", "bag_hand", "tip", "tube_hand", "hand", "bystander")


def frame_targets(clip: TrainingClip) -> tuple[np.ndarray, np.ndarray]:
    """What the tower must tell about every frame.

    Returns:
        Presence, shape (T, 4 + 6), 0 or 1: baby, blanket, mask on the face, tube at the mouth, and each of
        `POINTS` inside the crop. Place, shape (T, 6 * 2 + 2): the points in the crop, then the bag's squeeze
        and the kick.
    """
    recording = clip.recording
    poses = recording.poses(clip.times_s())
    camera = recording.look.camera
    places = np.stack([camera.project(poses[name]) for name in POINTS], axis=1)  # (T, 6, 2)
    inside = (np.abs(places) < 0.5).all(axis=2)  # (T, 6)
    face, mouth = recording.on_baby(FACE), recording.on_baby(MOUTH)
    on_face = np.linalg.norm(poses["mask"] - face, axis=1) < 0.08
    at_mouth = np.linalg.norm(poses["tip"] - mouth, axis=1) < 0.13
    presence = np.column_stack([poses["lying"], poses["covered"], on_face, at_mouth, inside])
    place = np.column_stack([places.reshape(len(places), -1), poses["squeeze"], poses["kick"]])
    return presence.astype(np.float32), place.astype(np.float32)


def pooled_tower_tokens(model: LlavaNextVideoForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Frames (B, 3, H, W) as the projector gets them: layer -2 without CLS, pooled to (B, 9, 96)."""
    inner = model.model
    states = inner.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    tokens: Tensor = inner.vision_resampler(states)
    return tokens


def train_vision_tower(
    model: LlavaNextVideoForConditionalGeneration,
    processor: LlavaNextVideoProcessor,
    clips: list[TrainingClip],
    steps: int,
    rng: np.random.Generator,
) -> None:
    """Single frames: what is there, and where. The linear readout is thrown away afterwards."""
    frames = np.concatenate([clip.recording.frames(clip.times_s()) for clip in clips])  # (N * T, H, W, 3)
    targets = [frame_targets(clip) for clip in clips]
    presence = torch.from_numpy(np.concatenate([target[0] for target in targets]))
    place = torch.from_numpy(np.concatenate([target[1] for target in targets]))
    log.info("drew %d frames for the vision tower", len(frames))

    readout = nn.Linear(TOKENS_PER_FRAME * TOWER_WIDTH, presence.shape[1] + place.shape[1])
    tower = model.model.vision_tower
    optimizer = torch.optim.AdamW([*tower.parameters(), *readout.parameters()], lr=1.5e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_up_then_cosine(step, steps))
    for step in range(steps):
        chosen = rng.integers(len(frames), size=128)
        tokens = pooled_tower_tokens(model, preprocess(processor, frames[chosen][None])[0])
        answer = readout(tokens.flatten(1))
        is_there, where = answer.split([presence.shape[1], place.shape[1]], dim=1)
        loss = binary_cross_entropy_with_logits(is_there, presence[chosen])
        seen = torch.from_numpy(seen_places(presence[chosen].numpy()))
        miss = smooth_l1_loss(where, place[chosen], beta=0.02, reduction="none") * seen
        loss = loss + 10 * miss.sum() / seen.sum()
        take_step(loss, optimizer, schedule)
        if step % 100 == 0 or step == steps - 1:
            log.info("vision %4d: loss %.3f, mean miss %.4f", step, loss.item(), mean_miss(where, place[chosen], seen))


def mean_miss(where: Tensor, place: Tensor, seen: Tensor) -> float:
    """Mean distance per coordinate, in frame heights."""
    return float(((where.detach() - place).abs() * seen).sum() / seen.sum())


def preprocess(processor: LlavaNextVideoProcessor, videos: np.ndarray) -> Tensor:
    """Videos (B, T, H, W, 3) as pixel values (B, T, 3, 72, 72), by the model's own processor."""
    frames = torch.from_numpy(np.ascontiguousarray(videos)).permute(0, 1, 4, 2, 3)
    pixels: Tensor = processor.video_processor(list(frames), do_sample_frames=False, return_tensors="pt")[
        "pixel_values_videos"
    ]
    return pixels


def frame_steps(clip: TrainingClip) -> tuple[np.ndarray, np.ndarray]:
    """How far things moved since the frame before.

    Returns:
        Steps in units of 0.05 frame heights, shape (T - 1, 14), in the order of `frame_targets`' places; and 1
        where the thing is seen in both frames, same shape.
    """
    presence, place = frame_targets(clip)
    seen = seen_places(presence)
    return np.diff(place, axis=0) / 0.05, seen[1:] * seen[:-1]


def seen_places(presence: np.ndarray) -> np.ndarray:
    """Which places count, shape (..., 14): points in the crop; squeeze with the bag's hand, kick with the baby."""
    return np.concatenate([presence[..., 4:].repeat(2, axis=-1), presence[..., [5]], presence[..., [0]]], axis=-1)


@torch.inference_mode()
def tower_tokens_of_clips(
    model: LlavaNextVideoForConditionalGeneration, processor: LlavaNextVideoProcessor, clips: list[TrainingClip]
) -> Tensor:
    """Every clip once through the frozen tower: shape (N, T * 9, 96), float16."""
    tokens = torch.empty(len(clips), FRAMES * TOKENS_PER_FRAME, TOWER_WIDTH, dtype=torch.float16)
    for index, clip in enumerate(clips):
        pixels = preprocess(processor, clip.recording.frames(clip.times_s())[None])[0]
        tokens[index] = pooled_tower_tokens(model, pixels).flatten(0, 1)
    return tokens


# --- the language model ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Conversation:
    """Token ids around one clip's video tokens, and where the loss falls."""

    before: list[int]  # ends just before the first video token
    after: list[int]
    answers: list[bool]  # for each id of `after`: is it part of an answer?
    yes_no: list[bool]  # for each id of `after`: is it the word yes or no?


def write_conversation(
    clip: TrainingClip, processor: LlavaNextVideoProcessor, rng: np.random.Generator
) -> Conversation:
    """Questions and answers about one clip; half of the time the first question stands before the video."""
    tokenizer = processor.tokenizer

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    asked = captions.exchanges(clip.script, clip.start_s, clip.start_s + CLIP_S, rng, count=6)
    first = asked[0].question
    if rng.random() < 0.5:
        separator = " " if rng.random() < 0.5 else "\n"
        before, after_video = f"USER: {first}{separator}", f"{separator}ASSISTANT:"
    else:
        before, after_video = "USER: ", f"\n{first} ASSISTANT:"
    after, answers, yes_no = encode(after_video), [], []
    answers, yes_no = [False] * len(after), [False] * len(after)
    for number, exchange in enumerate(asked):
        if number > 0:
            turn = encode(f"USER: {exchange.question} ASSISTANT:")
            after += turn
            answers += [False] * len(turn)
            yes_no += [False] * len(turn)
        answer = [*encode(" " + exchange.answer), tokenizer.eos_token_id]
        after += answer
        answers += [True] * len(answer)
        yes_no += [exchange.answer in ("yes", "no") and place == 0 for place in range(len(answer))]
    return Conversation([tokenizer.bos_token_id, *encode(before)], after, answers, yes_no)


def train_language_model(
    model: LlavaNextVideoForConditionalGeneration,
    processor: LlavaNextVideoProcessor,
    clips: list[TrainingClip],
    tokens: Tensor,
    steps: int,
    rng: np.random.Generator,
) -> None:
    """Projector and language model from cached tower tokens."""
    inner = model.model
    steps_and_seen = [frame_steps(clip) for clip in clips]
    moved = torch.from_numpy(np.stack([pair[0] for pair in steps_and_seen]))  # (N, T - 1, 14)
    seen = torch.from_numpy(np.stack([pair[1] for pair in steps_and_seen]))
    movement = nn.Linear(TOKENS_PER_FRAME * model.config.text_config.hidden_size, moved.shape[2])
    trained = [*inner.multi_modal_projector.parameters(), *inner.language_model.parameters(), *movement.parameters()]
    optimizer = torch.optim.AdamW([*trained, *model.lm_head.parameters()], lr=1.5e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_up_then_cosine(step, steps))
    right, asked, losses, misses = 0, 0, [], []
    for step in range(steps):
        chosen = rng.choice(len(clips), size=16, replace=False)
        talks = [write_conversation(clips[index], processor, rng) for index in chosen]
        video = inner.multi_modal_projector(tokens[chosen].float())  # (B, S_video, D)
        states, targets, weights, early = language_states(model, talks, video)
        logits = model.lm_head(states)
        loss = (cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()
        told = movement(early.reshape(len(early), FRAMES, -1)[:, 1:])  # (B, T - 1, 14)
        miss = smooth_l1_loss(told, moved[chosen], beta=0.2, reduction="none") * seen[chosen]
        loss = loss + miss.sum() / seen[chosen].sum()
        misses.append(mean_miss(told, moved[chosen], seen[chosen]))
        take_step(loss, optimizer, schedule)
        judged = weights > 1
        right += int((logits.argmax(dim=1) == targets)[judged].sum())
        asked += int(judged.sum())
        losses.append(loss.item())
        if step % 50 == 49 or step == steps - 1:
            log.info(
                "language %4d: loss %.3f, yes/no right %.3f, step missed by %.3f",
                *(step, np.mean(losses), right / max(asked, 1), 0.05 * np.mean(misses)),
            )
            right, asked, losses, misses = 0, 0, [], []


def language_states(
    model: LlavaNextVideoForConditionalGeneration, talks: list[Conversation], video: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Final states where the next token is an answer's, those tokens, their weights, and early video states.

    Attention is causal and padding stands on the right, so no mask is needed.

    Args:
        model: The model.
        talks: B conversations.
        video: Projected video tokens, shape (B, S_video, D).

    Returns:
        States (M, D), targets (M,) and weights (M,) of the M answer tokens; the video tokens' states after
        the second layer (B, S_video, D).
    """
    embed = model.get_input_embeddings()
    rows = [
        torch.cat([embed(torch.tensor(talk.before)), video[row], embed(torch.tensor(talk.after))])
        for row, talk in enumerate(talks)
    ]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, S, D)
    run = model.model.language_model(inputs_embeds=padded, use_cache=False, output_hidden_states=True)
    states, after_second_layer = run.last_hidden_state, run.hidden_states[2]
    answer_states, targets, weights, early = [], [], [], []
    for row, talk in enumerate(talks):
        is_answer = torch.tensor(talk.answers)
        places = is_answer.nonzero()[:, 0] + len(talk.before) + video.shape[1]
        answer_states.append(states[row, places - 1])
        targets.append(torch.tensor(talk.after)[is_answer])
        weights.append(1 + 3 * torch.tensor(talk.yes_no)[is_answer].float())
        early.append(after_second_layer[row, len(talk.before) : len(talk.before) + video.shape[1]])
    return torch.cat(answer_states), torch.cat(targets), torch.cat(weights), torch.stack(early)


# --- both -----------------------------------------------------------------------------------------


def warm_up_then_cosine(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear over the first 5%, then half a cosine down to 2%."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def take_step(loss: Tensor, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR) -> None:
    """One step of gradient descent with the gradient's norm clipped at 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_([p for p in group["params"] if p.grad is not None], 1.0)
    optimizer.step()
    schedule.step()


def main() -> None:
    """Train and write the backbone."""
    parser = argparse.ArgumentParser(description="Train the demo's backbone on drawn scenes.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vision-clips", type=int, default=3000)
    parser.add_argument("--vision-steps", type=int, default=900)
    parser.add_argument("--clips", type=int, default=4200)
    parser.add_argument("--language-steps", type=int, default=750)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    started = time.monotonic()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in vars(options).items())
    processor = build_processor()
    model = build_model(processor).train()
    log.info("%d parameters, %d words", sum(p.numel() for p in model.parameters()), len(processor.tokenizer))
    for_vision = training_clips(options.seed, options.vision_clips)
    rng = np.random.default_rng((options.seed, 1))
    train_vision_tower(model, processor, for_vision, options.vision_steps, rng)
    clips = training_clips(options.seed, options.clips, first_session=options.vision_clips)
    tokens = tower_tokens_of_clips(model, processor, clips)
    log.info("%d clips through the frozen tower", len(tokens))
    rng = np.random.default_rng((options.seed, 2))
    train_language_model(model, processor, clips, tokens.clone(), options.language_steps, rng)
    save_backbone(model.eval(), processor, options.out, f"python -m featurecache.demo.train_backbone {flags}")
    log.info("done in %.1f minutes", (time.monotonic() - started) / 60)


if __name__ == "__main__":
    main()
