"""One source, from its file to finished clips: identity, probe, cuts, plan, clips, motion, camera label, thumbnails.

This is the work that shares a decode, as one plain object. It never holds a film: clips come out in segments bounded in
bytes and in number, and frames are asked for a few clips at a time. Whatever is wrong with a source ends in its row of
`sources/`; nothing but a mistake in this program raises.
"""

import os
import stat
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curation.clips import Clip, ClipFailure, ClipSpan, Mode, cut_clips, plan
from curation.cuts import detector
from curation.cuts.cut import Cut, CutDetector
from curation.errors import CannotDecode, CannotScore
from curation.flaws import flaw_columns, no_flaws
from curation.frames import FilmFrames, jpeg
from curation.identity import clip_id, source_id
from curation.motion import CoarseMotion
from curation.probe import VideoInfo, probe
from curation.remarks import remark
from curation.rules import Rule
from curation.schema import score
from curation.segment import FinishedClip, Segment

MOTION_FPS = 2.0
THUMBNAIL_SHORT_SIDE_PX = 180
KEY_SHORT_SIDE_PX = 480  # the text detectors reduce frames to at most 640x384, image encoders to 224 or 336
SMALL_SHORT_SIDE_PX = 128  # twice what Farneback looks at, and what the packaged learned flow looks at
_SMALL_CACHE_BYTES = 640 << 20  # the 2 fps frames of an hour of 16:9
_CLIPS_AT_ONCE, _BYTES_AT_ONCE = 8, 64 << 20
"""Clips whose frames are asked for in one pass: up to 24 frames of 854x480 are 30 MB."""


@dataclass(frozen=True)
class SourceSettings:
    """What is done with a source. Everything in here decides the content of the dataset.

    Attributes:
        gates: rules with absolute bounds on the scores of this stage; a clip that breaks one skips the later stages.
        key_frames: keep first, middle and last frame of each clip for the stages that look at frames.
        small_frames: keep the 2 fps frames of each clip for the learned flow.
        segment_bytes, segment_clips: a segment is closed when it holds this much.
    """

    detector: str = "cascade"
    mode: Mode = "smart"
    min_s: float = 2.0
    max_s: float = 20.0
    motion: bool = True
    gates: Sequence[Rule] = ()
    key_frames: bool = False
    small_frames: bool = False
    segment_bytes: int = 64 << 20
    segment_clips: int = 64


@dataclass(frozen=True)
class SourceReport:
    """The end of a source: its row of `schema.SOURCES`, and how many segments came before."""

    row: dict[str, Any]
    segments: int


def failed_row(uri: str, reason: str, message: str, **columns: Any) -> dict[str, Any]:
    """The row of a source that gave nothing. With a known `duration_s`, all of it counts as lost to the error."""
    row = {"source_uri": uri, "status": "failed", "reason": reason, "message": message, "clips": 0, "kept_s": 0.0}
    row |= {"lost_transition_s": 0.0, "lost_short_s": 0.0, "lost_keyframe_s": 0.0, "lost_error_s": 0.0}
    row |= {"duration_s": 0.0} | columns
    row["lost_error_s"] = row["duration_s"]
    return row


