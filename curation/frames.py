"""Decode once: the frames of one film by pts, small ones kept, so that cuts and motion share the work."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from av.video.frame import VideoFrame

from curation.decode import SKIPS, Skip, decode
from curation.probe import VideoInfo

PREVIEW_FPS = 1.0

# Kr and Kb of the YCbCr matrices by ffmpeg's colour-space number; BT.601 where a film does not say, as swscale does.
_LUMA_WEIGHTS = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593), 7: (0.212, 0.087)}
_PLANAR = {f"yuv{j}{layout}p": 0 for j in ("", "j") for layout in (420, 422, 444)}
_PLANAR |= {f"yuv{layout}p{bits}le": bits - 8 for layout in (420, 422, 444) for bits in (10, 12)}


class FilmFrames:
    """Frames of one film, by pts. Keeps the small version of what was decoded, up to `cache_bytes`.

    Attributes:
        decoded_frames: frames that came out of the decoder so far.
        damaged: numbers of those among the wanted ones in which the decoder found errors and made something up.
    """

    def __init__(
        self,
        info: VideoInfo,
        *,
        small_short_side_px: int = 90,
        preview_short_side_px: int | None = None,
        threads: int = 1,
        cache_bytes: int = 384 << 20,
    ) -> None:
        self.info = info
        self.threads = threads
        self.decoded_frames = 0
        self.damaged: set[int] = set()
        self.small_size = _fit(info.display_size, small_short_side_px)
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._waiting: dict[tuple[int, int | None], np.ndarray] = {}
        self._preview_size = None if preview_short_side_px is None else _fit(info.display_size, preview_short_side_px)
        self._preview_numbers = set(self._grid_numbers(PREVIEW_FPS).tolist()) if preview_short_side_px else set()
        self._previews: dict[int, bytes] = {}
        self._cache_frames = max(64, cache_bytes // (3 * self.small_size[0] * self.small_size[1]))

    def grid(self, rate_fps: float, start_pts: int | None = None, end_pts: int | None = None) -> np.ndarray:
        """Pts (int64, increasing) of the frames nearest to k / rate_fps seconds from the film's first frame.

        k counts from the film's start whatever the range, so the grids of 1, 2 and 4 fps nest.
        """
        pts = self.info.pts[self._grid_numbers(rate_fps)]
        low = pts[0] if start_pts is None else start_pts
        high = self.info.end_pts if end_pts is None else end_pts
        return pts[(pts >= low) & (pts < high)]

    def _grid_numbers(self, rate_fps: float) -> np.ndarray:
        times = self.info.times_s
        ticks = np.arange(int(np.floor(times[-1] * rate_fps + 0.5)) + 1) / rate_fps
        return np.unique(self._nearest(times, ticks))

    def small(self, pts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Small frames nearest to the given pts.

        Args:
            pts: wanted pts, in any order.

        Returns:
            (pts actually used (N,) int64, RGB uint8 (N, h, w, 3)), upright, square pixels. Damaged frames are
            replaced by the nearest readable one of the request.
        """
        numbers = self._nearest(self.info.pts, np.asarray(pts, dtype=np.int64))
        missing = np.array([n for n in np.unique(numbers) if int(n) not in self._cache], dtype=np.int64)
        fresh: dict[int, np.ndarray] = {}
        if len(missing):
            wanted = set(missing.tolist())
            for number, frame in self._decode(missing, "nothing", loop_filter=True):
                if number in wanted:
                    fresh[number] = self._shrink(frame)
        have = {int(n): self._cache[int(n)] for n in numbers if int(n) in self._cache} | fresh
        self._keep(fresh)
        if not have:
            blank = np.zeros((0, self.small_size[1], self.small_size[0], 3), np.uint8)
            return np.zeros(0, np.int64), blank
        known = np.array(sorted(have))
        used = known[self._nearest(self.info.pts[known], self.info.pts[numbers])]
        return self.info.pts[used], np.stack([have[int(n)] for n in used])

    def full(self, pts: Sequence[int], *, short_side_px: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """(pts, RGB uint8 (H, W, 3)) of the frames nearest to `pts`, upright, in presentation order, one pass."""
        numbers = np.unique(self._nearest(self.info.pts, np.asarray(list(pts), dtype=np.int64)))
        missing = np.array([n for n in numbers if (int(n), short_side_px) not in self._waiting], dtype=np.int64)
        wanted = set(missing.tolist())
        queue = iter(numbers.tolist())
        upcoming = next(queue, None)
        for number, frame in self._decode(missing, "nothing", loop_filter=True):
            while upcoming is not None and upcoming <= number:
                if (upcoming, short_side_px) in self._waiting:
                    yield int(self.info.pts[upcoming]), self._waiting.pop((upcoming, short_side_px))
                upcoming = next(queue, None)
            if number in wanted:
                yield int(self.info.pts[number]), self._upright(frame, short_side_px)
        while upcoming is not None:
            if (upcoming, short_side_px) in self._waiting:
                yield int(self.info.pts[upcoming]), self._waiting.pop((upcoming, short_side_px))
            upcoming = next(queue, None)

    def stream(
        self, *, size: tuple[int, int] | None = None, numbers: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(frame number, RGB uint8 (h, w, 3)) of the frames `numbers` (all), at `size` (width, height), in one pass.

        The size need not keep the aspect. Nothing is kept.
        """
        wanted = None if numbers is None else set(np.asarray(numbers).tolist())
        everything = np.arange(self.info.frames) if numbers is None else np.asarray(numbers)
        for number, frame in self._decode(everything, "nothing", loop_filter=True):
            if wanted is None or number in wanted:
                yield number, self._shrink(frame, size)

    def draft(
        self,
        numbers: np.ndarray,
        skip: np.ndarray,
        resume_at: Callable[[], int] | None = None,
        *,
        keep_small: bool = True,
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Decode quickly, for small pictures: one pass that reaches the frames `numbers`, without loop filter.

        With `keep_small`, frames of the 2 fps grid are decoded too, and kept small, so that motion needs no second
        decode where the cuts have looked. `skip`, `resume_at`: see `decode`; positions in SKIPS.
        """
        grid = self._grid_numbers(2.0) if keep_small else np.zeros(0, np.int64)
        on_grid = set(grid.tolist())
        skip = skip.copy()
        skip[grid] = SKIPS.index("nothing")
        skip = complete(self.info, skip)
        for number, frame in self._decode(numbers, skip, loop_filter=False, resume_at=resume_at):
            if number in on_grid and number not in self._cache:
                self._keep({number: self._shrink(frame)})
                self._see(number, frame)
            yield number, frame

    def keyframes(self) -> Iterator[tuple[int, VideoFrame]]:
        """The film's key frames, and no others, in one pass; nothing is kept."""
        keys = np.flatnonzero(self.info.keyframe)
        wanted = set(keys.tolist())
        for number, frame in self._decode(keys, "nonkey", loop_filter=False):
            if number in wanted:
                yield number, frame

    def exact(self, numbers: np.ndarray) -> Iterator[tuple[int, VideoFrame]]:
        """Exactly the frames `numbers` in one pass, without loop filter; nothing is kept."""
        wanted = set(np.asarray(numbers).tolist())
        skip = least(self.info)
        skip[np.asarray(numbers, dtype=np.int64)] = SKIPS.index("nothing")
        for number, frame in self._decode(numbers, complete(self.info, skip), loop_filter=False):
            if number in wanted:
                yield number, frame

    def prefetch(
        self,
        small_pts: np.ndarray,
        full_pts: Sequence[int],
        short_side_px: int | None,
        *,
        loop_filter: bool = True,
    ) -> None:
        """One forward pass for later `small(small_pts)` and `full(full_pts, short_side_px=...)` calls.

        Frames that nothing asks for and no other frame refers to are not decoded. Full frames wait here until they
        are asked for, once; ask for no more than memory holds. `loop_filter=False` is faster and leaves block edges,
        which do not show in small pictures.
        """
        small = self._nearest(self.info.pts, np.asarray(small_pts, dtype=np.int64))
        full = self._nearest(self.info.pts, np.asarray(list(full_pts), dtype=np.int64))
        want_small = {int(n) for n in small if int(n) not in self._cache}
        want_full = {int(n) for n in full if (int(n), short_side_px) not in self._waiting}
        fresh: dict[int, np.ndarray] = {}
        wanted = np.array(sorted(want_small | want_full), dtype=np.int64)
        skip = np.full(self.info.frames, SKIPS.index("nonref"), np.int8)
        skip[wanted] = SKIPS.index("nothing")
        for number, frame in self._decode(wanted, skip, loop_filter=loop_filter):
            if number in want_small:
                fresh[number] = self._shrink(frame)
                self._see(number, frame)
            if number in want_full:
                self._waiting[number, short_side_px] = self._upright(frame, short_side_px)
        self._keep(fresh)

    def preview(self, start_pts: int, end_pts: int) -> bytes | None:
        """JPEG of the frame nearest to the middle of the range, among those that were decoded at 1 fps.

        None if none was decoded for another purpose, or previews were not asked for. What lies before `end_pts` is
        then forgotten.
        """
        pts = {number: int(self.info.pts[number]) for number in self._previews}
        inside = [number for number, at in pts.items() if start_pts <= at < end_pts]
        best = min(inside, key=lambda number: (abs(2 * pts[number] - start_pts - end_pts), number), default=None)
        found = None if best is None else self._previews[best]
        self._previews = {number: each for number, each in self._previews.items() if pts[number] >= end_pts}
        return found

    def _see(self, number: int, frame: VideoFrame) -> None:
        if self._preview_size is not None and number in self._preview_numbers:
            self._previews[number] = jpeg(self._shrink(frame, self._preview_size))

    def _decode(
        self,
        numbers: np.ndarray,
        skip: Skip | np.ndarray,
        *,
        loop_filter: bool,
        resume_at: Callable[[], int] | None = None,
    ) -> Iterator[tuple[int, VideoFrame]]:
        for number, frame in decode(
            self.info,
            numbers,
            skip=skip,
            loop_filter=loop_filter,
            threads=self.threads,
            resume_at=resume_at,
        ):
            self.decoded_frames += 1
            if frame.is_corrupt and number in numbers:
                self.damaged.add(number)
            yield number, frame

    def _keep(self, fresh: dict[int, np.ndarray]) -> None:
        self._cache.update(fresh)
        while len(self._cache) > self._cache_frames:
            self._cache.popitem(last=False)

    @staticmethod
    def _nearest(sorted_values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        right = np.clip(np.searchsorted(sorted_values, wanted), 1, max(1, len(sorted_values) - 1))
        if len(sorted_values) == 1:
            return np.zeros(len(wanted), dtype=np.int64)
        closer_left = wanted - sorted_values[right - 1] <= sorted_values[right] - wanted
        return right - closer_left

    def _upright(self, frame: VideoFrame, short_side_px: int | None) -> np.ndarray:
        width, height = _fit(self.info.display_size, short_side_px)
        if self.info.rotation in (90, 270):
            width, height = height, width
        rgb = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
        return _turned(rgb, self.info)

    def _shrink(self, frame: VideoFrame, size: tuple[int, int] | None = None) -> np.ndarray:
        """Upright RGB at `size` (the small size). Planes are shrunk before they become RGB: faster than swscale."""
        width, height = size or self.small_size
        if self.info.rotation in (90, 270):
            width, height = height, width
        planes = shrunk_planes(frame, (width, height))
        if planes is None:
            rgb = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
        else:
            rgb = cv2.transform(cv2.merge(planes), _rgb_matrix(frame))
        return _turned(rgb, self.info)


def least(info: VideoInfo) -> np.ndarray:
    """Positions in SKIPS, one per frame: as little as can be decoded. See `complete` for what is wanted besides."""
    return np.full(info.frames, SKIPS.index("bidir" if info.b_frames_optional else "nonref"), np.int8)


def complete(info: VideoInfo, skip: np.ndarray) -> np.ndarray:
    """`skip` with all that the B-frames to be decoded may refer to: B-frames beside them, and before them.

    The decoder makes up for references that were skipped. What it made up stays among the references of the B-frames
    that follow until as many others have been decoded as it keeps.
    """
    bidir, nonref = SKIPS.index("bidir"), SKIPS.index("nonref")
    between = np.searchsorted(info.anchors, np.arange(info.frames))  # two anchors
    decoded = np.zeros(len(info.anchors) + 1, bool)
    decoded[between[skip < bidir]] = True
    ahead = np.concatenate([decoded, np.zeros(info.references_kept, bool)])
    needed: np.ndarray = np.any(np.lib.stride_tricks.sliding_window_view(ahead, info.references_kept + 1), axis=1)
    return np.where(needed[between], np.minimum(skip, nonref), skip)


def jpeg(picture: np.ndarray) -> bytes:
    """An RGB picture as JPEG."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return encoded.tobytes()


def shrunk_planes(
    frame: VideoFrame, size: tuple[int, int], chroma_size: tuple[int, int] | None = None, most_rows: int | None = None
) -> list[np.ndarray] | None:
    """Y, Cb and Cr as uint8 arrays of `size` (width, height), by averaging; None for other pixel formats.

    Cb and Cr come at `chroma_size` where one is given. Of planes with more than three times `most_rows` rows,
    only about that many are averaged: half the time for a film of 720 lines.
    """
    shift = _PLANAR.get(frame.format.name)
    if shift is None:
        return None
    sizes = (size, chroma_size or size, chroma_size or size)
    whole = [_plane(plane, shift > 0) for plane in frame.planes[:3]]
    if most_rows:
        every = [plane.shape[0] // most_rows for plane in whole]
        whole = [plane[n // 2 :: n] if n > 2 else plane for plane, n in zip(whole, every, strict=True)]
    planes = [_shrunk(plane, goal) for plane, goal in zip(whole, sizes, strict=True)]
    return planes if shift == 0 else [cv2.convertScaleAbs(plane, alpha=1 / (1 << shift)) for plane in planes]


def _shrunk(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Halved as long as it is twice too large (vectorised, exact means), then averaged to size."""
    height, width = plane.shape
    while width >= 2 * size[0] and height >= 2 * size[1]:
        width, height = width // 2, height // 2
        plane = cv2.resize(plane[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    return plane if (width, height) == size else cv2.resize(plane, size, interpolation=cv2.INTER_AREA)


def _rgb_matrix(frame: VideoFrame) -> np.ndarray:
    """3x4 matrix from (Y, Cb, Cr, 1) to RGB, as the frame's colour space and range say."""
    kr, kb = _LUMA_WEIGHTS.get(int(frame.colorspace), (0.299, 0.114))
    kg = 1.0 - kr - kb
    full = int(frame.color_range) == 2 or frame.format.name.startswith("yuvj")
    luma, chroma, black = (1.0, 1.0, 0.0) if full else (255.0 / 219.0, 255.0 / 224.0, 16.0)
    red, blue = 2 * (1 - kr) * chroma, 2 * (1 - kb) * chroma
    rows = np.array([[luma, 0, red], [luma, -blue * kb / kg, -red * kr / kg], [luma, blue, 0]])
    return np.column_stack([rows, -rows @ (black, 128.0, 128.0)]).astype(np.float32)


def _plane(plane: object, wide: bool) -> np.ndarray:
    """The plane as an array without copying; rows may be padded."""
    kind = np.uint16 if wide else np.uint8
    line = plane.line_size // np.dtype(kind).itemsize  # type: ignore[attr-defined]
    pixels = np.frombuffer(plane, kind)  # type: ignore[call-overload]
    rows: int = plane.height  # type: ignore[attr-defined]
    array: np.ndarray = pixels[: rows * line].reshape(rows, line)[:, : plane.width]  # type: ignore[attr-defined]
    return array


def _turned(image: np.ndarray, info: VideoInfo) -> np.ndarray:
    """A stored picture as it is shown."""
    image = image[::-1] if info.flipped else image
    return np.ascontiguousarray(np.rot90(image, -info.rotation // 90))


def _fit(size: tuple[int, int], short_side_px: int | None) -> tuple[int, int]:
    """(width, height) with the short side at most `short_side_px`, aspect kept."""
    width, height = size
    if short_side_px is None or min(width, height) <= short_side_px:
        return width, height
    scale = short_side_px / min(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))
