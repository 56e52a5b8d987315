"""The study of human preference: who meets whom, who is asked what, in a real browser, and the ratings from it."""

from __future__ import annotations

import json
import resource
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from click.testing import CliRunner, Result
from playwright.sync_api import Browser, Page

from model.evaluate_cli import evaluate
from model.evaluation.elo import ratings
from model.evaluation.errors import EvaluationError
from model.evaluation.study import Study, Vote, read_study, read_votes, score
from model.evaluation.study_make import make_study
from model.evaluation.study_server import Desk, make_app
from model.evaluation.videos import find_videos, first_frames
from tests.model.training_shards import encode, moving_square


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(evaluate, ["study", *(str(each) for each in arguments)])


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three models' videos `a`, `b`, and of two of them `c`."""
    root, places = tmp_path_factory.mktemp("samples"), {}
    for k, (model, names) in enumerate({"ours": "abc", "theirs": "abc", "third": "ab"}.items()):
        (root / model).mkdir()
        for n, name in enumerate(names):
            (root / model / f"{name}.mp4").write_bytes(encode(moving_square(10 * k + n, 8, 64, 96)))
        places[model] = str(root / model)
    return places


@pytest.fixture
def study(samples: dict[str, str], tmp_path: Path) -> Study:
    (tmp_path / "prompts.csv").write_text('name,prompt\na,a red square\nb,"a, <b>bold</b> one"\nc,c\n')
    return make_study(samples, tmp_path / "study", prompts=tmp_path / "prompts.csv")


def test_a_rating_is_that_of_the_published_formula() -> None:
    one = ratings([(0, 1)], 2)
    assert [each.elo for each in one] == [1000.5, 999.5]
    assert [(each.wins, each.losses) for each in one] == [(1, 0), (0, 1)]
    # 300 wins of 400 settle where the expected share is three quarters: 190.8 points apart, given time.
    votes = [(0, 1)] * 7500 + [(1, 0)] * 2500
    far = ratings(votes, 3)
    assert far[0].elo - far[1].elo == pytest.approx(190.8, abs=4)
    assert far[0].low < far[0].elo < far[0].high
    assert far[2].elo == 1000
    assert [each.elo for each in ratings([], 2)] == [1000, 1000]


def test_every_two_models_meet_on_every_video_that_both_have(study: Study) -> None:
    meetings = Counter(task.models for task in study.tasks.values())
    assert meetings == {("ours", "theirs"): 3, ("ours", "third"): 2, ("theirs", "third"): 2}
    assert study == read_study(study.folder)
    stored = {path.name for path in (study.folder / "videos").iterdir()}
    assert stored == {file for task in [*study.tasks.values(), *study.checks.values()] for file in task.files}
    assert not any(model in name for name in stored for model in study.models)
    assert {task.prompt for task in study.tasks.values()} == {"a red square", "a, <b>bold</b> one", "c"}
    assert len(study.checks) == 1


def test_tasks_go_to_as_many_raters_as_asked_and_to_each_once(study: Study) -> None:
    desk = Desk(study)
    seen: dict[str, list[str]] = {}
    for rater in ("r1", "r2", "r3", "r4"):
        seen[rater] = []
        while (found := desk.next(rater)) is not None:
            task, _ = found
            assert desk.next(rater) == found, "a reload shows the same"
            desk.answer(rater, task.id, dict.fromkeys(study.questions, task.files[0]))
            desk.answer(rater, task.id, dict.fromkeys(study.questions, task.files[1]))  # changes nothing
            seen[rater].append(task.id)
    for rater in ("r1", "r2", "r3"):
        assert sorted(seen[rater]) == sorted([*study.tasks, *study.checks])
        assert seen[rater][1] in study.checks
    assert not set(seen["r4"]) & set(study.tasks)
    votes = read_votes(study)
    assert len(votes) == 3 * 8 * 2 + 2 * len(seen["r4"])
    result = score(study, votes)
    assert (result.tasks_done, result.tasks, result.inattentive) == (7, 7, [])


def test_sides_are_drawn_for_every_rater_and_task(study: Study) -> None:
    desk = Desk(study)
    swapped = [desk.next(f"r{k}")[1] for k in range(200)]  # type: ignore[index]
    assert 60 < sum(swapped) < 140


def test_two_raters_at_once_get_different_tasks(study: Study) -> None:
    desk = Desk(study)
    first = [desk.next(f"r{k}")[0].id for k in range(7)]  # type: ignore[index]
    assert len(set(first)) == 7