class SourceStage:
    """Curates one source after another with the same settings and models."""

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings
        self._detector: CutDetector = detector(settings.detector)
        self._motion = CoarseMotion() if settings.motion else None

    def run(self, path: str | Path, uri: str | None = None) -> Iterator[Segment | SourceReport]:
        """Yield the source's segments in order, then one report.

        Args:
            path: a local file.
            uri: the name under which the source goes into the rows; the path itself by default.
        """
        uri = uri or str(path)
        clock = _Clock()
        known: dict[str, Any] = {}
        try:
            yield from self._run(str(path), uri, clock, known)
        except CannotDecode as error:
            yield SourceReport(failed_row(uri, error.reason, str(error), **known, **clock.seconds), 0)
        except Exception as error:  # the boundary of one item: whatever a source does to a library, the job goes on
            where = traceback.extract_tb(error.__traceback__)[-1]
            message = f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {error}"
            yield SourceReport(failed_row(uri, "internal_error", message, **known, **clock.seconds), 0)

    def _run(self, path: str, uri: str, clock: "_Clock", known: dict[str, Any]) -> Iterator[Segment | SourceReport]:
        """`run`, raising; what is known about the source so far is in `known`."""
        with clock("probe_s"):
            known |= _identify(path)
            info = probe(path)
            known |= _properties(info)
            note = remark(info)
        with clock("cuts_s"):
            frames = FilmFrames(
                info,
                small_short_side_px=SMALL_SHORT_SIDE_PX,
                preview_short_side_px=None if self.settings.key_frames else THUMBNAIL_SHORT_SIDE_PX,
                cache_bytes=_SMALL_CACHE_BYTES,
            )
            cuts = self._detector.detect(info, frames)
            known["hard_cuts"] = sum(cut.kind == "hard" for cut in cuts)
            known["gradual_cuts"] = sum(cut.kind == "gradual" for cut in cuts)
        yield from self._clips(uri, info, frames, cuts, known, note, clock)

    def _clips(
        self,
        uri: str,
        info: VideoInfo,
        frames: FilmFrames,
        cuts: Sequence[Cut],
        known: dict[str, Any],
        note: tuple[str | None, str | None],
        clock: "_Clock",
    ) -> Iterator[Segment | SourceReport]:
        """The second half of `run`: from the cuts to the report."""
        chosen = self.settings
        planned = plan(info, cuts, mode=chosen.mode, min_s=chosen.min_s, max_s=chosen.max_s)
        segments, clips_written, kept_pts = 0, 0, 0
        open_segment: list[FinishedClip] = []
        failures: list[ClipFailure] = []
        for batch in _batches(clock, info, planned.spans, chosen.mode, failures):
            with clock("scores_s"):
                finished = self._score(uri, info, frames, known["source_id"], batch)
            for span, clip in zip((each.span for each in batch), finished, strict=True):
                if damage := damage_in(info, frames, span):
                    failures.append(damage)
                    continue
                clips_written += 1
                kept_pts += clip.row["end_pts"] - clip.row["start_pts"]
                open_segment.append(clip)
                size = sum(each.nbytes for each in open_segment)
                if size >= chosen.segment_bytes or len(open_segment) >= chosen.segment_clips:
                    yield Segment(known["source_id"], segments, open_segment)
                    segments, open_segment = segments + 1, []
        if open_segment:
            yield Segment(known["source_id"], segments, open_segment)
            segments += 1
        planned_pts = sum(span.end_pts - span.start_pts for span in planned.spans)
        lost_error_s = float((planned_pts - kept_pts) * info.time_base)
        status, (reason, message) = "ok", note
        if failures:
            reason, message = failures[0].reason, f"{len(failures)} clips lost: {failures[0].message}"
            status = "ok" if clips_written else "failed"
        elif not clips_written and reason is None:
            reason = "no_clips"
            message = (
                f"no shot of at least {chosen.min_s:g} s remains (film: {info.duration_s:.2f} s, {len(cuts)} cuts)"
            )
        row = {"source_uri": uri, "status": status, "reason": reason, "message": message, **known}
        row |= {"duration_s": planned.seconds_in, "clips": clips_written, "kept_s": float(kept_pts * info.time_base)}
        row |= {"lost_transition_s": planned.lost_transition_s, "lost_short_s": planned.lost_short_s}
        row |= {"lost_keyframe_s": planned.lost_keyframe_s, "lost_error_s": lost_error_s, **clock.seconds}
        yield SourceReport(row, segments)

    def _score(
        self, uri: str, info: VideoInfo, frames: FilmFrames, source: str, clips: Sequence[Clip]
    ) -> list[FinishedClip]:
        """Rows, thumbnails and frames of a few consecutive clips, from one forward pass over their stretch of film."""
        chosen = self.settings
        grids = [frames.grid(MOTION_FPS, clip.span.start_pts, clip.span.end_pts) for clip in clips]
        wanted = [_key_pts(info, clip.span) if chosen.key_frames else [] for clip in clips]
        motion_pts = np.unique(np.concatenate(grids)) if self._motion and grids else np.zeros(0, np.int64)
        short_side = KEY_SHORT_SIDE_PX if chosen.key_frames else THUMBNAIL_SHORT_SIDE_PX
        broken: CannotDecode | None = None
        pictures: dict[int, np.ndarray] = {}
        previews: list[bytes | None] = [None] * len(clips)
        try:
            frames.prefetch(motion_pts, _flat(wanted), short_side, loop_filter=chosen.key_frames)
            previews = [frames.preview(clip.span.start_pts, clip.span.end_pts) for clip in clips]
            middles = zip(previews, (_middle_pts(info, clip.span) for clip in clips), strict=True)
            full_pts = _flat([*wanted, [middle for preview, middle in middles if preview is None]])
            frames.prefetch(np.zeros(0, np.int64), full_pts, short_side, loop_filter=chosen.key_frames)
            pictures = dict(frames.full(full_pts, short_side_px=short_side))
        except CannotDecode as error:
            broken = error
        finished = []
        for clip, grid, keys, preview in zip(clips, grids, wanted, previews, strict=True):
            row = _clip_row(uri, info, source, chosen.mode, clip)
            small = None
            if self._motion:
                columns, small = self._motion_columns(info, frames, grid, clip.span.end_pts, broken)
                row |= columns
            row["gate"] = _gate(row, chosen.gates)
            shown = [pictures[pts] for pts in keys if pts in pictures]
            middle = pictures.get(_middle_pts(info, clip.span))
            keep = shown if chosen.key_frames and row["gate"] is None and len(shown) == len(keys) else []
            if not chosen.small_frames or row["gate"] is not None:
                small = None
            thumbnail = preview or (b"" if middle is None else _thumbnail(middle))
            finished.append(FinishedClip(row, clip.data, thumbnail, keep, small))
        return finished

    def _motion_columns(
        self, info: VideoInfo, frames: FilmFrames, grid: np.ndarray, end_pts: int, broken: CannotDecode | None
    ) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray] | None]:
        """The columns that come from the 2 fps frames of a clip that ends at `end_pts`, and these with their times."""
        assert self._motion is not None
        columns: dict[str, Any] = {"motion_coarse_model": self._motion.name, "camera_model": self._motion.name}
        small: tuple[np.ndarray, np.ndarray] | None = None
        try:
            if broken is not None:
                raise broken
            used, pictures = frames.small(grid)
            small = pictures, (used - info.pts[0]) * float(info.time_base)
            columns |= flaw_columns(pictures, np.diff(used, append=end_pts) * float(info.time_base))
            scored = self._motion.score(*small)
        except (CannotScore, CannotDecode) as error:
            if small is None:
                columns |= no_flaws(error.reason)
            return columns | {"motion_coarse_error": error.reason, "camera_error": error.reason}, small
        measured = {"motion_coarse": scored.score, "flow_dx": scored.mean_dx, "flow_dy": scored.mean_dy}
        measured |= {"flow_divergence": scored.divergence, "flow_curl": scored.curl, "flow_residual": scored.residual}
        # Optical flow differs between processes in its last bits; a dataset must not. Gates see what is stored.
        columns |= {name: float(np.float32(round(value, 6))) for name, value in measured.items()}
        return columns | {"camera": scored.camera}, small


