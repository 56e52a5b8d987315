"""`clipmill decide`, `export`, `report`, `diff`, `ablate`: what they write, and one plain line for what they refuse."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result

from curation import decisions
from curation.rules import Rule, Rules, RulesError
from curation.storage import Storage
from pipelines import decide as decide_module
from pipelines.cli import main
from pipelines.dataset import Dataset
from pipelines.decide import open_scores
from pipelines.diff import diff
from tests.synthetic import exchange_scores, make_dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("cli") / "data")


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text("rules:\n  motion.coarse: {drop_lowest: 25%}\n  text_area: {max: 0.07}\non_error: drop\n")
    return path


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def kept(root: Path, name: str) -> set[str]:
    return {row["clip_id"] for row in pq.read_table(root / f"decisions/{name}.parquet").to_pylist() if row["keep"]}


def test_decide_writes_the_rules_with_what_they_resolved_to(root: Path, rules: Path) -> None:
    done = run("decide", root, "--rules", rules, "--name", "first")
    assert done.exit_code == 0, done.output
    data = yaml.safe_load((root / "decisions/first.yaml").read_text())
    motion = data["rules"]["motion.coarse"]
    assert motion["rule"] == {"drop_lowest": "25%", "on_error": "drop"}
    assert motion["clips"] == {"scored": 37, "unscored": 3, "dropped_alone": 9}
    assert data["clips"]["kept"] == len(kept(root, "first"))
    assert f"{data['clips']['kept']} of 40 clips kept" in done.output
    absolute = {name: rule["resolved"] for name, rule in data["rules"].items()}
    (rules.parent / "absolute.yaml").write_text(yaml.safe_dump(absolute))
    assert run("decide", root, "--rules", rules.parent / "absolute.yaml", "--name", "again").exit_code == 0
    assert kept(root, "again") == kept(root, "first")


def test_deciding_twice_writes_the_same_bytes(root: Path, rules: Path) -> None:
    run("decide", root, "--rules", rules, "--name", "same")
    before = [(root / f"decisions/same.{kind}").read_bytes() for kind in ("yaml", "parquet")]
    run("decide", root, "--rules", rules, "--name", "same")
    assert before == [(root / f"decisions/same.{kind}").read_bytes() for kind in ("yaml", "parquet")]


def files(root: Path, name: str) -> list[bytes]:
    return [(root / f"decisions/{name}.{kind}").read_bytes() for kind in ("yaml", "parquet")]


def test_a_full_disk_leaves_the_decision_that_was_there(root: Path, rules: Path) -> None:
    run("decide", root, "--rules", rules, "--name", "full")
    before = files(root, "full")
    command = f"ulimit -f 1; exec {sys.executable} -m pipelines.cli decide {root} --preset paper --name full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 2, done.stderr
    assert done.stderr.endswith(f"error: {root}/decisions/full.parquet: File too large\n")
    assert files(root, "full") == before
    assert not list((root / "decisions").glob(".tmp-*"))


def test_a_full_disk_is_said_with_the_file_that_did_not_fit(root: Path) -> None:
    run("decide", root, "--preset", "paper", "--name", "large")
    command = f"ulimit -f 1; exec {sys.executable} -m pipelines.cli export {root} --decision large"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 2
    assert done.stderr == f"error: {root}/shards/large/000000.tar: File too large\n"


def test_a_kill_between_the_two_files_leaves_the_new_decision(
    root: Path, rules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("decide", root, "--rules", rules, "--name", "killed")

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", kill)
        with pytest.raises(KeyboardInterrupt):
            decide_module.decide(str(root), {"motion.coarse": {"min": 1e9}}, "killed")
    assert decide_module.read_decision(Dataset(root), "killed")["clips"]["kept"] == len(kept(root, "killed")) == 0
    assert not (root / "decisions/killed.yaml").exists()  # rather none than one of the decision before
    decide_module.decide(str(root), {"motion.coarse": {"min": 1e9}}, "killed")
    assert yaml.safe_load(files(root, "killed")[0])["clips"]["kept"] == 0


def test_the_rules_and_the_clips_of_two_that_save_at_once_do_not_mix(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Storage.write

    def overtaken(storage: Storage, name: str, data: bytes) -> None:
        """Another process saves the same decision just before the YAML file of the first is written."""
        monkeypatch.undo()
        decide_module.decide(str(root), {"motion.coarse": {"min": 1e9}}, "raced")
        write(storage, name, data)

    monkeypatch.setattr(Storage, "write", overtaken)
    decide_module.decide(str(root), {}, "raced")
    said = yaml.safe_load(files(root, "raced")[0])
    assert said == decide_module.read_decision(Dataset(root), "raced")
    assert said["clips"]["kept"] == len(kept(root, "raced")) == 0


def test_a_failure_leaves_the_decision_of_an_object_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", clips=4, media=False)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "data"), "/decided", recursive=True)
    decide_module.decide("memory://decided", {}, "kept")
    before = memory.cat("/decided/decisions/kept.parquet")

    def broken(*_: Any) -> Any:
        raise MemoryError
        yield

    monkeypatch.setattr(decisions, "decided", broken)
    with pytest.raises(MemoryError):
        decide_module.decide("memory://decided", {"motion.coarse": {"min": 1e9}}, "kept")
    assert memory.cat("/decided/decisions/kept.parquet") == before


def test_what_was_decided_can_be_read_back(root: Path) -> None:
    crossed = {"motion.coarse": {"drop_lowest": "50%", "max": 0.001}, "text_area": {"drop_highest": "0.0000001%"}}
    decide_module.decide(str(root), crossed, "crossed")
    assert run("report", root, "--decision", "crossed").exit_code == 0
    for broken in (Rule("camera", labels=()), Rule("motion.coarse", min=1e300)):
        with pytest.raises(RulesError):
            decide_module.write_decision(Dataset(root), open_scores(Dataset(root)), Rules((broken,)), "broken")
    assert "broken" not in decide_module.names(Dataset(root))


def test_neither_deciding_nor_exporting_can_decode_a_frame(root: Path, rules: Path) -> None:
    program = (
        "import sys; from pipelines.decide import decide; from pipelines.export import export; "
        f"decide({str(root)!r}, {{'motion.coarse': {{'min': 0.1}}}}, 'blind'); export({str(root)!r}, 'blind'); "
        "assert not {'av', 'cv2', 'torch'} & sys.modules.keys(), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
    assert json.loads((root / "shards/blind/index.json").read_text())["clips"] > 0


def test_a_preset_names_the_rules_that_it_leaves_out(root: Path) -> None:
    done = run("decide", root, "--preset", "paper")
    assert "left out, because no clip of this dataset has the score: aesthetic, similarity" in done.output
    assert set(yaml.safe_load((root / "decisions/paper.yaml").read_text())["rules"]) == {"motion.coarse", "text_area"}


def test_diff_says_which_clips_changed_and_why(root: Path, rules: Path) -> None:
    run("decide", root, "--rules", rules, "--name", "a")
    (rules.parent / "b.yaml").write_text("motion.coarse: {drop_lowest: 50%}\n")
    run("decide", root, "--rules", rules.parent / "b.yaml", "--name", "b")
    found = json.loads(run("diff", root, "a", "b", "--json").output)
    a, b = kept(root, "a"), kept(root, "b")
    assert (found["both"], found["only_first"], found["only_second"]) == (len(a & b), len(a - b), len(b - a))
    assert found["neither"] == 40 - len(a | b)
    assert {clip["clip_id"] for clip in found["clips"]} == a ^ b
    assert set(found["reasons"]["only_first"]) == {"motion.coarse below"}
    for clip in found["clips"]:
        assert clip["reasons"]
        assert clip["kept_by"] == ("a" if clip["clip_id"] in a else "b")
    plain = run("diff", root, "a", "b").output
    assert f"kept only by a: {len(a - b)}" in plain
    assert f"b drops {len(a - b)}: motion.coarse below" in plain


def test_ablation_subsets_are_nested_and_hold_only_scored_clips(root: Path) -> None:
    done = run("ablate", root, "--axis", "motion")
    assert done.exit_code == 0, done.output
    sets = [kept(root, f"ablate-motion-{label}") for label in ("all", "12.5", "25", "50")]
    assert [len(each) for each in sets] == [37, 37 - 4, 37 - 9, 37 - 18]
    assert sets[0] > sets[1] > sets[2] > sets[3]
    run("ablate", root, "--axis", "text")
    text = [kept(root, f"ablate-text-{label}") for label in ("all", "12.5", "25", "50")]
    assert [len(each) for each in text] == [38, 38 - 4, 38 - 9, 38 - 19]
    areas = {
        row["clip_id"]: max(row["text_area"])
        for p in (root / "clips").iterdir()
        for row in pq.read_table(p).to_pylist()
        if row["text_area"]
    }
    assert max(areas[clip] for clip in text[3]) < min(areas[clip] for clip in text[0] - text[3])


def test_few_clips_that_moved_are_shown_beside_many_that_moved_the_other_way(tmp_path: Path) -> None:
    def measure(i: int, row: dict[str, Any]) -> None:
        row |= {"motion_coarse": float(i), "motion_coarse_error": None}

    made = make_dataset(tmp_path / "data", change=measure, media=False)
    decide_module.decide(str(made), {"motion.coarse": {"max": 38}}, "slow")
    decide_module.decide(str(made), {"motion.coarse": {"min": 38}}, "fast")
    found = diff(str(made), "slow", "fast", most=3)
    assert (found["only_first"], found["only_second"]) == (38, 1)
    assert sorted(clip["kept_by"] for clip in found["clips"]) == ["fast", "slow", "slow", "slow"]
    assert [clip["clip_id"] for clip in found["clips"]] == sorted(clip["clip_id"] for clip in found["clips"])


def test_an_axis_named_by_its_score_loses_its_worst_clips(tmp_path: Path) -> None:
    def measure(i: int, row: dict[str, Any]) -> None:
        row |= {"niqe": [3.0 + i] * 3, "niqe_model": "niqe", "near_duplicate": i / 40, "near_duplicate_model": "conse"}

    made = make_dataset(tmp_path / "data", change=measure, media=False)
    rows = [row for part in (made / "clips").iterdir() for row in pq.read_table(part).to_pylist()]
    for name in ("niqe", "near_duplicate"):  # of both, low is good
        assert run("ablate", made, "--axis", name).exit_code == 0
        by_score = sorted(rows, key=lambda row: row[name])
        assert kept(made, f"ablate-{name}-50") == {row["clip_id"] for row in by_score[:20]}
    for axis in ("text", "text_area"):
        run("ablate", made, "--axis", axis)
    assert kept(made, "ablate-text-25") == kept(made, "ablate-text_area-25")


def test_export_and_report_print_where_they_wrote(root: Path, rules: Path) -> None:
    run("decide", root, "--rules", rules)
    done = run("export", root, "--shard-clips", 5)
    assert done.exit_code == 0
    assert f"{root}/shards/default: " in done.output
    assert run("report", root).output == f"{root}/report.html\n"


def test_an_export_of_a_decision_on_other_scores_warns(tmp_path: Path, rules: Path) -> None:
    made = make_dataset(tmp_path / "data", clips=12)
    run("decide", made, "--rules", rules)
    assert run("export", made).stderr == ""
    exchange_scores(made)
    done = run("export", made)
    assert done.exit_code == 0
    assert done.stderr.startswith("warning: the dataset has other clips or scores than when decision 'default' was")
    run("decide", made, "--rules", rules)
    assert run("export", made).stderr == ""


def test_an_export_of_nothing_warns(root: Path) -> None:
    decide_module.decide(str(root), {"motion.coarse": {"min": 1e9}}, "nothing")
    done = run("export", root, "--decision", "nothing")
    assert done.exit_code == 0
    assert done.stderr == "warning: decision 'nothing' keeps no clip, so there is nothing to train on\n"


def test_clips_that_cannot_be_exported_make_exit_code_1(tmp_path: Path, rules: Path) -> None:
    made = make_dataset(tmp_path / "data", clips=6)
    run("decide", made, "--rules", rules)
    (made / "media/part-00000.tar").unlink()
    done = run("export", made)
    assert done.exit_code == 1
    assert "could not be exported: see shards/default/errors.parquet" in done.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: {sharpness: {min: 1}}", "no score is called 'sharpness'; known: motion.coarse, "),
        ("rules: {motion.coarse: {min: a lot}}", "rules.motion.coarse.min: 'a lot' is not a number"),
        ("rules: [", "not YAML"),
        (
            "rules: {}\nrules: {motion.coarse: {min: 1}}",
            "wrong.yaml: not YAML (line 2: the key 'rules' is there twice)",
        ),
        ("just words", "expected a mapping of scores to rules"),
    ],
)
def test_wrong_rules_are_one_line_and_exit_code_2(root: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    done = run("decide", root, "--rules", path, "--name", "wrong")
    assert done.exit_code == 2
    assert done.output.startswith("error: ")
    assert message in done.output
    assert done.output.count("\n") == 1
    assert not (root / "decisions/wrong.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decide", "{tmp}/none", "--preset", "paper"], "{tmp}/none does not exist"),
        (["decide", "{tmp}", "--preset", "paper"], "is not a Clipmill dataset"),
        (["decide", "{root}", "--preset", "nice"], "no preset is called 'nice'; there are: offline, paper"),
        (["decide", "{root}", "--rules", "{tmp}/none.yaml"], "{tmp}/none.yaml: No such file"),
        (["decide", "{root}", "--preset", "paper", "--name", "a/b"], "'a/b' cannot name a decision"),
        (["decide", "{empty}", "--preset", "paper"], "holds no clips, so there is nothing to decide"),
        (["export", "{root}", "--decision", "nope"], "has no decision called 'nope'"),
        (["report", "{root}", "--decision", "nope"], "has no decision called 'nope'"),
        (["diff", "{root}", "nope", "nada"], "has no decision called 'nope'"),
        (["diff", "{root}/elsewhere", "nope", "nada"], "elsewhere does not exist"),
        (["export", "{root}/elsewhere"], "elsewhere does not exist"),
        (["ablate", "{root}", "--axis", "aesthetic"], "has the score 'aesthetic'; axes of this dataset: motion, text"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(
    root: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {"root": root, "tmp": tmp_path, "empty": tmp_path / "empty"}
    if "{empty}" in arguments:
        make_dataset(tmp_path / "empty", clips=0, media=False)
    done = run(*[argument.format(**places) for argument in arguments])
    assert done.exit_code == 2, done.output
    assert message.format(**places) in done.output
    assert done.output.startswith("error: ")
    assert done.output.count("\n") == 1


def test_a_dataset_being_written_counts_committed_sources_only(tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "data", clips=12, media=False)
    (made / "sources/part-00000.parquet").rename(made / "sources/part-live-000000.parquet")
    table = pq.read_table(made / "sources/part-live-000000.parquet")
    rows = table.to_pylist()
    pq.write_table(
        table.filter([row["source_id"] != rows[0]["source_id"] for row in rows]),
        made / "sources/part-live-000000.parquet",
    )
    assert run("decide", made, "--preset", "paper").exit_code == 0
    assert len(pq.read_table(made / "decisions/paper.parquet")) == 9  # three of the twelve belong to the fourth source
