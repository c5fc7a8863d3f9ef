"""The commented `featurecache.toml` that `init` and the demo write."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from featurecache.errors import ProjectExistsError
from featurecache.files import private_folder, write_private
from featurecache.project.columns import ColumnSettings
from featurecache.project.settings import DEFAULT_PROMPT, SETTINGS_NAME
from featurecache.project.toml_text import mapping_line, quoted, toml_list


def write_settings(
    folder: Path,
    *,
    videos: str,
    annotations: str | None,
    labels_from: str,
    tiers: Sequence[str],
    labels: Sequence[str],
    mapping: Mapping[str, Mapping[str, str]] | None = None,
    columns: ColumnSettings | None = None,
    annotated_span: str | None = None,
    session_from: str,
    session_pattern: str | None = None,
    same_session: Sequence[Sequence[str]] = (),
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    model: str,
    dtype: str,
    keep: Sequence[str] = ("final/mean",),
    lora: Mapping[str, int | float | bool] | None = None,
    implies: Mapping[str, Sequence[str]] | None = None,
    reason: str,
) -> Path:
    """Writes a commented `featurecache.toml`; never over one that is there.

    `lora` holds settings of `[lora]` that are not the defaults; `implies` goes under `[zeroshot]`.

    Raises:
        ProjectExistsError: If there is one already.
    """
    path = folder / SETTINGS_NAME
    if path.exists():
        raise ProjectExistsError(
            f"init writes only new settings, but {path} is there. Edit it, or move it away and run init again."
        )
    annotations_line = (
        '# annotations = "annotations"   # a folder of .eaf files, or a CSV: recording,start_s,end_s,label'
        if annotations is None
        else f"annotations = {quoted(annotations)}"
    )
    pattern_line = (
        "# session_pattern = '^(S[0-9]+)'   # its group is the session"
        if session_pattern is None
        else f"session_pattern = {quoted(session_pattern)}"
    )
    same_line = (
        f"same_session = [{', '.join(map(toml_list, same_session))}]"
        if same_session
        else '# same_session = [["S01_front.mp4", "S01_top.mp4"]]   # recordings that are one session all the same'
    )
    mapping_lines = "".join(f"{mapping_line(tier, own)}\n" for tier, own in (mapping or {}).items()) or (
        '# mapping."Hand" = { "left" = "Hand left", "none" = "" }   # value -> label; "": absent, "*": any other\n'
    )
    span_line = (
        '# annotated_span = "annotated"' if annotated_span is None else f"annotated_span = {quoted(annotated_span)}"
    )
    told = dataclasses.asdict(columns or ColumnSettings())
    default = dataclasses.asdict(ColumnSettings())
    columns_lines = (
        "\n".join(f"columns.{key} = {quoted(value)}" for key, value in told.items() if value != default[key])
        or '# columns.start = "Begin Time - ss.msec"   # of another program\'s table; columns.unit = "ms"'
    )
    lora_lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in (lora or {}).items())
    implied = ", ".join(f"{quoted(label)} = {toml_list(others)}" for label, others in (implies or {}).items())
    zeroshot_lines = f"implies = {{ {implied} }}\n" if implied else ""
    text = f"""\
# Settings of this project. Paths are relative to this file. Every setting not named here has its default.

[data]
videos = {quoted(videos)}
{annotations_line}
# {reason}
labels_from = {quoted(labels_from)}          # "tiers": a tier is a label; "values": an annotation's value is
tiers = {toml_list(tiers)}                  # tiers that are read; empty: all that carry a label
labels = {toml_list(labels)}                # the columns of clips.csv, in this order
{mapping_lines}# rename."Suction" = "suction"     # a spelling, and the label or tier that it means
{span_line}   # a tier or label that marks what was annotated: clips outside are unlabelled
# unannotated_time = "until_last_annotation"   # "negative": in an annotated recording, all time without an annotation
# empty_files = "negative"        # a file without an annotation: nothing happened; "unlabelled": nobody looked
# media_folders = "ignored"       # a media path in another folder than the recording's counts, too
# annotators = "coderA"           # whose annotation counts where there are several; or "union", "intersection"
{columns_lines}
session_from = {quoted(session_from)}        # "file", "folder", "pattern", "column" (of the CSV); never cut by a split
{pattern_line}
{same_line}

[clips]
length_s = 3
stride_s = 3
# min_overlap = 0.5               # of a clip that a label must cover to be on; or "0.2 s", or "any"

[splits]
seed = 0
train = {fractions[0]}
validation = {fractions[1]}
test = {fractions[2]}
# sessions = {{ S01 = "test" }}   # fixes the split of the sessions named here

[features]                        # changing anything here but keep makes new feature spaces
model = {quoted(model)}           # a folder, "org/name" or "org/name@revision" of the hub's cache here, or "demo"
prompt = {quoted(DEFAULT_PROMPT)}
frames = 16
resize = "model"                  # as its processor does: the VLM's crops. "crop" cuts wide frames; "pad", "squash" not
dtype = {quoted(dtype)}
keep = {toml_list(keep)}          # tap/pooling, any number of them from one pass; tokens take much disk
# taps: vision, layer_0 .. the last layer, final; poolings: mean, motion, frames, tokens, last, cls (docs/backbones.md)
stored_dtype = "float16"          # tokens are stored in bfloat16 unless this is "float32"