class _Clock:
    """Processor seconds of this process by stage: `with clock("cuts_s"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stage = ""
        self._since = 0.0

    def __call__(self, stage: str) -> "_Clock":
        self._stage = stage
        return self

    def __enter__(self) -> None:
        self._since = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + time.process_time() - self._since


def _identify(path: str | Path) -> dict[str, Any]:
    """Size and content hash. Raises CannotDecode in the words of `probe` when the file cannot be read."""
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind):  # to open a pipe would wait for whoever writes to it
            what = "a folder" if stat.S_ISDIR(kind) else "a pipe, a socket or a device"
            raise CannotDecode("not_a_file", f"{path}: is {what}")
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            known: dict[str, Any] = {"size_bytes": size}
            if size:
                known["source_id"] = source_id(file, size)
            return known
    except FileNotFoundError as error:
        raise CannotDecode("missing", f"{path}: no such file") from error
    except OSError as error:
        raise CannotDecode("unreadable", f"{path}: {error.strerror or error}") from error


def _properties(info: VideoInfo) -> dict[str, Any]:
    width, height = info.display_size
    return {
        "container": info.container,
        "codec": info.codec,
        "width": width,
        "height": height,
        "rate_fps": float(info.nominal_rate),
        "frames": info.frames,
        "duration_s": info.duration_s,
    }


def damage_in(info: VideoInfo, frames: FilmFrames, span: ClipSpan) -> ClipFailure | None:
    """What becomes of a clip where the decoder had to make up a frame in part. Not all frames were decoded."""
    damaged = [number for number in frames.damaged if span.start_frame <= number < span.end_frame]
    if not damaged:
        return None
    at_s = float(info.times_s[min(damaged)])
    return ClipFailure(span, "damaged_frames", f"{info.path}: damaged at {at_s:.1f} s")


def _batches(
    clock: _Clock, info: VideoInfo, spans: Sequence[ClipSpan], mode: Mode, failures: list[ClipFailure]
) -> Iterator[list[Clip]]:
    """Clips as they are cut, a few at a time; those that fail go to `failures`."""
    clips = cut_clips(info, spans, mode=mode) if spans else iter(())
    batch: list[Clip] = []
    held = 0
    while True:
        try:
            with clock("clips_s"):
                each = next(clips, None)
        except CannotDecode as error:  # nothing more can be had from this film; what came before stands
            failures.append(ClipFailure(span=spans[-1], reason=error.reason, message=str(error)))
            each = None
        if each is None:
            break
        if isinstance(each, ClipFailure):
            failures.append(each)
            continue
        batch.append(each)
        held += len(each.data)
        if len(batch) == _CLIPS_AT_ONCE or held >= _BYTES_AT_ONCE:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _clip_row(uri: str, info: VideoInfo, source: str, mode: Mode, clip: Clip) -> dict[str, Any]:
    span = clip.span
    base = float(info.time_base)
    return {
        "clip_id": clip_id(source, span.start_pts, span.end_pts, mode),
        "source_id": source,
        "source_uri": uri,
        "start_pts": span.start_pts,
        "end_pts": span.end_pts,
        "time_base": base,
        "start_s": (span.start_pts - int(info.pts[0])) * base,
        "duration_s": (span.end_pts - span.start_pts) * base,
        "start_frame": span.start_frame,
        "frames": clip.frames,
        "rate_fps": clip.rate_fps,
        "width": clip.width,
        "height": clip.height,
        "codec": clip.codec,
        "has_audio": clip.has_audio,
        "mode": mode,
        "shot": span.shot,
        "copied_s": clip.copied_s,
    }


def _middle_pts(info: VideoInfo, span: ClipSpan) -> int:
    return int(info.pts[(span.start_frame + span.end_frame - 1) // 2])


def _key_pts(info: VideoInfo, span: ClipSpan) -> list[int]:
    """First, middle and last frame."""
    return [int(info.pts[span.start_frame]), _middle_pts(info, span), int(info.pts[span.end_frame - 1])]


def _gate(row: Mapping[str, Any], gates: Sequence[Rule]) -> str | None:
    """The first gate that stops the clip. A score that is missing stops nothing: it was not low, it was not had.

    Bounds are compared as float32, as those of a decision are.
    """
    for gate in gates:
        value = row.get(score(gate.score).column)
        if value is None:
            continue
        if gate.min is not None and np.float32(value) < np.float32(gate.min):
            return gate.score
        if gate.max is not None and np.float32(value) > np.float32(gate.max):
            return gate.score
        if (gate.labels and value not in gate.labels) or (gate.not_labels and value in gate.not_labels):
            return gate.score
    return None


def _flat(lists: Sequence[Sequence[int]]) -> list[int]:
    return sorted({each for part in lists for each in part})


def _thumbnail(picture: np.ndarray) -> bytes:
    """JPEG of an RGB picture at the thumbnail's size."""
    height, width = picture.shape[:2]
    scale = THUMBNAIL_SHORT_SIDE_PX / min(height, width)
    if scale < 1:
        size = (round(width * scale), round(height * scale))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return jpeg(picture)
