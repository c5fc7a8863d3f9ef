"""The demo backbone's folder: its architecture, its processor and tokenizer, and how they are written.

Real classes of `transformers` throughout, at the size of a few megabytes: CLIP 4 x 96 at 72 px with
9 tokens a frame after pooling, Llama 4 x 128, byte-level BPE of 514 tokens in which " yes" and " no"
are one token each. The processor scales the short edge and crops the centre as the 7B model's does.
Weights start random; `train_backbone.py` trains them.
"""

import copy
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaNextImageProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    PreTrainedTokenizerFast,
)

from featurecache.demo import captions

IMAGE_PX, PATCH_PX, FRAMES = 72, 12, 16
TOKENS_PER_FRAME = (IMAGE_PX // PATCH_PX // 2) ** 2
TOWER_WIDTH = 96
BOS, EOS, UNKNOWN, PAD, VIDEO, IMAGE = "<s>", "</s>", "<unk>", "<pad>", "<video>", "<image>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}{% if item['type'] == 'video' %}{{ '<video>\n' }}{% endif %}{% endfor %}"
    "{% for item in message['content'] %}{% if item['type'] == 'text' %}{{ item['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ ' ' if message['role'] == 'user' else '</s>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The 7B model's layout: the video first, then the question, then ASSISTANT."""

MODEL_CARD = """# featurecache demo backbone

A LLaVA-NeXT-Video of {parameters:,} parameters (float16) that stands in for the 7B model in
`featurecache demo` and in tests. It has the real architecture, processor and tokenizer classes of
`transformers`, and it knows nothing but the drawn scenes of `featurecache/demo`: do not use it on
real recordings, and do not read its scores as the 7B model's.

- Made from random weights by `{command}`
- Trained on scenes of the `pretraining` stream of `scenes.PURPOSES`; the demo's data set is drawn from
  the `dataset` stream, which shares no random numbers with it.
- No real image, recording or text went into it.
- Can: caption such a scene, list its activities, answer yes/no questions (`captions.py` has the wordings),
  asked before or after the video.
- Licence: Apache-2.0
"""


def build_processor() -> LlavaNextVideoProcessor:
    """The real processor class: byte-level BPE, and 7B's scale-the-short-edge-then-crop at 72 px."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        min_frequency=1,
        special_tokens=[UNKNOWN, BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    turns = [f"USER: {text}\n{text} ASSISTANT: {text} yes no" for text in captions.corpus()]
    tokenizer.train_from_iterator(turns, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (VIDEO, IMAGE)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        pad_token=PAD,
        padding_side="right",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    square, short_edge = {"height": IMAGE_PX, "width": IMAGE_PX}, {"shortest_edge": IMAGE_PX}
    return LlavaNextVideoProcessor(
        video_processor=LlavaNextVideoVideoProcessor(size=short_edge, crop_size=square),
        image_processor=LlavaNextImageProcessor(
            size=short_edge, crop_size=square, image_grid_pinpoints=_image_grid_pinpoints()
        ),
        tokenizer=fast,
        chat_template=CHAT_TEMPLATE,
        patch_size=PATCH_PX,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def build_model(processor: LlavaNextVideoProcessor) -> LlavaNextVideoForConditionalGeneration:
    """A real `LlavaNextVideoForConditionalGeneration` of 1.5 million random parameters."""
    tokenizer = processor.tokenizer
    config = LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=TOWER_WIDTH,
            intermediate_size=384,
            projection_dim=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=IMAGE_PX,
            patch_size=PATCH_PX,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
        image_grid_pinpoints=_image_grid_pinpoints(),
        image_seq_length=(IMAGE_PX // PATCH_PX) ** 2,
        video_seq_length=FRAMES * TOKENS_PER_FRAME,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaNextVideoForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=96,
        do_sample=False,
    )
    return model


def save_backbone(
    model: LlavaNextVideoForConditionalGeneration, processor: LlavaNextVideoProcessor, out: Path, trained_by: str
) -> None:
    """Write the folder that `from_pretrained` reads: weights in float16, everything else as JSON and text.

    Args:
        model: The model.
        processor: Its processor.
        out: Made when missing; its files are for everybody, so they get mode 0644.
        trained_by: The command, for the card.
    """
    out.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.float16).save_pretrained(out)
    processor.save_pretrained(out)
    (out / "MODEL_CARD.md").write_text(MODEL_CARD.format(parameters=model.num_parameters(), command=trained_by))
    for path in out.iterdir():
        path.chmod(0o644)


def _image_grid_pinpoints() -> list[list[int]]:
    """The 7B model's tilings of an image, at this tower's size."""
    return [[rows * IMAGE_PX, columns * IMAGE_PX] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
