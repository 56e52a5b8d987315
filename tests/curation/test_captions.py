"""Captioners on small checkpoints in the published layouts: equal to the reference code, and errors where none can be
had."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_open_clip
import tiny_video_blip
import torch
from camera_moves import film_frames

from curation.captions import CocaCaptioner, checked_caption
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


def test_coca_writes_what_open_clip_writes_by_default(coca_folder: Path, frames: list[np.ndarray]) -> None:
    """open_clip's `generate` as it is called without arguments: six beams in three groups."""
    captioner = CocaCaptioner(weights=[coca_folder], batch=4, max_tokens=14)
    with torch.no_grad():  # else no caption of a random model ends
        captioner._model.text_decoder.text_projection[:, 49407] *= 8
    pictures = torch.cat([_pictures(captioner, frame) for frame in frames])
    with torch.inference_mode():
        expected = captioner._model.generate(pictures, seq_len=14, pad_token_id=0).tolist()
    found = captioner._batches.map(captioner._generate, frames)
    assert {len(each) for each in found} != {13}
    for mine, theirs, picture in zip(found, expected, pictures, strict=True):
        assert mine == [token for token in theirs[1:] if token not in (49407, 0)]
        assert mine == _searched(captioner._model, picture[None], beams=2, longest=14)


def _searched(model: Any, picture: torch.Tensor, beams: int, longest: int) -> list[int]:
    """Beam search as the textbook has it, with open_clip's totals of logits and its minimum of five tokens."""
    start, end = 49406, 49407
    running, ended = [(0.0, [start])], []
    with torch.inference_mode():
        latent, embedded = model._encode_image(picture)
        while len(running[0][1]) < longest:
            following = []
            for total, tokens in running:
                text = torch.tensor([tokens])
                logits = model(None, text, image_latent=latent, image_embs=embedded, output_labels=False)["logits"][
                    0, -1
                ]
                if len(tokens) < 5:
                    logits[end] = -torch.inf
                best = logits.topk(2 * beams)
                following += [
                    (total + value, [*tokens, token])
                    for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
                ]
            following = sorted(following, key=lambda each: -each[0])[: 2 * beams]
            length = len(following[0][1])
            ended += [(total / length, tokens) for total, tokens in following[:beams] if tokens[-1] == end]
            ended = sorted(ended, key=lambda each: -each[0])[:beams]
            if len(ended) == beams and ended[-1][0] >= following[0][0] / length:
                break
            running = [each for each in following if each[1][-1] != end][:beams]
        else:
            ended += [(total / len(tokens), tokens) for total, tokens in running]
    return [token for token in max(ended)[1][1:] if token != end]


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
    assert captioner.name == "coca_vit_l_14"


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


@pytest.fixture(scope="module", params=["opt", "t5"])
def video_blip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_video_blip.folder(tmp_path_factory.mktemp("videoblip") / request.param, request.param)


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
    folder = tiny_video_blip.folder(tmp_path / "model", "opt")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state.pop("language_projection.weight")
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(WeightsUnavailable, match=r"lacks 1 parameters.*language_projection\.weight"):
        VideoBlipCaptioner(weights=[folder])


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="is not a VideoBLIP checkpoint"):
        VideoBlipCaptioner(weights=[tmp_path])