def test_who_prefers_a_mosaic_is_not_counted(study: Study) -> None:
    (check,) = study.checks.values()
    votes = [Vote("blind", check.id, "quality", check.files[1])]
    for task in study.tasks.values():
        votes.append(Vote("blind", task.id, "quality", task.files[1]))
        votes.append(Vote("awake", task.id, "quality", task.files[0]))
        votes.append(Vote("awake", task.id, "quality", task.files[1]))  # a rater counts once
    result = score(study, votes)
    assert result.inattentive == ["blind"]
    found = result.ratings["quality"]
    assert (found["ours"].wins, found["ours"].losses) == (5, 0)
    assert (found["third"].wins, found["third"].losses) == (0, 4)
    assert found["ours"].elo > found["theirs"].elo > found["third"].elo
    assert result.wins["quality"] == {("ours", "theirs"): 3, ("ours", "third"): 2, ("theirs", "third"): 2}


def test_a_kill_in_the_middle_of_a_line_costs_that_line(study: Study) -> None:
    task = next(iter(study.tasks.values()))
    Desk(study).answer("r", task.id, dict.fromkeys(study.questions, task.files[0]))
    path = study.folder / "votes.jsonl"
    whole = path.read_text()
    path.write_text(whole[: len(whole) - 7])
    assert len(read_votes(study)) == 1
    desk = Desk(study)
    desk.answer("r", task.id, dict.fromkeys(study.questions, task.files[0]))
    assert path.read_text() == whole
    path.write_text("{}\n" + whole)
    with pytest.raises(EvaluationError, match="line 1 is no vote"):
        read_votes(study)


@pytest.mark.parametrize("line", [b"[]", b'{"rater": ["a"], "task": "b", "question": "c", "winner": "d"}', b"\xff"])
def test_votes_may_be_edited_by_hand(study: Study, line: bytes) -> None:
    one, other = list(study.tasks.values())[:2]
    Desk(study).answer("r", one.id, dict.fromkeys(study.questions, one.files[0]))
    path = study.folder / "votes.jsonl"
    path.write_bytes(b"\n" + path.read_bytes().rstrip())  # an empty line, and none at the end
    assert len(read_votes(study)) == 2
    Desk(study).answer("r", other.id, dict.fromkeys(study.questions, other.files[0]))
    assert len(read_votes(study)) == 4
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(EvaluationError, match="line 1 is no vote; remove or mend it"):
        read_votes(study)


def test_tasks_of_raters_who_do_not_count_go_to_others(study: Study) -> None:
    desk = Desk(study)
    for rater in ("blind", "r1", "r2", "r3"):
        if rater == "r2":
            desk = Desk(study)  # who is blind is known also after a stop
        while (found := desk.next(rater)) is not None:
            task = found[0]
            better = task.files[rater == "blind" and task.id in study.checks]
            desk.answer(rater, task.id, dict.fromkeys(study.questions, better))
    result = score(study, read_votes(study))
    assert (result.tasks_done, result.inattentive) == (7, ["blind"])


