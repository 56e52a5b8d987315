"""Captioners on small checkpoints in the published layouts: equal to the reference code, and errors where none can be
had."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_open_clip
import torch
from camera_moves import film_frames

from curation.captions import CocaCaptioner, checked_caption
from curation.compat import ensure_torchvision
from curation.errors import CannotScore
from curation.videoblip import VideoBlipCaptioner
from curation.weights import WeightsUnavailable

STAMP = np.zeros((16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return list(film_frames("bikes.mp4", 6, step=40))


@pytest.fixture(scope="module")
def coca_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_open_clip.folder(tmp_path_factory.mktemp("coca") / "model", tiny_open_clip.COCA, safe=False)


def test_coca_writes_what_open_clip_writes(
    coca_folder: Path, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """open_clip's own `generate` at top_k = 1, with the name that it misses in transformers 5 put back."""
    from open_clip import coca_model
    from transformers import LogitsProcessorList, MinLengthLogitsProcessor, StoppingCriteriaList, TopKLogitsWarper
    from transformers.generation import MaxLengthCriteria, RepetitionPenaltyLogitsProcessor

    captioner = CocaCaptioner(weights=[coca_folder], batch=4)
    for name, value in {
        "_has_transformers": True,
        "LogitsProcessorList": LogitsProcessorList,
        "MinLengthLogitsProcessor": MinLengthLogitsProcessor,
        "StoppingCriteriaList": StoppingCriteriaList,
        "MaxLengthCriteria": MaxLengthCriteria,
        "RepetitionPenaltyLogitsProcessor": RepetitionPenaltyLogitsProcessor,
        "GENERATION_TYPES": {"top_k": TopKLogitsWarper},
    }.items():
        monkeypatch.setattr(coca_model, name, value, raising=False)
    pictures = torch.cat([_pictures(captioner, frame) for frame in frames])
    with torch.inference_mode():
        expected = captioner._model.generate(pictures, seq_len=12, generation_type="top_k", top_k=1).tolist()
    captioner._max_tokens = 12
    found = captioner._batches.map(captioner._generate, frames)
    for mine, theirs in zip(found, expected, strict=True):
        body = [token for token in theirs[1:] if token not in (49407, 0)]
        assert mine == body


def _pictures(captioner: CocaCaptioner, frame: np.ndarray) -> torch.Tensor:
    from curation.clip import preprocess

    return preprocess(frame, captioner._size_px, captioner._mean, captioner._std, captioner._device)


def test_coca_batches_do_not_change_a_caption(coca_folder: Path, frames: list[np.ndarray]) -> None:
    one, many = (CocaCaptioner(weights=[coca_folder], batch=size, max_tokens=10) for size in (1, 4))
    assert one._batches.map(one._generate, frames) == many._batches.map(many._generate, frames)


def test_coca_answers_per_frame_and_refuses_a_stamp(coca_folder: Path, frames: list[np.ndarray]) -> None:
    captioner = CocaCaptioner(weights=[coca_folder], max_tokens=8)
    strip = np.zeros((64, 256, 3), np.uint8)
    answers = captioner.caption([STAMP, frames[0], strip])
    assert isinstance(answers[0], CannotScore)
    assert answers[0].reason == "too_small"
    assert len(answers) == 3
    assert captioner.name.endswith("_greedy")


def test_coca_refuses_a_clip_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text decoder"):
        CocaCaptioner(weights=[tiny_open_clip.folder(tmp_path / "model", tiny_open_clip.CLIP)])


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("<start_of_text>a man on a bike . <end_of_text>", "a man on a bike"),
        ("  two   dogs\nplay ", "two dogs play"),
    ],
)
def test_markers_and_space_are_taken_out(text: str, caption: str) -> None:
    assert checked_caption(text) == caption


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "empty_caption"), ("<start_of_text> . ", "empty_caption"), ("dog " * 12, "degenerate_caption")],
)
def test_what_is_no_caption_is_an_error(text: str, reason: str) -> None:
    answer = checked_caption(text)
    assert isinstance(answer, CannotScore)
    assert answer.reason == reason


