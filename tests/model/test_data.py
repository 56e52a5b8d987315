"""Shards, order and decoding: the same samples in the same order, whoever reads them."""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.data.buckets import Bucket, nearest_size, sizes
from model.data.dataset import ClipDataset, Source
from model.data.decode import CannotRead, pick_frames, read_clip
from model.data.decode import read_image as decode_image
from model.data.loader import load_batches
from model.data.order import BatchPlan, EpochOrder, micro_batches
from model.data.randomness import Purpose, Streams
from model.data.selection import SampleTable, Wanted, select
from model.data.shards import DataError, SampleError, ShardError, find_shards, open_shard, read_member, reindex
from model.video_io import read_image, to_bytes
from tests.media import Shot, make_film
from tests.model.training_shards import clip, encode, make_shards, moving_square, write_shard


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data"), shards=3, clips=3, size=(32, 48))


def _dataset(shards: Path, seed: int = 0, batch: int = 4, **options: object) -> ClipDataset:
    table = SampleTable.open([str(shards)])
    streams = Streams(seed, "test")
    order = EpochOrder(np.arange(len(table)), table.shard, streams, window_shards=2)
    plan = BatchPlan([order], batch, streams)
    settings = {"rates_fps": (3.0, 30.0), "random_crop": True, "caption_weights": {"spatial": 0.5, "temporal": 0.5}}
    return ClipDataset([Source(Bucket(4, 32, 32), table)], plan, streams, **settings | options)  # type: ignore[arg-type]


# ---- order ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 2**31))
def test_an_epoch_visits_every_sample_once(counts: list[int], window: int, seed: int) -> None:
    shards = np.repeat(np.arange(len(counts)), counts)
    order = EpochOrder(np.arange(len(shards)) * 7, shards, Streams(seed), window_shards=window)
    epochs = [[order[e * len(order) + i] for i in range(len(order))] for e in range(3)]
    assert all(sorted(epoch) == sorted((np.arange(len(shards)) * 7).tolist()) for epoch in epochs)


def test_order_differs_between_epochs_and_seeds_and_stays_in_windows() -> None:
    shards = np.repeat(np.arange(20), 10)
    order = EpochOrder(np.arange(200), shards, Streams(1), window_shards=4)
    first, second = ([order[e * 200 + i] for i in range(200)] for e in (0, 1))
    assert first != second
    assert first != [EpochOrder(np.arange(200), shards, Streams(2), window_shards=4)[i] for i in range(200)]
    assert all(len(set(shards[first[i : i + 40]])) == 4 for i in range(0, 200, 40)), "40 samples come from 4 shards"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(1, 7), st.integers(0, 99))
def test_every_bucket_gives_its_stream_in_order_and_its_share(sizes_: list[int], batch: int, seed: int) -> None:
    streams = Streams(seed)
    orders = [EpochOrder(np.arange(n), np.zeros(n, int), streams, stream=i) for i, n in enumerate(sizes_)]
    plan = BatchPlan(orders, batch, streams)
    taken = [0] * len(orders)
    for step in range(60):
        found = plan[step]
        expected = [orders[found.bucket][taken[found.bucket] * batch + i] for i in range(batch)]
        assert found.samples.tolist() == expected
        assert found.ordinals.tolist() == list(range(step * batch, (step + 1) * batch))
        taken[found.bucket] += 1
    assert BatchPlan(orders, batch, streams)[59].samples.tolist() == plan[59].samples.tolist(), "no state"


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_split_a_batch_without_overlap(world: int) -> None:
    places = [micro_batches(16, 2, rank, world) for rank in range(world)]
    in_order = [p for micro in zip(*places, strict=True) for part in micro for p in part]
    assert in_order == list(range(16)), "micro-steps over ranks are the batch in order"


def test_a_batch_that_does_not_divide_says_what_would() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        micro_batches(12, 2, 0, 4)