def test_a_full_disk_leaves_no_part_of_a_line(study: Study) -> None:
    first, second = list(study.tasks.values())[:2]
    desk = Desk(study)
    desk.answer("r", first.id, dict.fromkeys(study.questions, first.files[0]))
    whole = (study.folder / "votes.jsonl").read_text()
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 50, limits[1]))  # the next answer does not fit
    try:
        with pytest.raises(OSError, match=r"too large|No space"):
            desk.answer("r", second.id, dict.fromkeys(study.questions, second.files[0]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (study.folder / "votes.jsonl").read_text() == whole
    desk.answer("r", second.id, dict.fromkeys(study.questions, second.files[0]))
    assert len(read_votes(study)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one"], "each must be NAME=FOLDER"),
        (["one={ours}", "one={theirs}"], "each must be NAME=FOLDER, with different names"),
        (["one={ours}"], "a study compares at least two models"),
        (["one={ours}", "two={nothing}"], "nothing: no such file or folder"),
        (["one={ours}", "two={other}"], "no video has the same name in two of"),
        (["one={ours}", "two={broken}"], "z.mp4: cannot be decoded"),
        (["one={ours}", "two={opencv}"], "z.mp4: browsers play h264, vp8, vp9, av1, not mpeg4; convert it first"),
        (["one={ours}", "two={tar}"], "z.tar: not a whole tar file"),
        (["one={ours}", "two={theirs}", "--prompts", "{cut}"], 'cut.csv: a: a prompt with commas stands in "quotes"'),
        (["one={ours}", "two={theirs}", "--prompts", "{bare}"], "bare.csv: has no prompt for a (1 are missing)"),
        (["one={ours}", "two={gifs}"], "a.gif: browsers play .mp4 and .webm"),
        (["one={ours}", "two={theirs}", "--prompts", "{short}"], "short.csv: has no prompt for b (2 are missing)"),
        (["one={ours}", "two={theirs}", "--prompts", "{ours}/a.mp4"], "must be CSV with the columns name and prompt"),
    ],
)
def test_what_makes_no_study_is_one_line(
    samples: dict[str, str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    good = Path(samples["ours"], "a.mp4").read_bytes()
    opencv = encode(moving_square(0, 8), codec="mpeg4")
    for name, file, data in (
        ("other", "z.mp4", good), ("gifs", "a.gif", good), ("broken", "z.mp4", b"no"), ("opencv", "z.mp4", opencv),
        ("tar", "z.tar", good),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(data)
    places = samples | {name: str(tmp_path / name) for name in ("nothing", "other", "gifs", "broken", "opencv", "tar")}
    for name, rows in (("short", "a,x\n"), ("cut", "a,x, y\nb,x\nc,x\n"), ("bare", "a\nb,x\nc,x\n")):
        (tmp_path / f"{name}.csv").write_text(f"name,prompt\n{rows}")
        places[name] = str(tmp_path / f"{name}.csv")
    found = run("make", *(each.format(**places) for each in arguments), "-o", tmp_path / "study")
    assert found.exit_code != 0
    assert message in " ".join(found.output.split())
    assert "Traceback" not in found.output
    assert not (tmp_path / "study").exists()


@pytest.fixture
def address(study: Study) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(make_app(study, "secret"), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def page(browser: Browser) -> Page:
    return browser.new_context(viewport={"width": 1280, "height": 800}).new_page()


def test_a_rater_votes_with_the_mouse_and_with_the_keyboard(study: Study, address: str, page: Page) -> None:
    page.goto(f"{address}/secret/?rater=me")
    page.wait_for_function("document.querySelectorAll('video').length == 2 && a.currentTime > 0 && b.currentTime > 0")
    prompt = page.locator("#prompt").text_content()
    assert prompt in {task.prompt for task in study.tasks.values()}
    assert page.locator("#next").is_disabled()
    shown = [page.locator(f"#{side}").get_attribute("src").removeprefix("videos/") for side in "ab"]  # type: ignore[union-attr]
    for field in page.locator("fieldset").all():
        field.get_by_role("button", name="B").click()
    page.locator("#next").click()
    page.wait_for_function(f"!a.src.endsWith({shown[0]!r})")
    votes = read_votes(study)
    assert [(vote.rater, vote.winner) for vote in votes] == [("me", shown[1])] * 2
    assert {vote.question for vote in votes} == {"quality", "prompt"}
    check = next(iter(study.checks.values()))
    assert {page.locator(f"#{side}").get_attribute("src") for side in "ab"} == {
        f"videos/{file}" for file in check.files
    }
    good = page.evaluate("now.files").index(check.files[0])
    for _ in range(7):
        page.wait_for_function(
            "document.querySelector('#next').disabled && !document.querySelector('[aria-pressed=true]')"
        )
        task = page.evaluate("now.task")
        page.keyboard.press("ab"[good])
        page.keyboard.press(["ArrowLeft", "ArrowRight"][good])
        page.keyboard.press("Enter")
        page.wait_for_function(f"now.task != {task!r} || !over.hidden")
    assert "That was all. Thank you! Your completion code: " in (page.locator("#over").text_content() or "")
    assert score(study, read_votes(study)).inattentive == []
    result = json.loads(run("score", study.folder, "--json").stdout)
    assert sum(each["wins"] for each in result["ratings"]["quality"].values()) == 7
    assert "0 of 7 tasks are done, by 1 raters" in run("score", study.folder).output


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_fits_the_screen(address: str, browser: Browser, width: int, scheme: Any) -> None:
    page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
    page.goto(f"{address}/secret/")
    page.wait_for_selector("fieldset")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("b").count() == 0, "a prompt is text"
    page.evaluate("prompt => { document.querySelector('#prompt').textContent = prompt; }", "a long one " * 300)
    assert page.evaluate("a.getBoundingClientRect().top") < 300, "the videos stay in sight"


def test_only_who_knows_the_address_is_let_in(study: Study, address: str, page: Page) -> None:
    def status(path: str) -> int:
        return page.request.get(f"{address}{path}").status

    assert status("/") == status("/other/") == status("/other/next?rater=me") == 404
    assert status("/secret/videos/..%2Fstudy.json") == status("/secret/videos/study.json") == 404
    assert status("/secret/next?rater=a/b") == 422
    task = next(iter(study.tasks.values()))
    body = {"rater": "me", "task": task.id, "answers": {"quality": task.files[0]}}
    assert page.request.post(f"{address}/secret/answer", data=body).status == 422
    answer = {"rater": "me", "task": task.id, "answers": dict.fromkeys(study.questions, "other.mp4")}
    assert page.request.post(f"{address}/secret/answer", data=answer).status == 422
    assert read_votes(study) == []


@pytest.mark.parametrize("secret", ["", "{anything}", "a/", "a b"])
def test_a_secret_that_keeps_nobody_out_is_refused(study: Study, secret: str) -> None:
    said = run("serve", study.folder, "--secret", secret, "--port", 1).output
    assert f"{secret!r} is no secret for an address: give letters, digits, - and _" in said


def test_enter_goes_on_after_a_click(study: Study, address: str, page: Page) -> None:
    page.goto(f"{address}/secret/?rater=me")
    page.wait_for_selector("fieldset")
    for field in page.locator("fieldset").all():
        field.get_by_role("button", name="A").click()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#done').textContent == '1 answered.'")
    assert len(read_votes(study)) == 2


def test_an_answer_that_cannot_be_stored_is_said_and_can_be_given_again(study: Study, address: str, page: Page) -> None:
    (study.folder / "votes.jsonl").mkdir()  # nothing can be appended to it
    page.goto(f"{address}/secret/?rater=me")
    page.wait_for_selector("fieldset")
    for field in page.locator("fieldset").all():
        field.get_by_role("button", name="A").click()
    page.locator("#next").click()
    page.wait_for_function("said.textContent.startsWith('Not stored (the answer could not be stored')")
    (study.folder / "votes.jsonl").rmdir()
    page.locator("#next").click()
    page.wait_for_function("said.textContent == '' && document.querySelector('#next').disabled")
    assert len(read_votes(study)) == 2


def test_a_mosaic_is_a_video_of_the_same_length(study: Study) -> None:
    import av

    (check,) = study.checks.values()
    seconds, pictures = [], []
    for file in check.files:
        with av.open(str(study.folder / "videos" / file)) as container:
            frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
            seconds.append(len(frames) / float(container.streams.video[0].average_rate or 1))
            pictures.append(frames[0].astype(float))
    assert seconds[0] == pytest.approx(seconds[1])
    assert np.abs(pictures[0] - pictures[1]).mean() > 2


def test_nothing_but_the_picture_tells_whose_a_video_is(study: Study, samples: dict[str, str], tmp_path: Path) -> None:
    again = make_study(samples, tmp_path / "again")
    stored = [{path.name for path in (each.folder / "videos").iterdir()} for each in (study, again)]
    assert not stored[0] & stored[1], "no seed gives the names"
    assert {path.stat().st_mtime for path in (study.folder / "videos").iterdir()} == {0}


def test_a_video_whose_mosaic_cannot_be_told_is_no_attention_check(tmp_path: Path) -> None:
    for model in ("one", "two"):
        (tmp_path / model).mkdir()
        for name in "ab":
            flat = np.full((8, 64, 96, 3), 90, np.uint8)
            pixels = flat if name == "a" else moving_square(3, 8, 64, 96)
            (tmp_path / model / f"{name}.mp4").write_bytes(encode(pixels))
    for k in range(4):
        made = make_study({name: str(tmp_path / name) for name in ("one", "two")}, tmp_path / f"study{k}", seed=k)
        (check,) = made.checks.values()
        (video,) = find_videos([str(made.folder / "videos" / check.files[0])])
        assert first_frames(video, 1).pixels.std() > 10, "not the flat one"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken_is_said_before_an_address_is_given(study: Study, host: str) -> None:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        found = run("serve", study.folder, "--host", host, "--port", taken.getsockname()[1])
    assert found.exit_code == 1
    assert found.output.endswith(": Address already in use; choose another --port\n")
    assert "for the raters" not in found.output
