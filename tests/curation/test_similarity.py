"""Similarity and aesthetics: CLIP's numbers equal open_clip's, heads in both published formats, ConSE on real film."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_open_clip
import torch
from camera_moves import film_frames
from PIL import Image

from curation.aesthetic import LaionAesthetic
from curation.clip import ClipSimilarity, caption_similarity, preprocess
from curation.compat import ensure_torchvision
from curation.conse import ConseSimilarity
from curation.errors import CannotScore
from curation.weights import WeightsUnavailable

TEXTS = ["a bicycle in a street", "a cartoon rabbit on a meadow", ""]


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return [
        film_frames("bikes.mp4", 1)[0],
        film_frames("bigbuckbunny.mp4", 1)[0],
        film_frames("carphone_pristine.mp4", 1)[0],
    ]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_open_clip.folder(tmp_path_factory.mktemp("clip") / "model", tiny_open_clip.CLIP)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_clip_equals_open_clip_on_the_same_weights(tmp_path: Path, frames: list[np.ndarray], safe: bool) -> None:
    ensure_torchvision()
    import open_clip

    path = tiny_open_clip.folder(tmp_path / "model", tiny_open_clip.CLIP, safe=safe)
    reference, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{path}")
    reference.eval()
    clip = ClipSimilarity(weights=[path], batch=2)
    with torch.inference_mode():
        pictures = torch.stack([preprocess(Image.fromarray(frame)) for frame in frames])
        images = reference.encode_image(pictures, normalize=True).numpy()
        texts = reference.encode_text(open_clip.tokenize(TEXTS), normalize=True).numpy()
    assert np.abs(clip.embed_texts(TEXTS) - texts).max() < 1e-5
    assert np.abs(clip.embed_images(frames) - images).max() < 5e-3  # 8-bit rounding of the bicubic
    assert clip.dimension == 48
    assert np.allclose(np.linalg.norm(clip.embed_images(frames), axis=1), 1, atol=1e-5)


def test_preprocessing_equals_open_clips(published: Path, frames: list[np.ndarray]) -> None:
    import open_clip

    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{published}")
    clip = ClipSimilarity(weights=[published])
    for frame in [*frames, np.ascontiguousarray(frames[0][:, :100])]:
        found = clip._pictures(frame)[0].numpy()
        expected = preprocess(Image.fromarray(frame)).numpy()
        assert np.abs(found - expected).max() < 2.5 / 255 / 0.26  # at most one grey level or two
        assert np.abs(found - expected).mean() < 0.25 / 255 / 0.26


def test_preprocessing_reduces_a_film_of_three_to_two_to_the_same_width() -> None:
    ensure_torchvision()
    import open_clip

    noise = np.random.default_rng(0).integers(0, 256, (480, 720, 3)).astype(np.uint8)
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    expected = open_clip.image_transform(336, is_train=False, mean=mean, std=std, resize_mode="shortest")
    found = preprocess(noise, 336, mean, std, "cpu")[0].numpy()  # in floating point 720 * (336 / 480) is below 504
    assert np.abs(found - expected(Image.fromarray(noise)).numpy()).mean() < 0.5 / 255 / 0.5


def test_clip_reads_a_torchscript_archive_as_openai_publishes(tmp_path: Path, published: Path) -> None:
    import open_clip

    reference = open_clip.create_model(f"local-dir:{published}").eval()
    open_clip.add_model_config(_config(tmp_path, "tiny-clip"))
    archive = torch.jit.script(_Parameters(reference.state_dict()))
    archive.save(str(tmp_path / "ViT.pt"))
    clip = ClipSimilarity(weights=[tmp_path / "ViT.pt"], architecture="tiny-clip")
    with torch.inference_mode():
        expected = reference.encode_text(open_clip.tokenize(TEXTS), normalize=True).numpy()
    assert np.abs(clip.embed_texts(TEXTS) - expected).max() < 2e-3  # the archive holds half precision


def _config(folder: Path, name: str) -> Path:
    import json

    path = folder / f"{name}.json"
    path.write_text(json.dumps(tiny_open_clip.CLIP))
    return path


class _Parameters(torch.nn.Module):
    """A module tree whose state dict is the given one in half precision, with OpenAI's three extra buffers."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for extra, value in (("input_resolution", 64), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(extra, torch.tensor(value))
        for name, value in state.items():
            module: torch.nn.Module = self
            *parents, last = name.split(".")
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, torch.nn.Module())
                module = getattr(module, parent)
            module.register_buffer(last, value.half())

    def forward(self) -> int:
        return 0


def test_clip_refuses_weights_of_another_architecture(published: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="does not hold the weights of open_clip's ViT-B-32"):
        ClipSimilarity(weights=[published / "open_clip_model.safetensors"], architecture="ViT-B-32")


def test_clip_refuses_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="not a model folder of open_clip"):
        ClipSimilarity(weights=[tmp_path])