def test_permutations_depend_on_the_published_bit_stream_only() -> None:
    assert Streams(0, "x").permutation(Purpose.SAMPLE_ORDER, 8, 3).tolist() == [7, 1, 6, 5, 0, 2, 3, 4]


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (2, 1), (4, 0)])
def test_samples_are_the_same_on_any_ranks_and_workers_and_after_a_resume(
    shards: Path, world: int, workers: int
) -> None:
    dataset = _dataset(shards)
    expected = {o: dataset[(o // 4, o % 4)] for o in range(12)}
    for rank in range(world):
        loader = load_batches(
            dataset, first_step=1, last_step=3, micro_batch=1, rank=rank, world=world, workers=workers
        )
        for sample in (s for batch in loader for s in batch):
            other = expected.pop(sample.ordinal)
            assert (sample.key, sample.caption, sample.fps) == (other.key, other.caption, other.fps)
            assert np.array_equal(sample.frames, other.frames)
    assert sorted(expected) == [0, 1, 2, 3], "steps 1 and 2 were loaded, once"


def test_decoding_processes_leave_stopping_to_the_trainer(shards: Path) -> None:
    """Whatever is sent to all processes of a run: the trainer may need a few more samples before it has saved."""
    loader = load_batches(_dataset(shards), first_step=0, last_step=3, micro_batch=1, workers=1)
    next(loader)
    (process,) = multiprocessing.active_children()
    for which in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(process.pid, which)
    assert len(list(loader)) == 11


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_decoding_processes_go_when_the_trainer_is_killed(shards: Path) -> None:
    ours, theirs = multiprocessing.Pipe()

    def trainer() -> None:
        # More is prepared than a pipe holds: torch's own watch over the parent ends in writing to it for ever.
        loader = iter(load_batches(_dataset(shards), first_step=0, last_step=99, micro_batch=1, workers=1, prefetch=32))
        next(loader)
        time.sleep(1)
        theirs.send(multiprocessing.active_children()[0].pid)
        time.sleep(600)

    process = multiprocessing.get_context("fork").Process(target=trainer)
    process.start()
    assert ours.poll(60)
    stat = Path(f"/proc/{ours.recv()}/stat")
    process.kill()
    process.join()
    end = time.monotonic() + 10
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":  # a zombie, where init does not reap
        assert time.monotonic() < end, "still there"
        time.sleep(0.01)


def test_a_trainer_that_fails_ends_with_its_decoding_processes(shards: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.model.test_data import _dataset\n"
        "from model.data.loader import load_batches\n"
        "batches = load_batches(_dataset(Path(sys.argv[1])), first_step=0, last_step=9, micro_batch=1, workers=1)\n"
        "next(batches)\n"
        "sys.exit('failed on purpose')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(shards)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "failed on purpose" in done.stderr


# ---- frames --------------------------------------------------------------------------------------------------------


def test_decoded_frames_are_those_at_the_chosen_times() -> None:
    pictures = np.stack([np.full((32, 48, 3), 10 * i, np.uint8) for i in range(20)])
    data = encode(pictures, rate=12)
    for seed in range(8):
        taken = read_clip(data, 5, (32, 48), rates_fps=(3, 6), choose=np.random.default_rng(seed), crop=None)
        numbers = (taken.pixels.mean((1, 2, 3)) / 10).round().astype(int)
        stride = numbers[1] - numbers[0]
        assert stride in (2, 3, 4)
        assert np.array_equal(np.diff(numbers), [stride] * 4)
        assert taken.fps == pytest.approx(12 / stride)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(2, 12), st.floats(5, 60), st.integers(0, 10**6))
def test_picked_frames_lie_in_the_clip_at_the_rate_that_is_reported(
    n: int, frames: int, rate: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    times = np.cumsum(random.uniform(0.7, 1.3, n)) / rate  # variable frame rate
    try:
        places, fps = pick_frames(times, frames, (3, 30), random)
    except CannotRead:
        return
    assert len(places) == frames
    assert 0 <= places.min() <= places.max() < n
    assert np.all(np.diff(places) >= 0)
    assert fps == pytest.approx((frames - 1) / (times[places[-1]] - times[places[0]]))


def test_a_clip_covers_the_size_and_keeps_its_shape() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[16:48, 16:48] = 255  # a square stays a square
    data = encode(np.stack([picture] * 4))
    taken = read_clip(data, 2, (32, 64), rates_fps=(1, 30), choose=np.random.default_rng(0), crop=None).pixels[0]
    bright = taken[..., 0] > 128
    assert bright.any(1).sum() == bright.any(0).sum() == 32


def test_buckets_keep_area_and_choose_the_nearest_aspect() -> None:
    found = sizes(576, 1024, 64, by_aspect=True)
    assert found[0] == (576, 1024)
    assert all(h % 64 == 0 and w % 64 == 0 and 0.8 < h * w / (576 * 1024) < 1.25 for h, w in found)
    portrait = nearest_size(np.array([1080, 1920]), np.array([1920, 1080]), found)
    assert found[portrait[0]][0] > found[portrait[0]][1]
    assert found[portrait[1]] == (576, 1024)
    with pytest.raises(ValueError, match="multiples of 64"):
        sizes(570, 1024, 64, by_aspect=False)


def test_captions_are_drawn_by_weight_and_fall_back_to_the_text(shards: Path, tmp_path: Path) -> None:
    dataset = _dataset(shards, caption_weights={"spatial": 1.0, "temporal": 0.0})
    assert all(dataset[(s, 0)].caption.startswith("square") for s in range(6))
    both = _dataset(shards)
    kinds = {both[(s, p)].caption.split()[0] for s in range(8) for p in range(4)}
    assert kinds == {"square", "moves"}
    key, media, meta, _ = clip(1)
    bare = {k: v for k, v in meta.items() if not k.startswith("caption")}
    write_shard(tmp_path / "0.tar", [(key, media, bare, "from the text file")])
    assert _dataset(tmp_path)[(0, 0)].caption == "from the text file"


def test_shards_are_read_through_fsspec_by_range(shards: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in sorted(shards.glob("*.tar")):
        memory.pipe_file(f"/there/{path.name}", path.read_bytes())
    local = _dataset(shards)
    table = SampleTable.open(["memory://there"])
    streams = Streams(0, "test")
    plan = BatchPlan([EpochOrder(np.arange(len(table)), table.shard, streams, window_shards=2)], 4, streams)
    far = ClipDataset(
        [Source(Bucket(4, 32, 32), table)], plan, streams, rates_fps=(3.0, 30.0), random_crop=True,
        caption_weights={"spatial": 0.5, "temporal": 0.5},
    )  # fmt: skip
    assert np.array_equal(far[(0, 0)].frames, local[(0, 0)].frames)


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A shard with a full index beside it."""
    path = write_shard(tmp_path / "000000.tar", [clip(i, size=(32, 48)) for i in range(3)])
    assert reindex(str(path)) == 3
    return path


def test_a_missing_shard_is_named(tmp_path: Path, one: Path) -> None:
    with pytest.raises(ShardError, match=r"nowhere.*no shard there"):
        SampleTable.open([str(tmp_path / "nowhere")])
    dataset = _dataset(one.parent)
    one.unlink()
    with pytest.raises(ShardError, match=r"000000\.tar: the shard is gone"):
        dataset[(0, 0)]


def test_a_store_that_cannot_be_asked_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentials(Exception):
        """As botocore's: no OSError."""

    def refuse(*_: object) -> None:
        raise NoCredentials("unable to locate credentials")

    with pytest.raises(ShardError, match=r"nonsense://bucket/x: cannot be listed: .*[Pp]rotocol"):
        find_shards(["nonsense://bucket/x"])
    monkeypatch.setattr(MemoryFileSystem, "isdir", refuse)
    with pytest.raises(ShardError, match=r"memory://x: cannot be listed: NoCredentials: unable to locate"):
        find_shards(["memory://x"])


def test_a_truncated_shard_is_refused_before_training(one: Path) -> None:
    with open(one, "r+b") as file:
        file.truncate(one.stat().st_size - 5000)
    with pytest.raises(ShardError, match="truncated or changed"):
        open_shard(str(one))


def test_a_truncated_tar_without_index_is_refused(one: Path) -> None:
    one.with_suffix(".samples.parquet").unlink()
    with open(one, "r+b") as file:
        file.truncate(2000)
    with pytest.raises(ShardError, match=r"000000\.tar"):
        open_shard(str(one))


@pytest.mark.parametrize("prefix", ["./", "v1.0/", "./a.b/c/"])
def test_members_are_named_as_webdataset_names_them(tmp_path: Path, prefix: str) -> None:
    key, *rest = clip(0, size=(32, 48))
    write_shard(tmp_path / "0.tar", [(prefix + key, *rest)])
    assert open_shard(str(tmp_path / "0.tar")).table["key"].to_pylist() == [prefix + key]
    assert _dataset(tmp_path, batch=1)[(0, 0)].key == prefix + key


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("key", ["Straße", "ü" * 60])
def test_names_that_are_not_ascii_are_read_in_every_format(tmp_path: Path, form: int, key: str) -> None:
    _, video, facts, _ = clip(0, size=(32, 48))
    with tarfile.open(tmp_path / "0.tar", "w", format=form) as tar:
        for kind, content in (("mp4", video), ("json", json.dumps(facts).encode())):
            member = tarfile.TarInfo(f"{key}/0.{kind}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert _dataset(tmp_path, batch=1)[(0, 0)].key == f"{key}/0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[]", "a JSON object is needed, not a list"),
        (b'{"frames": "x"}', "frames 'x': no int32"),
        (b'{"frames": 99999999999}', "frames 99999999999: no int32"),
        (b'{"camera": ["static"]}', r"camera \['static'\]: no string"),
        (b"\xff", "not JSON"),
    ],
)
def test_json_that_cannot_be_used_is_named(tmp_path: Path, text: bytes, message: str) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in (("a.mp4", b"film"), ("a.json", text)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(ShardError, match=rf"0\.tar: a\.json: {message}"):
        open_shard(str(tmp_path / "0.tar"))


def test_a_compressed_tar_is_said_to_be_one(one: Path) -> None:
    packed = one.with_name("packed.tar")
    packed.write_bytes(gzip.compress(one.read_bytes()))
    with pytest.raises(ShardError, match=r"packed\.tar: compressed with gzip.*decompress"):
        open_shard(str(packed))


def test_a_shard_replaced_by_another_of_the_same_size_is_noticed(one: Path) -> None:
    row = open_shard(str(one)).table.slice(0, 1).to_pylist()[0]
    data = bytearray(one.read_bytes())
    data[row["media_offset"] + 100] ^= 0xFF
    one.write_bytes(data)
    with pytest.raises(ShardError, match=r"damaged.*clip0000\.mp4"):
        read_member(str(one), "clip0000.mp4", row["media_offset"], row["media_size"], row["media_crc32"])
    with pytest.raises(ShardError, match="changed since it was indexed"):
        read_member(str(one), "clip0009.mp4", row["media_offset"], row["media_size"], None)
    with pytest.raises(ShardError, match="changed since it was indexed"):
        read_member(str(one), "clip0000.mp4", row["media_offset"] + 512, row["media_size"], None)


def test_clips_that_are_too_short_fall_out_with_a_count(one: Path) -> None:
    write_shard(one.parent / "000001.tar", [clip(10, frames=3, size=(32, 48))])
    table = SampleTable.open([str(one.parent)])
    chosen = select(table, Wanted(8, (3, 30)))
    assert len(chosen.samples) == 3
    assert "1 are too short for the frames asked" in str(chosen)
    with pytest.raises(DataError, match=r"longest clip has 14 frames.*fewer frames"):
        select(table, Wanted(40, (3, 30)))


def test_missing_captions_and_labels_say_what_to_do(tmp_path: Path) -> None:
    key, media, meta, _ = clip(1)
    bare = {k: v for k, v in meta.items() if not k.startswith("caption")}
    write_shard(tmp_path / "0.tar", [(key, media, bare, "")])
    table = SampleTable.open([str(tmp_path)])
    with pytest.raises(DataError, match=r"1 have no caption.*turn captioning on"):
        select(table, Wanted(4, (3, 30), caption=True))
    with pytest.raises(DataError, match="1 are not labelled zooming"):
        select(table, Wanted(4, (3, 30), camera=("zooming",)))
    with pytest.raises(DataError, match="1 have no elevation_deg"):
        select(table, Wanted(4, (3, 30), elevation=True))


def test_an_undecodable_clip_stops_or_is_replaced_the_same_way_every_time(tmp_path: Path) -> None:
    samples = [clip(i, size=(32, 48)) for i in range(3)]
    samples[1] = (samples[1][0], b"not a video", *samples[1][2:])
    write_shard(tmp_path / "0.tar", samples)
    strict, lenient = _dataset(tmp_path), _dataset(tmp_path, replace_bad=True)
    with pytest.raises(SampleError, match=r"clip0001 of .*0\.tar: cannot be decoded"):
        [strict[(0, p)] for p in range(4)]
    for workers in (0, 1):
        with pytest.raises(SampleError, match=r"^sample clip0001 of .*0\.tar: cannot be decoded.*$"):
            list(load_batches(strict, first_step=0, last_step=1, micro_batch=1, workers=workers))
    found = [lenient[(s, p)] for s in range(3) for p in range(4)]
    assert all(s.key != "clip0001" for s in found)
    assert any("clip0001" in m for s in found for m in s.replaced)
    again = [_dataset(tmp_path, replace_bad=True)[(s, p)] for s in range(3) for p in range(4)]
    assert [s.key for s in found] == [s.key for s in again]


def test_images_are_clips_of_one_frame(tmp_path: Path) -> None:
    import cv2

    picture = moving_square(0, 1)[0]
    data = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
    write_shard(tmp_path / "0.tar", [("a", data, {"width": 64, "height": 48}, "a square")], extension="png")
    table = SampleTable.open([str(tmp_path)])
    assert len(select(table, Wanted(1, (3, 30))).samples) == 1
    streams = Streams(0)
    plan = BatchPlan([EpochOrder(np.arange(1), table.shard, streams)], 1, streams)
    dataset = ClipDataset(
        [Source(Bucket(1, 48, 64, True), table)], plan, streams, rates_fps=(3.0, 30.0), random_crop=False,
        caption_weights={},
    )  # fmt: skip
    sample = dataset[(0, 0)]
    assert sample.frames is not None
    assert np.abs(sample.frames[0].astype(int) - picture).max() <= 2


def test_a_transparent_image_is_trained_on_as_it_is_sampled_from(tmp_path: Path) -> None:
    """White or noise hidden beneath transparent pixels must not become what the model learns."""
    pixels = np.full((48, 64, 4), 255, np.uint8)
    pixels[:, 32:, 3] = 0
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    trained = decode_image((tmp_path / "a.png").read_bytes(), (48, 64), crop=None).pixels
    assert trained[0, :, :30].min() > 250
    assert trained[0, :, 34:].max() < 5
    assert np.array_equal(trained, to_bytes(read_image(tmp_path / "a.png")))


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)], ids=["empty", "text", "damaged"])
def test_what_is_no_image_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(CannotRead, match="not an image that can be read"):
        decode_image(data, (48, 64), crop=None)


def test_an_index_beside_the_tar_gives_what_a_scan_gives(one: Path) -> None:
    indexed = open_shard(str(one)).table
    one.with_suffix(".samples.parquet").unlink()
    assert open_shard(str(one)).table.equals(indexed)


def test_the_index_that_export_writes_is_enough(one: Path) -> None:
    """Offsets only, as `clipmill export` leaves them: facts come from the samples' json."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    full = open_shard(str(one)).table
    one.with_suffix(".samples.parquet").unlink()
    rows = []
    with tarfile.open(one) as tar:
        for row in full.to_pylist():
            found = {"clip_id": row["key"], "duration_s": 1.0, "frames": row["frames"]}
            for kind in ("mp4", "json", "txt"):
                member = tar.getmember(f"{row['key']}.{kind}")
                found |= {f"{kind}_offset": member.offset_data, f"{kind}_size": member.size}
            rows.append(found)
    notes = {"clipmill_shard": json.dumps({"filesize": one.stat().st_size})}
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(notes), buffer)
    one.with_suffix(".index.parquet").write_bytes(buffer.getvalue())
    table = open_shard(str(one)).table
    for name in full.schema.names:
        if not name.endswith("crc32"):
            assert table[name].to_pylist() == full[name].to_pylist(), name


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(("rotation", "quarters"), [(0, 0), (90, -1), (180, 2), (270, 1)])
def test_clips_are_read_as_they_are_shown(tmp_path: Path, rotation: int, quarters: int, flipped: bool) -> None:
    """Mirrored and turned by the display matrix, square pixels: the size that the row and the bucket speak of."""
    path = tmp_path / "phone.mp4"
    make_film(
        path, [Shot("bikes.1", 12)], size=(96, 64), sar=Fraction(4, 3), rotation=rotation, flipped=flipped, crf=10
    )
    size = (64, 128) if rotation in (0, 180) else (128, 64)
    draws = np.random.default_rng(0)
    found = read_clip(path.read_bytes(), 1, size, rates_fps=(1, 30), choose=draws, crop=None)
    with av.open(str(path)) as container:
        stored = [cv2.resize(f.to_ndarray(format="rgb24"), (128, 64)) for f in container.decode(video=0)]
    shown = np.stack([np.rot90(each[::-1] if flipped else each, quarters) for each in stored]).astype(int)
    assert found.pixels.shape == (1, *size, 3)
    assert np.abs(shown - found.pixels).mean((1, 2, 3)).min() < 5
    assert np.abs(np.rot90(shown, 2, (1, 2)) - found.pixels).mean((1, 2, 3)).min() > 20, (
        "upside down is another picture"
    )
