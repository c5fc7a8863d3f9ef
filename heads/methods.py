"""What the methods are called in tables, on screen and in the report: the paper's names, and ours beside them.

What this is not: the names of head kinds in settings (`settings.py`), or of the commands that make a run.
"""

from heads.settings import HeadKind, HeadPrior

FT_LC_TEXT, FT_C_LORA, TIMESFORMER = "FT-LC-Text", "FT-C-LoRA", "TimeSformer"
ZERO_SHOT = ZSC_CO, ZS_B, ZSC_J, ZS_TEXT = "ZSC-CO", "ZS-B", "ZSC-J", "ZS-Text"

PAPER_ORDER = (
    TIMESFORMER,
    *ZERO_SHOT,
    "FT-LC",
    FT_LC_TEXT,
    "FT-MLP",
    "FT-Attention",
    "FT-Weighted",
    "FT-Temporal",
    FT_C_LORA,
)
"""Rows of the paper's Table 1 from top to bottom; scores from words and other heads stand beside what they are like."""

_OF_KIND: dict[HeadKind, str] = {
    "linear": "FT-LC",
    "mlp": "FT-MLP",
    "attention": "FT-Attention",
    "weighted": "FT-Weighted",
    "temporal": "FT-Temporal",
}

_OF_QUESTION = {"zs-b": ZS_B, "zsc-co": ZSC_CO, "zsc-j": ZSC_J, "text": ZS_TEXT}


def method_of_question(kind: str) -> str:
    """The zero-shot method by its command's name: a kind of question (`featurecache.backbones.asking`), or `text`."""
    return _OF_QUESTION[kind]


def method_of_head(kind: HeadKind, prior: HeadPrior = "none") -> str:
    """The method that a head of a kind is, on features of a frozen backbone; "FT-LC-Text" is drawn towards words."""
    return _OF_KIND[kind] if prior == "none" else FT_LC_TEXT


def rank_of(method: str) -> int:
    """A method's place in the paper's Table 1, from 0; the same one behind it for all others."""
    return PAPER_ORDER.index(method) if method in PAPER_ORDER else len(PAPER_ORDER)
