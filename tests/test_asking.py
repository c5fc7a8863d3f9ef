"""A clip's video runs once for all questions, and every answer is what the whole model of transformers gives."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from featurecache.backbones import open_inputs
from featurecache.backbones.asking import ActivityList, AskedBackbone, YesNoQuestions, asked_of
from featurecache.backbones.captioning import CAPTION_TAP, JudgedCaption
from featurecache.backbones.continuation import SAID, gumbel_noise, sampled
from featurecache.backbones.wording import Wording
from featurecache.errors import ModelNotFoundError, SettingsError, UnsupportedModelError
from tests.asked_models import ANSWERS, MAKERS, Plain, answers, make_llava_next_video, open_asked, pixels_of_clips
from tests.published_layouts import change_config
from tests.tiny_video_language import make_llava_onevision

BOUND = 1e-5
PROMPTS = {
    "short": "user: <video> the hand moves ? assistant:",
    "long": "user: <video> is there ventilation , and what happens here ? the baby . assistant:",
    "other": "user: <video> suction ? assistant:",
}
LISTS = {
    "none": (0, 0, 0),
    "suction": (1, 0, 0),
    "suction tube": (0, 1, 0),
    "stimulation": (0, 0, 1),
    "suction, stimulation": (1, 0, 1),
    "suction, suction tube, stimulation": (1, 1, 1),
}
QUESTION = "user: describe <video> what happens here ? assistant:"


@pytest.fixture(scope="module", params=list(MAKERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


def ask_yes_no(wording: Wording) -> YesNoQuestions:
    return wording.yes_no(PROMPTS)


def ask_list(**options: int) -> Callable[[Wording], ActivityList]:
    return lambda wording: wording.activity_list(QUESTION, LISTS, name="prompt", **{"new_tokens": 12, **options})


def reference(plain: Plain, pixels: Tensor) -> Tensor:
    """log p(yes) / p(no) by a pass of its own for each clip and question, (B, Q)."""
    yes, no = plain.tokenizer.convert_tokens_to_ids(["yes", "Yes"]), plain.tokenizer.convert_tokens_to_ids(["no"])
    rows = []
    for clip in pixels:
        logits = [plain.logits(clip, prompt)[-1].log_softmax(-1) for prompt in PROMPTS.values()]
        rows.append(torch.stack([one[yes].logsumexp(0) - one[no].logsumexp(0) for one in logits]))
    return torch.stack(rows)


@pytest.mark.parametrize("clips", [1, 3, 16])
def test_questions_behind_one_video_pass_answer_as_passes_of_their_own(folder: Path, clips: int) -> None:
    backbone = open_asked(folder, ask_yes_no)
    plain, pixels = Plain(folder, backbone), pixels_of_clips(backbone, clips)
    found = answers(backbone, pixels, ["zs-b", "zs-b" + SAID])
    expected = reference(plain, pixels)
    assert expected.std() > 0.05
    assert (found["zs-b"][:, :3] - expected).abs().max() <= BOUND
    both = torch.stack([plain.logits(clip, PROMPTS["long"])[-1] for clip in pixels])
    ids = plain.tokenizer.convert_tokens_to_ids(["yes", "Yes", "no"])
    assert torch.allclose(found["zs-b"][:, 4], both.log_softmax(-1)[:, ids].logsumexp(-1), atol=BOUND)
    assert found["zs-b" + SAID][:, 1].tolist() == both.argmax(-1).tolist()


def test_the_comparison_of_passes_sees_noise_in_the_keys_and_another_clips_video(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = open_asked(folder, ask_yes_no)
    pixels = pixels_of_clips(backbone, 3)
    expected = reference(Plain(folder, backbone), pixels)
    others = answers(backbone, pixels.roll(1, 0), ["zs-b"])["zs-b"][:, :3]
    assert (others - expected).abs().max() > 100 * BOUND

    def noisy(self: AskedBackbone, encoded: Tensor) -> object:
        found = AskedBackbone.continuation(self, encoded)
        found._past._layers = [(keys + 1e-3 * torch.randn_like(keys), values) for keys, values in found._past._layers]
        return found

    monkeypatch.setattr(backbone, "continuation", noisy.__get__(backbone))
    torch.manual_seed(0)
    assert (answers(backbone, pixels, ["zs-b"])["zs-b"][:, :3] - expected).abs().max() > BOUND


def test_probabilities_of_lists_equal_those_of_an_independent_forward(folder: Path) -> None:
    backbone = open_asked(folder, ask_list())
    plain, pixels = Plain(folder, backbone), pixels_of_clips(backbone, 2)
    found = answers(backbone, pixels, ["zsc-co"])["zsc-co"]
    end = backbone.inputs.asked.ends[0]
    for clip, row in zip(pixels, found, strict=True):
        expected = []
        for text in LISTS:
            more = [*plain.tokenizer(f"x {text}", add_special_tokens=False)["input_ids"][1:], end]
            steps = plain.logits(clip, QUESTION, more)[:-1].log_softmax(-1)
            expected.append(steps.gather(1, torch.tensor(more)[:, None]).sum())
        lists = torch.stack(expected)
        assert (row[4:] - lists).abs().max() <= BOUND
        assert row[3] == pytest.approx(float(lists.logsumexp(0)), abs=BOUND)
        with_suction = torch.tensor([bool(members[0]) for members in LISTS.values()])
        odds = lists[with_suction].logsumexp(0) - lists[~with_suction].logsumexp(0)
        assert row[0] == pytest.approx(float(odds), abs=BOUND)


def test_free_answers_are_those_of_greedy_generation_and_end_where_it_ends(folder: Path) -> None:
    backbone = open_asked(folder, ask_list(new_tokens=20))
    plain, pixels = Plain(folder, backbone), pixels_of_clips(backbone, 8)
    endless = answers(backbone, pixels, ["zsc-co" + SAID])["zsc-co" + SAID][:, 6:].int()

    def places(token: int, rows: list[list[int]]) -> set[int | None]:
        return {row.index(token) if token in row else None for row in rows}

    end = max(endless.flatten().tolist(), key=lambda token: len(places(token, endless.tolist())))
    backbone.inputs.asked = replace(backbone.inputs.asked, ends=(end,))
    said = answers(backbone, pixels, ["zsc-co" + SAID])["zsc-co" + SAID][:, 6:].int()
    if backbone.inputs.config.model_type == "llava_next_video":  # the other small model says the same of all clips
        assert len(places(end, said.tolist())) > 1
    for clip, row in zip(pixels, said.tolist(), strict=True):
        asked = plain.inputs(clip, QUESTION)
        whole = plain.model.generate(**asked, max_new_tokens=20, do_sample=False, eos_token_id=end, pad_token_id=0)
        generated = whole[0, asked["input_ids"].shape[1] :].tolist()
        assert row == generated + [-1] * (20 - len(generated))
    asked = backbone.inputs.asked
    assert isinstance(asked, ActivityList)
    backbone.inputs.asked = JudgedCaption(asked.before, asked.question, (end,), 20)
    assert answers(backbone, pixels, [CAPTION_TAP])[CAPTION_TAP].tolist() == said.tolist(), "a caption is made alike"


def test_constrained_answers_are_the_allowed_tokens_that_are_most_probable_step_by_step(folder: Path) -> None:
    backbone = open_asked(folder, ask_list())
    asked, plain = backbone.inputs.asked, Plain(folder, backbone)
    assert isinstance(asked, ActivityList)
    pixels = pixels_of_clips(backbone, 3)
    found = answers(backbone, pixels, ["zsc-co", "zsc-co" + SAID])
    probable = found["zsc-co"][:, 4:].argmax(1).tolist()
    assert found["zsc-co" + SAID][:, 3:6].tolist() == [[2 * one - 1 for one in asked.members[at]] for at in probable]
    for clip, greedy in zip(pixels, found["zsc-co" + SAID][:, :3].tolist(), strict=True):
        so_far: tuple[int, ...] = ()
        while so_far not in asked.lists:
            allowed = {one[len(so_far)] for one in asked.lists if one[: len(so_far)] == so_far}
            logits = plain.logits(clip, QUESTION, so_far)[-1]
            so_far = (*so_far, max(allowed, key=lambda token, logits=logits: float(logits[token])))
        assert greedy == [2 * one - 1 for one in asked.members[asked.lists.index(so_far)]]


def test_no_drawn_list_is_invalid_and_free_answers_are_where_nothing_constrains_them(tmp_path: Path) -> None:
    backbone = open_asked(make_llava_next_video(tmp_path), ask_list(samples=1))
    asked = backbone.inputs.asked
    assert isinstance(asked, ActivityList)
    pixels = pixels_of_clips(backbone, 8)
    encoded = backbone.encode_frames(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
    with torch.inference_mode():
        clips = backbone.continuation(encoded)
        ways = clips.log_probabilities(asked._tree, clips.after(asked._tree))
        places, invalid = [], 0
        for seed in range(125):
            draws = torch.Generator().manual_seed(seed)
            noise = gumbel_noise((12, clips.words), draws)
            places += asked.walked(ways, sampled(1.5, noise)).tolist()
            if seed < 4:
                again = backbone.continuation(encoded)
                said = again.say(asked.question, most=12, ends=asked.ends, pick=sampled(1.5, noise))
                invalid += sum(tuple(one for one in row if one >= 0) not in asked.lists for row in said.tolist())
    assert len(places) == 1000
    assert min(places) >= 0
    assert len(set(places)) > 1
    assert invalid > 0


def test_drawn_answers_do_not_depend_on_the_batch_they_are_in_and_change_with_the_seed(tmp_path: Path) -> None:
    folder = make_llava_next_video(tmp_path)
    backbone = open_asked(folder, ask_list(samples=2, seed=1))
    pixels, tap = pixels_of_clips(backbone, 4), "zsc-co" + SAID
    together = answers(backbone, pixels, [tap])[tap]
    alone = torch.cat([answers(backbone, clip[None], [tap])[tap] for clip in pixels])
    assert torch.equal(together, alone)
    other = answers(open_asked(folder, ask_list(samples=2, seed=2)), pixels, [tap])[tap]
    assert torch.equal(other[:, :6], together[:, :6])
    assert not torch.equal(other, together)


def test_a_feature_space_says_what_was_asked_so_that_it_can_be_asked_again(folder: Path) -> None:
    for ask in (ask_yes_no, ask_list()):
        inputs = open_asked(folder, ask).inputs
        said = inputs.asked.kind + SAID
        fields = json.loads(json.dumps(inputs.identity(said, "float32", lambda path: path.name)))["asked"]
        assert asked_of(fields).widths == inputs.asked.widths
    of_words = inputs.identity("zsc-co", "float32", lambda path: path.name)["asked"]
    assert "new_tokens" not in of_words
    assert "new_tokens" in fields


WRONG_PROMPTS = {
    "no video": ({"a": "user: the hand ?"}, r"a must hold <video> exactly once.* 0 times"),
    "two videos": ({"a": "<video> the <video> hand ?"}, r"a must hold <video> exactly once.* 2 times"),
    "nothing asked": ({"a": "user: the hand ? <video>"}, r"a must ask something after <video>"),
    "other words before the video": (
        {"a": "user: <video> the hand ?", "b": "the user: <video> the hand ?"},
        r"same words before <video>.* b and a differ",
    ),
}


@pytest.mark.parametrize(("prompts", "said"), WRONG_PROMPTS.values(), ids=WRONG_PROMPTS)
def test_prompts_that_cannot_be_asked_behind_one_video_are_refused(
    tmp_path: Path, prompts: dict[str, str], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        open_asked(make_llava_next_video(tmp_path), lambda wording: wording.yes_no(prompts))


def test_lists_that_an_answer_cannot_hold_or_end_are_refused(tmp_path: Path) -> None:
    folder = make_llava_next_video(tmp_path)
    with pytest.raises(SettingsError, match=r"new_tokens must hold the longest.*'suction, suction tube.* takes 7"):
        open_asked(folder, ask_list(new_tokens=6))
    make_llava_onevision(tmp_path / "endless", more_words=ANSWERS)
    with pytest.raises(UnsupportedModelError, match=r"must be able to end.*eos_token_id"):
        open_asked(tmp_path / "endless", ask_list())


def test_spellings_and_lists_are_found_where_a_tokenizer_marks_spaces_itself(tmp_path: Path) -> None:
    """Metaspace, as LLaVA's Llama: a word is another token at the beginning, behind a space and in capitals."""
    folder = make_llava_next_video(tmp_path)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "<video>"]
    text = [f"{PROMPTS['long']} {one}" for one in ("yes", "Yes", "No", "no", *LISTS)] * 3 + ["yesterday no"] * 9
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=300, special_tokens=special))
    tokenizer.save(str(folder / "tokenizer.json"))
    change_config(folder, {"text_config": {"vocab_size": tokenizer.get_vocab_size()}})
    inputs = open_inputs(folder, prompt="<video>", frames=4, resize="model")
    wording = Wording(inputs)
    asked = wording.yes_no(PROMPTS)
    spelled = [{tokenizer.id_to_token(one) for one in ids} for ids in (asked.yes, asked.no)]
    assert [{one.strip("▁").lower() for one in own} for own in spelled] == [{"yes"}, {"no"}]
    assert {"▁yes", "▁Yes"} <= spelled[0]
    lists = wording.activity_list(QUESTION, LISTS, name="prompt", new_tokens=40)
    assert [wording.text(one) for one in lists.lists] == list(LISTS)


@pytest.mark.parametrize("end", [10_000, -1, "</s>", [5, True]], ids=str)
def test_an_end_token_that_the_model_does_not_have_is_refused(tmp_path: Path, end: object) -> None:
    folder = MAKERS["smolvlm"](tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    with pytest.raises(UnsupportedModelError, match=r"end token \(eos_token_id\) must be one of the model's"):
        open_asked(folder, ask_list())


def test_a_model_without_words_or_without_an_output_layer_is_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from tests.tiny_models import make_llava_next_video as without_answers

    with pytest.raises(UnsupportedModelError, match=r"must have 'yes' as one token"):
        open_asked(without_answers(tmp_path / "words"), ask_yes_no)
    folder = make_llava_next_video(tmp_path / "head")
    weights = load_file(folder / "model.safetensors")
    kept = {name: one for name, one in weights.items() if "lm_head" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFoundError, match=r"must hold lm_head\.weight of shape"):
        open_asked(folder, ask_yes_no)