def test_a_stamp_is_refused_and_a_strip_is_taken(published: Path) -> None:
    clip = ClipSimilarity(weights=[published])
    with pytest.raises(CannotScore) as caught:
        clip.embed_images([np.zeros((16, 16, 3), np.uint8)])
    assert caught.value.reason == "too_small"
    assert np.isfinite(clip.embed_images([np.zeros((64, 256, 3), np.uint8)])).all()


def test_conse_puts_films_nearer_to_their_own_description(conse: ConseSimilarity) -> None:
    films = [film_frames("bikes.mp4", 4, step=60)[1:], film_frames("bigbuckbunny.mp4", 3, step=40)]
    images = np.stack([conse.embed_images(film).mean(axis=0) for film in films])
    captions = conse.embed_texts(["a bicycle parked in a city street", "a rabbit, an animal outdoors in the grass"])
    similarity = caption_similarity(images, captions)
    assert similarity[0, 0] > similarity[0, 1]
    assert similarity[1, 1] > similarity[1, 0]


def test_conse_class_probabilities_are_those_of_a_trained_classifier(conse: ConseSimilarity) -> None:
    """The man in the car wears a suit and a tie; wrong normalisation or key order would not know."""
    from curation.conse import imagenet_names

    names = imagenet_names()
    probabilities = conse.class_probabilities([film_frames("carphone_pristine.mp4", 1)[0]])[0]
    assert probabilities.sum() == pytest.approx(1, abs=1e-4)
    assert {names[k] for k in np.argsort(-probabilities)[:2]} == {"Windsor tie", "suit"}


def test_conse_text_vectors_order_sentences(conse: ConseSimilarity) -> None:
    vectors = conse.embed_texts(
        ["a dog runs on the beach", "a puppy is running along the sea shore", "tax law of 1998"]
    )
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > 0.6 > 0.3 > vectors[0] @ vectors[2]
    assert conse.embed_texts([]).shape == (0, 384)


def test_conse_is_not_called_clip(conse: ConseSimilarity) -> None:
    assert "clip" not in conse.name
    assert "efficientnet" in conse.name
    assert "minilm" in conse.name
    with pytest.raises(CannotScore):
        conse.embed_images([np.zeros((16, 16, 3), np.uint8)])


def linear_head(path: Path, dimension: int) -> torch.nn.Linear:
    torch.manual_seed(1)
    head = torch.nn.Linear(dimension, 1)
    torch.save(head.state_dict(), path)
    return head


@pytest.mark.parametrize("dimension", [512, 768])
def test_linear_head_in_its_published_format(tmp_path: Path, dimension: int) -> None:
    head = linear_head(tmp_path / "sa_0_4.pth", dimension)
    values = np.random.default_rng(0).normal(size=(5, dimension)).astype(np.float32)
    expected = head(torch.nn.functional.normalize(torch.from_numpy(values), dim=-1))[:, 0].detach().numpy()
    found = LaionAesthetic(weights=[tmp_path / "sa_0_4.pth"])
    assert found.score(values) == pytest.approx(expected, abs=1e-5)
    assert found.score(values.astype(np.float16)) == pytest.approx(expected, abs=2e-3)
    assert found.name.startswith(f"laion_linear_{dimension}d@")


def test_mlp_head_in_its_published_format(tmp_path: Path) -> None:
    torch.manual_seed(1)
    layers = torch.nn.Sequential(
        torch.nn.Linear(768, 1024),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(1024, 128),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(128, 64),
        torch.nn.Dropout(0.1),
        torch.nn.Linear(64, 16),
        torch.nn.Linear(16, 1),
    ).eval()
    torch.save({f"layers.{k}": v for k, v in layers.state_dict().items()}, tmp_path / "mlp.pth")
    values = torch.nn.functional.normalize(torch.randn(4, 768), dim=-1)
    found = LaionAesthetic(weights=[tmp_path / "mlp.pth"])
    assert found.score(values.numpy()) == pytest.approx(layers(values)[:, 0].detach().numpy(), abs=1e-5)
    assert found.name.startswith("laion_mlp_768d@")


def test_a_head_refuses_embeddings_of_another_model(tmp_path: Path) -> None:
    linear_head(tmp_path / "head.pth", 768)
    with pytest.raises(ValueError, match="length 768"):
        LaionAesthetic(weights=[tmp_path / "head.pth"]).score(np.zeros((2, 512), np.float32))


def test_a_head_refuses_another_file(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1, 4)}, tmp_path / "head.pth")
    with pytest.raises(WeightsUnavailable, match="neither LAION's linear head nor its MLP"):
        LaionAesthetic(weights=[tmp_path / "head.pth"])


def test_reading_weights_never_runs_code_from_them(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return (sys.exit, (3,))

    torch.save({"weight": Attack()}, tmp_path / "head.pth")
    with pytest.raises(WeightsUnavailable, match="is not a file of weights"):
        LaionAesthetic(weights=[tmp_path / "head.pth"])
