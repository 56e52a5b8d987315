"""`clipmill train --ray`: Ray Train gives the ranks, and the run is the same as without it."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from model.train_cli import train
from model.training.config_file import parse_config
from model.training.run import run
from tests.model.training_runs import result, same_bits, write_config
from tests.model.training_shards import make_shards
from tests.pipelines.conftest import Cluster

pytestmark = pytest.mark.xdist_group("ray")


@pytest.mark.timeout(900)
def test_two_ray_workers_train_to_the_same_bits_as_one_process(ray_cluster: Cluster, tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards", shards=1, clips=3, size=(32, 48))
    config = write_config(tmp_path / "c.yaml", tmp_path / "ray", shards, steps=2)
    found = CliRunner().invoke(train, [str(config), "--ray", "--workers", "2", "--address", ray_cluster.address])
    assert found.exit_code == 0, found.output
    alone = write_config(tmp_path / "d.yaml", tmp_path / "alone", shards, steps=2)
    run(parse_config(alone.read_text()))
    assert (tmp_path / "ray" / "ray").is_dir(), "what Ray Train notes lies with the run"
    assert same_bits(result(tmp_path / "ray"), result(tmp_path / "alone")) == []


@pytest.mark.timeout(900)
def test_a_fault_of_the_run_is_said_as_without_ray(
    ray_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(tmp_path / "c.yaml", Path("run"), tmp_path / "nothing", steps=2)
    monkeypatch.chdir(tmp_path)
    asked = ["c.yaml", "--ray", "--workers", "1", "--retries", "0"]
    found = CliRunner().invoke(train, [*asked, "--address", ray_cluster.address])
    assert found.exit_code == 1
    assert "Traceback" not in found.output
    assert f"{tmp_path}/nothing" in found.output.splitlines()[-1]
