"""What the demo backbone is taught to say about a clip: captions, lists of activities, yes and no.

Everything is derived from the script, so a caption is true by construction. A fact that holds for
only part of a clip is neither asked nor told.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featurecache.demo.script import LABEL_OF, LABELS, Script

HOLDS_FROM, ABSENT_BELOW = 0.5, 0.25  # share of the clip; the first is the clip table's rule for labels

QUESTIONS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("lying",), ("Is the baby visible?", "Can the baby be seen?")),
    (("covered",), ("Is the baby covered?",)),
    (("ventilating", "mask_still"), ("Is the mask on the face?",)),
    (("ventilating", "bag_test"), ("Is the bag being squeezed?", "Is the bag moving?")),
    (("ventilating",), ("Is the baby ventilated?", "Is ventilation given?", "Is the mask pressed rhythmically?")),
    (("mask_still",), ("Is the mask resting still on the face?",)),
    (("rubbing",), ("Is the baby stimulated?", "Is stimulation given?", "Is the hand rubbing?")),
    (("hand_still",), ("Is the hand lying still?",)),
    (("wiping",), ("Is the table being wiped?",)),
    (("rubbing", "wiping"), ("Is the hand moving?",)),
    (("suctioning",), ("Is the baby suctioned?", "Is suction given?", "Is the tube moving?")),
    (("suctioning", "tube_still"), ("Is the tube at the mouth?",)),
    (("tube_still",), ("Is the tube held still?",)),
    (("kicking",), ("Is the baby kicking?",)),
    (("reaching",), ("Is a bystander's arm in view?",)),
)
"""Behaviours any of which makes the answer yes, and ways to ask."""

LIST_REQUESTS = (
    "Watch the hands and the objects they hold. Which activities take place?",  # the settings' default prompt
    "Which activities are seen?",
    "List the activities.",
)
CAPTION_REQUESTS = ("Describe the video.", "Describe what is done to the newborn.", "What is happening?")

SENTENCES = {
    "lying": "The baby lies on the table.",
    "covered": "The baby is covered.",
    "absent": "The table is empty.",
    "ventilating": "The mask is pressed rhythmically on the face.",
    "mask_still": "The mask rests still on the face.",
    "bag_test": "The bag is squeezed beside the table.",
    "suctioning": "The tube moves at the mouth.",
    "tube_still": "The tube is held still at the mouth.",
    "rubbing": "A hand rubs the body.",
    "hand_still": "A hand lies still on the body.",
    "wiping": "A hand wipes the table.",
    "kicking": "The baby kicks.",
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question with its true answer."""

    question: str
    answer: str


def exchanges(script: Script, start_s: float, end_s: float, rng: np.random.Generator, count: int) -> list[Exchange]:
    """Questions with true answers about [start_s, end_s), in random order.

    Two in five of the yes/no questions come from facts that hold, so that "no" to everything
    does not pay; the rest are drawn evenly.

    Args:
        script: What happens in the recording.
        start_s: Start of the clip.
        end_s: End of the clip.
        rng: Chooses questions and wordings.
        count: How many exchanges to return.

    Returns:
        `count` exchanges; about one in five asks for a caption or a list.
    """
    yes, no = [], []
    for behaviours, wordings in QUESTIONS:
        share = script.share(behaviours, start_s, end_s)
        if share >= HOLDS_FROM:
            yes.append(wordings)
        elif share < ABSENT_BELOW:
            no.append(wordings)
    chosen = []
    for _ in range(count):
        draw = rng.random()
        if draw < 0.12:
            chosen.append(Exchange(_pick(CAPTION_REQUESTS, rng), caption(script, start_s, end_s)))
        elif draw < 0.2:
            chosen.append(Exchange(_pick(LIST_REQUESTS, rng), activity_list(script, start_s, end_s)))
        else:
            is_yes = bool(yes) and (rng.random() < 0.4 or not no)
            pool = yes if is_yes else no
            wordings = pool[int(rng.integers(len(pool)))]
            chosen.append(Exchange(_pick(wordings, rng), "yes" if is_yes else "no"))
    return chosen


def caption(script: Script, start_s: float, end_s: float) -> str:
    """One sentence for every behaviour that holds for at least half of [start_s, end_s)."""
    told = [text for behaviour, text in SENTENCES.items() if script.share((behaviour,), start_s, end_s) >= HOLDS_FROM]
    return " ".join(told) or "The scene changes."


def activity_list(script: Script, start_s: float, end_s: float) -> str:
    """The labels that hold for at least half of [start_s, end_s), comma-separated, or `none`."""
    behaviour_of = {label: behaviour for behaviour, label in LABEL_OF.items()}
    held = [label for label in LABELS if script.share((behaviour_of[label],), start_s, end_s) >= HOLDS_FROM]
    return ", ".join(label.replace("_", " ") for label in held) or "none"


def _pick(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


def corpus() -> list[str]:
    """Every text above once, for training the tokenizer."""
    asked = [wording for _, wordings in QUESTIONS for wording in wordings]
    labels = [label.replace("_", " ") for label in LABELS]
    return [*asked, *LIST_REQUESTS, *CAPTION_REQUESTS, *SENTENCES.values(), ", ".join(labels), "The scene changes."]
