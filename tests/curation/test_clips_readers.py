"""The same clips in other readers: OpenCV, PyAV with seeking, and Chromium. Smart clips are the interesting ones:
they switch between copied and re-encoded frames, with parameter sets of their own, in the middle."""

import base64
import functools
import http.server
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser

from curation.clips import Clip, cut_clips
from curation.probe import VideoInfo, probe
from tests.curation.clip_proof import span
from tests.media import Shot, make_film

SIZE = (130, 74)
SHOT = [Shot("bunny", 100)]  # one shot: neighbouring frames differ little, so a wrong one would be a near miss
FILMS = {
    "h264.mp4": {"gop": 20, "bframes": 3},
    "h264_rotated.mp4": {"gop": 20, "rotation": 90},
    "h264_anamorphic.mp4": {"gop": 20, "sar": Fraction(4, 3)},
    "h264_10_bit.mp4": {"gop": 20, "ten_bit": True},
    "h264.ts": {"gop": 20, "start_s": 2.0},
    "hevc_open.mp4": {"gop": 20, "codec": "libx265", "open_gop": True, "bframes": 4},
    "vp9.webm": {"gop": 20, "codec": "libvpx-vp9"},
}


Get = Callable[[str], tuple[VideoInfo, Clip]]


@pytest.fixture(scope="module")
def smart_clip(tmp_path_factory: pytest.TempPathFactory) -> Get:
    """Gives film and clip: a re-encoded head, copied GOPs and a re-encoded tail."""
    folder = tmp_path_factory.mktemp("readers")

    @functools.cache
    def get(name: str) -> tuple[VideoInfo, Clip]:
        make_film(folder / name, SHOT, [], size=SIZE, scenecut=False, **FILMS[name])  # type: ignore[arg-type]
        info = probe(folder / name)
        (clip,) = cut_clips(info, [span(info, 13, 68)])
        assert isinstance(clip, Clip)
        assert 20 / 25 <= clip.copied_s < 55 / 25
        return info, clip

    return get


