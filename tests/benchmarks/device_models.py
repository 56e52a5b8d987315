"""What the models cost on a GPU, each at its published size with random weights, as a stage calls them.

    python -m tests.benchmarks.device_models                                # on the first GPU
    python -m tests.benchmarks.device_models --device cpu --size tiny       # that this command works

Random weights cost what trained ones cost; nothing that they say is kept. Two models cost more than trained ones would:
VideoBLIP never ends a caption before its longest, and the merging model's answers are refused, so that each is written
a second time with beams.

Printed per model: clips a second in bf16 and in fp32; peak memory; the largest difference between the two in what the
model gives (scores; of the captioners: what the language model is handed, in units of its deviation; of the merging
model: nats a token); and the share of the stage's time that goes into the model when one core decodes for it. Models of
key frames are sent these and decode nothing.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np
import torch

from curation.clip_frames import sample_clip
from curation.compat import ensure_torchvision
from tests.benchmarks.model_stages import RATE_FPS, at, shots
from tests.curation import tiny_language_model, tiny_open_clip, tiny_video_blip

CLIP_S = 4
PAIRS = [("a dog sits on the grass", "a dog runs after a ball"), ("a red car", "a car drives up a hill")]


@dataclass(frozen=True)
class Row:
    """One model: `make` builds it, `run` does the clips' work, `told` is what bf16 and fp32 are compared by."""

    name: str
    make: Callable[[], Any]
    run: Callable[[Any], object]
    told: Callable[[Any], np.ndarray]
    decode_s: float = 0.0  # of one core, per clip


def clips(count: int) -> list[bytes]:
    """Clips of four seconds of the packaged films."""
    made = []
    for shot in shots():
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as out:
            stream = out.add_stream("libx264", rate=RATE_FPS, options={"preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = shot[0].shape[1], shot[0].shape[0], "yuv420p"
            for k in range(CLIP_S * RATE_FPS):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(at(shot, k / RATE_FPS), format="rgb24")))
            out.mux(stream.encode())
        made.append(buffer.getvalue())
    return [made[k % len(made)] for k in range(count)]