def video_blip_folder(at: Path, language: str) -> Path:
    """A VideoBLIP checkpoint as published: BLIP-2's parameter names, a tokenizer without image token, .bin weights."""
    ensure_torchvision()
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessor,
        OPTConfig,
        PreTrainedTokenizerFast,
        T5Config,
    )

    prompt = ["Question", ":", "What", "is", "happening", "in", "the", "video", "?", "Answer"]
    words = ["<pad>", "<s>", "</s>", "<unk>", *prompt]
    words += [f"w{k}" for k in range(200 - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(at)
    vision = Blip2VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    qformer = Blip2QFormerConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        encoder_hidden_size=32,
        vocab_size=200,
    )
    text: Any
    if language == "opt":
        text = OPTConfig(
            vocab_size=200,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            word_embed_proj_dim=32,
        )
    else:
        text = T5Config(
            vocab_size=200,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
            pad_token_id=0,
        )
    config = Blip2Config(
        vision_config=vision.to_dict(), qformer_config=qformer.to_dict(), text_config=text.to_dict(), num_query_tokens=4
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.query_tokens)  # zero in a fresh model, never in a trained one
    for name, parameter in model.named_parameters():
        if "language_model" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.config.save_pretrained(at)
    settings = json.loads((at / "config.json").read_text())
    settings["architectures"] = ["VideoBlipForConditionalGeneration"]
    settings.pop("image_token_index", None)
    (at / "config.json").write_text(json.dumps(settings))
    torch.save(model.state_dict(), at / "pytorch_model.bin")
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(at)
    return at


@pytest.fixture(scope="module", params=["opt", "t5"])
def video_blip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_blip_folder(tmp_path_factory.mktemp("videoblip") / request.param, request.param)


def test_one_frame_equals_blip2_and_frames_are_attended_together(video_blip: Path, frames: list[np.ndarray]) -> None:
    captioner = VideoBlipCaptioner(weights=[video_blip])
    with torch.inference_mode():
        pixels = captioner._pixels([frames[:3], frames[3:]])
        assert pixels.shape == (2, 3, 3, 32, 32)
        single = captioner._language_inputs(pixels[:, :1])
        reference = captioner._model.get_image_features(pixels[:, 0]).pooler_output
        assert torch.allclose(single, reference, atol=1e-5)
        # VideoBLIP: the Q-Former sees the tokens of all frames at once (reference: flatten, encode, concatenate).
        encoded = [captioner._model.vision_model(pixels[:, k]).last_hidden_state for k in range(3)]
        query = captioner._model.qformer(
            query_embeds=captioner._model.query_tokens.expand(2, -1, -1), encoder_hidden_states=torch.cat(encoded, 1)
        ).last_hidden_state
        assert torch.allclose(
            captioner._language_inputs(pixels), captioner._model.language_projection(query), atol=1e-5
        )
        assert not torch.allclose(captioner._language_inputs(pixels), single, atol=1e-2)


def test_batched_clips_answer_like_single_ones(video_blip: Path, frames: list[np.ndarray]) -> None:
    clips = [frames[:4], frames[2:6], frames[1:5]]
    together = VideoBlipCaptioner(weights=[video_blip], max_tokens=5, batch=3)
    alone = VideoBlipCaptioner(weights=[video_blip], max_tokens=5, batch=1)
    assert together._batches.map(together._answer, clips) == alone._batches.map(alone._answer, clips)


def test_video_blip_refuses_what_is_no_clip(video_blip: Path, frames: list[np.ndarray]) -> None:
    captioner = VideoBlipCaptioner(weights=[video_blip], max_tokens=4)
    answers = captioner.caption([frames[:1], [STAMP, STAMP], frames[:3]])
    assert [a.reason for a in answers[:2] if isinstance(a, CannotScore)] == ["too_short", "too_small"]
    assert len(answers) == 3
    assert captioner.name in ("videoblip_opt", "videoblip_t5")


def test_a_checkpoint_that_lacks_parameters_is_refused_not_filled_up(tmp_path: Path) -> None:
    folder = video_blip_folder(tmp_path / "model", "opt")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state.pop("language_projection.weight")
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(WeightsUnavailable, match=r"lacks 1 parameters.*language_projection\.weight"):
        VideoBlipCaptioner(weights=[folder])


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="is not a VideoBLIP checkpoint"):
        VideoBlipCaptioner(weights=[tmp_path])