def _upright(info: VideoInfo) -> list[np.ndarray]:
    """RGB frames of the film's span as a player shows them, at stored aspect."""
    with av.open(info.path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [np.rot90(image, -info.rotation // 90) for image in frames]


def _closest(image: np.ndarray, film: list[np.ndarray], number: int) -> int:
    """Which of the film's frames around `number` the image is, by mean difference of luma. Ties go to `number`."""
    near = range(max(0, number - 4), min(len(film), number + 5))
    luma = {k: cv2.cvtColor(np.ascontiguousarray(film[k]), cv2.COLOR_RGB2GRAY).astype(np.float32) for k in near}
    distance = {k: float(np.abs(image - each).mean()) for k, each in luma.items()}
    assert distance[number] < 4, f"frame {number} looks different: {distance[number]:.1f} levels off"
    best = min(distance, key=lambda k: distance[k])
    return number if distance[number] <= distance[best] + 0.02 else best


@pytest.mark.parametrize("name", FILMS)
def test_opencv_reads_every_frame(smart_clip: Get, tmp_path: Path, name: str) -> None:
    info, clip = smart_clip(name)
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip.data)
    reader = cv2.VideoCapture(str(path))
    assert int(reader.get(cv2.CAP_PROP_FRAME_COUNT)) == clip.frames
    assert reader.get(cv2.CAP_PROP_FPS) == pytest.approx(25)
    film = _upright(info)
    got = []
    while True:
        fine, image = reader.read()
        if not fine:
            break
        got.append(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32))
    numbers = [_closest(image, film, clip.span.start_frame + k) for k, image in enumerate(got)]
    assert numbers == list(range(clip.span.start_frame, clip.span.end_frame))


@pytest.mark.parametrize("name", FILMS)
def test_pyav_finds_any_frame_by_seeking(smart_clip: Get, name: str) -> None:
    """As a random-access loader does: seek to the key frame before, decode on to the frame.

    Not the leading frames of an open GOP (26, 46): mp4 seeks to the key frame after them, in the film as well.
    """
    info, clip = smart_clip(name)
    film = _upright(info)
    with av.open(io.BytesIO(clip.data)) as container:
        stream = container.streams.video[0]
        for k in [54, 0, 30, 7, 6, 8, 27, 53, 47, 1, *([] if "open" in name else [26, 46])]:
            at = round(Fraction(k, 25) / stream.time_base)
            container.seek(at, stream=stream, backward=True)
            frame = next(each for each in container.decode(stream) if each.pts >= at)
            assert frame.pts == at
            image = np.rot90(frame.to_ndarray(format="rgb24"), -info.rotation // 90)
            gray = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY).astype(np.float32)
            assert _closest(gray, film, 13 + k) == 13 + k


_SHOW = """async ([url, times]) => {
  const video = document.querySelector('video'), canvas = document.querySelector('canvas');
  const failed = new Promise((_, no) => {
    video.onerror = () => no(new Error(video.error.message));
    setTimeout(() => no(new Error(`${url} at ${video.currentTime}: not all shown after 60 s`)), 60000); });
  const shown = t => Promise.race([failed, new Promise(yes => {
    video.requestVideoFrameCallback((now, frame) => yes(frame.mediaTime)); video.currentTime = t; })]);
  video.src = url;
  await Promise.race([failed, new Promise(yes => { video.onloadeddata = yes; })]);
  await new Promise(yes => setTimeout(yes, 300));
  canvas.width = video.videoWidth; canvas.height = video.videoHeight;
  const pen = canvas.getContext('2d', {willReadFrequently: true}), pictures = [];
  await shown(times[times.length - 1]);
  for (const t of times) {
    const at = await shown(t);
    pen.drawImage(video, 0, 0, canvas.width, canvas.height);
    const rgba = pen.getImageData(0, 0, canvas.width, canvas.height).data;
    let text = '';
    for (let i = 0; i < rgba.length; i += 4) text += String.fromCharCode(rgba[i], rgba[i + 1], rgba[i + 2]);
    pictures.push([at, btoa(text)]);
  }
  return {duration: video.duration, width: video.videoWidth, height: video.videoHeight, pictures};
}"""


@contextmanager
def _served(clips: dict[str, bytes]) -> Iterator[str]:
    """A page with a video element and the clips beside it, on this machine only. Answers ranges, as seeking needs."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = clips.get(self.path.strip("/"), b"<video muted></video><canvas></canvas>")
            wanted = self.headers.get("Range")
            first, last = 0, len(body) - 1
            if wanted:
                begin, _, end = wanted.removeprefix("bytes=").partition("-")
                first, last = int(begin), int(end) if end else last
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Type", "video/mp4" if self.path.strip("/") in clips else "text/html")
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            try:
                self.wfile.write(body[first : last + 1])
            except OSError:
                self.close_connection = True  # the browser has seen enough

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_chromium_shows_every_frame(smart_clip: Get, browser: Browser) -> None:
    """H.264 and VP9; builds of Chromium without a licence for HEVC do not play it at all."""
    made = {name: smart_clip(name) for name in FILMS if not name.startswith("hevc")}
    with _served({name: clip.data for name, (_, clip) in made.items()}) as address:
        page = browser.new_page()
        page.goto(address)
        for name, (info, clip) in made.items():
            film = _upright(info)
            middles = [(k + 0.5) / 25 for k in range(clip.frames)]
            result = page.evaluate(_SHOW, [f"{address}/{name}", middles])
            assert result["duration"] == pytest.approx(clip.frames / 25, abs=1e-3)
            width, height = result["width"], result["height"]
            assert (width, height) == (clip.width, clip.height), name
            for k, (at, picture) in enumerate(result["pictures"]):
                assert at == pytest.approx(k / 25, abs=1e-3), f"{name}: asked for frame {k}"
                rgb = np.frombuffer(base64.b64decode(picture), np.uint8).reshape(height, width, 3)
                stored = cv2.resize(rgb, film[0].shape[1::-1], interpolation=cv2.INTER_AREA)
                gray = cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY).astype(np.float32)
                assert _closest(gray, film, 13 + k) == 13 + k, name