def rows(folder: Path, device: str, tiny: bool, count: int) -> Iterator[Row]:
    """Every model that can use a GPU. Checkpoints are written under `folder` one at a time."""
    from torchvision.models.optical_flow import raft_large, raft_small

    from curation.aesthetic import LaionAesthetic
    from curation.caption_merge import CaptionMerger
    from curation.captions import CocaCaptioner
    from curation.clip import ClipSimilarity, preprocess
    from curation.conse import ConseSimilarity
    from curation.farneback_torch import FarnebackTorchMotion
    from curation.nsfw import OpenNsfw
    from curation.raft import RaftMotion
    from curation.rife import RifeMotion
    from curation.text_area import CraftTextArea
    from curation.videoblip import VideoBlipCaptioner

    data = clips(count)
    began = time.process_time()
    films = [sample_clip(each, *((0.5, 128) if tiny else (2.0, 450))) for each in data]
    decode_s = (time.process_time() - began) / count
    keys = [frame for frames, _ in films for frame in (frames[0], frames[len(frames) // 2], frames[-1])]
    blip = [list(frames) for frames, _ in films]

    def motion(name: str, make: Callable[[], Any], decode: bool) -> Row:
        score = lambda model: [result.score for result in model.score_many(films)]  # noqa: E731
        return Row(name, make, score, lambda model: np.array(score(model)), decode_s if decode else 0.0)

    yield motion("farneback_torch", lambda: FarnebackTorchMotion(device=device), False)
    yield motion("rife", lambda: RifeMotion(device=device, batch=8 if tiny else 64), False)
    for size, build in () if tiny else (("small", raft_small), ("large", raft_large)):  # it has no tiny size
        file = folder / f"raft_{size}.pth"
        torch.save(build(weights=None).state_dict(), file)

        def raft(size: Any = size, file: Path = file) -> RaftMotion:
            return RaftMotion(weights=[file], size=size, device=device)

        yield motion(f"raft_{size}", raft, True)
        file.unlink()
    embed = lambda model: model.embed_images(keys)  # noqa: E731
    yield Row("conse", lambda: ConseSimilarity(device=device), embed, embed)
    clip = _open_clip(folder / "clip", "ViT-L-14-quickgelu", tiny_open_clip.CLIP, tiny)
    yield Row("clip ViT-L/14", lambda: ClipSimilarity(weights=[clip], device=device), embed, embed)
    head = folder / "linear.pth"
    torch.save(torch.nn.Linear(768, 1).state_dict(), head)
    embedded = np.random.default_rng(0).normal(size=(len(keys), 768)).astype(np.float32)
    score = lambda model: model.score(embedded)  # noqa: E731
    yield Row("laion linear", lambda: LaionAesthetic(weights=[head], device=device), score, score)
    score_frames = lambda model: model.score(keys)  # noqa: E731
    yield Row("open_nsfw", lambda: OpenNsfw(device=device), score_frames, score_frames)
    some = keys[: 3 if tiny else None]
    yield Row("craft", lambda: CraftTextArea(device=device), lambda m: m.ratio(some), lambda m: m.ratio(some))
    coca = _open_clip(folder / "coca", "coca_ViT-L-14", tiny_open_clip.COCA, tiny)

    def seen(model: Any) -> np.ndarray:
        pictures = [preprocess(f, model._size_px, model._mean, model._std, model._device) for f in keys[1:7:3]]
        half = model._device.type == "cuda" and torch.bfloat16 is not torch.float32
        with torch.inference_mode(), torch.autocast(model._device.type, torch.bfloat16, enabled=half):
            return _deviations(model._model._encode_image(torch.cat(pictures))[1])

    yield Row(
        "coca ViT-L/14", lambda: CocaCaptioner(weights=[coca], device=device), lambda m: m.caption(keys[1::3]), seen
    )
    folder_of = tiny_video_blip.folder(folder / "videoblip", "opt", None if tiny else tiny_video_blip.PUBLISHED)

    def heard(model: Any) -> np.ndarray:
        with torch.inference_mode():
            return _deviations(model._language_inputs(model._pixels(blip[:2])))

    videoblip = lambda: VideoBlipCaptioner(weights=[folder_of], device=device)  # noqa: E731
    yield Row("videoblip opt-2.7b", videoblip, lambda m: m.caption(blip), heard, decode_s)
    language = tiny_language_model.folder(folder / "language", None if tiny else tiny_language_model.QWEN_1_5B)
    pairs = [PAIRS[k % 2] for k in range(count)]
    yield Row(
        "merging, 1.5B",
        lambda: CaptionMerger(weights=[language], device=device),
        lambda m: m.merge(pairs),
        lambda m: np.array(m.surprise([text for pair in PAIRS for text in pair])),
    )


def _open_clip(at: Path, architecture: str, small: dict[str, Any], tiny: bool) -> Path:
    """A folder in open_clip's layout; of the published size as open_clip's own configuration says."""
    import open_clip

    return tiny_open_clip.folder(at, small if tiny else open_clip.get_model_config(architecture))


def _deviations(hidden: torch.Tensor) -> np.ndarray:
    """Hidden states in units of their standard deviation."""
    hidden = hidden.float()
    return (hidden / hidden.std()).cpu().numpy()


@contextmanager
def float32_for_bfloat16() -> Iterator[None]:
    """Models that are made and run in here use float32 where they choose bf16 on a GPU."""
    with mock.patch.object(torch, "bfloat16", torch.float32):
        yield


def measure(row: Row, device: str) -> tuple[float, float, np.ndarray]:
    """(wall seconds of the second run, peak GB, what is compared) of a fresh model."""
    on_gpu = device.startswith("cuda")
    model = row.make()
    row.run(model)  # the first run sets kernels up
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    row.run(model)
    if on_gpu:
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    memory = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else float("nan")
    told = np.asarray(row.told(model), np.float64)
    del model
    if on_gpu:
        torch.cuda.empty_cache()
    return took, memory, told


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("published", "tiny"), default="published")
    parser.add_argument("--clips", type=int, help="64 by default; 3 of the tiny ones")
    asked = parser.parse_args(argv)
    tiny = asked.size == "tiny"
    count = asked.clips or (3 if tiny else 64)
    ensure_torchvision()
    print(f"{count} clips of {CLIP_S} s on {asked.device}, {asked.size} sizes")
    print(f"{'model':20s} {'clips/s bf16':>12s} {'fp32':>8s} {'GB':>6s} {'difference':>11s} {'model share':>12s}")
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(Path(folder), asked.device, tiny, count):
            quick, memory, first = measure(row, asked.device)
            with float32_for_bfloat16():
                slow, _, second = measure(row, asked.device)
            share = quick / (quick + count * row.decode_s)
            print(
                f"{row.name:20s} {count / quick:12.1f} {count / slow:8.1f} {memory:6.2f} "
                f"{np.abs(first - second).max():11.4f} {share:12.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