[extract]                         # changes speed, never values
device = "auto"                   # or "cpu", "cuda", "cuda:1"
batch_size = "auto"               # clips at once; "auto": from the memory that is free
decoders = 2

[train]                           # the head that `featurecache train` fits
# inputs = "final/mean"           # selected features, concatenated: "final/mean+final/motion"; left out: the first
# kind = "linear"                 # or "mlp"; on the pooling frames "attention", "temporal"
# hidden_width = 128              # of "mlp" and "temporal"
# normalization = "standardize"   # or "l2", "none"
# components = 0                  # principal components; 0 keeps all features
# solver = "adamw"                # "convex": the optimum of a linear head without dropout, for the penalty l2
# l2 = 0.01
# variance_exponent = 0.0         # 1: that penalty is weaker along directions in which features vary more, and stronger
#                                 # along the others
# learning_rate = 0.001
# weight_decay = 0.01
# positive_weight_exponent = 0.5  # 0: a positive clip counts as a negative one; 1: rare labels are balanced fully;
#                                 # [0.5, 0.2, ...]: one for each label
# positive_weight_scale = 1.0
# dropout = 0.0
# batch_size = 256
# epochs = 20
# patience = 0                    # epochs without a better validation score that end training; 0: never

[search]                          # what `featurecache tune` chooses from: [lowest, highest], or all choices
# inputs = ["final/mean"]         # left out: each selected vector, means with their motions, all means, all vectors
# kind = ["linear"]
# hidden_width = [16, 256]        # of "mlp" and "temporal"
# normalization = ["standardize"]
# components = [0]                # those that are fewer than the features
# variance_exponent = [0.0, 1.0]
# solver = ["convex", "adamw"]    # convex first, a grid for each choice above, then trials by AdamW
# l2 = [1e-3, 10.0]
# folds = 5                       # of the sessions that are not test, by which settings are chosen
# learning_rate = [3e-6, 0.03]
# weight_decay = [1e-5, 1.0]
# positive_weight_exponent = [0.0, 1.0]
# positive_weight_scale = [1.0, 1.0]
# dropout = [0.0, 0.5]
# batch_size = [128, 256, 512]
# epochs = [5, 60]
# patience = [0]

[lora]                            # how `featurecache lora-finetune` trains adapters; defaults are LLaVA's recipe
{lora_lines}# frozen = "layer_0"              # tokens that training starts from; "layer_24": adapters above it
# rank = 128
# alpha = 256
# learning_rate = 2e-4            # of the adapters
# dropout = 0.05                  # of the adapters' input
# targets = ["q_proj", "k_proj", "v_proj", "o_proj"]   # the layers that have adapters
# base_weights = "full"           # "4bit": a quarter of the memory, rounded
# head_learning_rate = 1e-3
# epochs = 5                      # at most
# patience = 2                    # epochs without a better one that end training; 0: never
# select = "macro_f1"             # what makes an epoch better, on validation; or "loss"
# batch_size = 32                 # clips of a step
# micro_batch = 4                 # clips in memory at once; halved where they do not fit
# warmup = 0.03                   # share of the steps in which the learning rate rises
# clip_norm = 1.0                 # of the gradient
# gradient_checkpointing = true   # activations are recomputed: less memory, more time
# checkpoint_minutes = 10.0

[finetune]                        # the supervised baseline, `featurecache finetune`
# model = "models/timesformer-base-finetuned-ssv2"   # a folder with TimeSformer's files, or a hub name
# last_layers = 0                 # layers that are trained, from the top; 0: the whole model
# learning_rate = 5e-5            # of the model
# head_learning_rate = 1e-3
# weight_decay = 0.05
# positive_weight_exponent = 0.5
# epochs = 15                     # at most; patience, select, clip_norm, ... as in [lora]
# patience = 3
# batch_size = 8                  # clips of a step
# warmup = 0.1
# gradient_checkpointing = false
# memory_gb = 8.0                 # for decoded pixels; what does not fit is decoded again in each epoch
# search.learning_rate = [1e-5, 3e-4]                # what --trials chooses from

[zeroshot]                        # how `featurecache zeroshot` asks; the questions are files below prompts/
{zeroshot_lines}# implies = {{ "ventilation" = ["baby visible"] }}   # labels that are on whenever another is
# new_tokens = 48                 # of a free answer, at most

[timeline]                        # how `featurecache predict` makes intervals of clip scores
# stride_s = 1.5                  # from one scored clip to the next; left out: half a clip
# exclusive = [["ventilation", "suction"]]   # labels of which one at most is on at a time
"""  # noqa: S608  # "select" is a setting
    private_folder(folder)
    write_private(path, text.encode())
    return path
