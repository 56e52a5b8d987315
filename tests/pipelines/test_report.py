"""report.html stands alone, shows what the statistics say, and shows hostile names as text."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from curation import schema
from pipelines.decide import decide
from pipelines.figures import clock, histogram, percent
from pipelines.report import as_json, write_report
from tests.synthetic import exchange_scores, make_dataset

RULES: dict[str, Any] = {"motion.coarse": {"drop_lowest": "25%"}, "text_area": {"max": 0.07}}
ATTACK = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def hostile(i: int, row: dict[str, Any]) -> None:
    row["source_uri"] = f"/films/{ATTACK.replace('/', '')} {i % 4}.mp4"
    if row["motion_coarse_error"]:
        row["motion_coarse_error"] = f"odd: {ATTACK}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_dataset(tmp_path_factory.mktemp("report") / "data", change=hostile)
    decide(str(made), RULES, "default")
    write_report(str(made), "default")
    return made


def test_the_page_loads_nothing_and_says_what_the_statistics_say(root: Path, browser: Browser) -> None:
    requests: list[str] = []
    complaints: list[str] = []
    page = browser.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto((root / "report.html").as_uri())
    assert [url for url in requests if not url.startswith("data:")] == [(root / "report.html").as_uri()]
    assert complaints == []
    statistics = json.loads((root / "statistics/default.json").read_text())
    kept = statistics["funnel"]["steps"][-1]
    body = page.inner_text("body")
    assert f"{kept['clips']}\nclips kept, {clock(kept['seconds'])}" in body
    assert "The sum closes." in body
    rows = page.locator(".funnel .row.kept .number").all_inner_texts()
    assert rows == [str(kept["clips"]), clock(kept["seconds"]), percent(statistics["yield"]["kept_share"])]
    shown = page.locator("article.clip.kept img")
    assert shown.count() == min(24, kept["clips"])
    assert shown.first.evaluate("image => image.naturalWidth") == 160
    page.close()


def test_names_and_messages_are_data_never_markup(root: Path, browser: Browser) -> None:
    page = browser.new_page()
    page.goto((root / "report.html").as_uri())
    page.wait_for_timeout(100)
    assert page.title() == "data · default · Clipmill"
    assert page.locator("main img[src=x]").count() == 0
    assert page.locator("script").count() == 0
    text = page.inner_text("body")
    assert "<script>alert(1)<" in text
    assert "onerror=" in text
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_the_screen_and_follows_the_colour_scheme(
    root: Path, browser: Browser, width: int, scheme: Any
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.goto((root / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", colour)[:3]) / 3
    assert (brightness < 60) == (scheme == "dark")
    context.close()


def test_the_page_is_small(root: Path) -> None:
    assert (root / "report.html").stat().st_size < 1_000_000


def test_writing_it_again_gives_the_same_bytes(root: Path) -> None:
    before = (root / "report.html").read_bytes(), (root / "statistics/default.json").read_bytes()
    write_report(str(root), "default")
    assert before == ((root / "report.html").read_bytes(), (root / "statistics/default.json").read_bytes())


def test_a_decision_older_than_the_dataset_is_said_to_be(root: Path, tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "data", clips=12, media=False)
    (made / "clips/part-00001.parquet").rename(tmp_path / "later.parquet")
    decide(str(made), {}, "default")
    (tmp_path / "later.parquet").rename(made / "clips/part-00001.parquet")
    write_report(str(made), "default")
    assert "when the dataset held 6 clips; it now holds 12" in (made / "report.html").read_text()


def test_a_decision_on_scores_that_are_others_now_is_said_to_be(tmp_path: Path) -> None:
    said = "other scores than when this decision was made"
    made = make_dataset(tmp_path / "data", clips=12, media=False)
    decide(str(made), RULES, "default")
    write_report(str(made), "default")
    assert said not in (made / "report.html").read_text()
    exchange_scores(made)
    write_report(str(made), "default")
    assert said in (made / "report.html").read_text()
    decide(str(made), RULES, "default")
    write_report(str(made), "default")
    assert said not in (made / "report.html").read_text()


@pytest.mark.parametrize("clips", [0, 1])
def test_hardly_any_clips_still_make_a_page(tmp_path: Path, clips: int) -> None:
    made = make_dataset(tmp_path / "data", clips=clips, media=False)
    decide(str(made), RULES, "default")
    write_report(str(made), "default")
    text = (made / "report.html").read_text()
    assert ("This dataset holds no clips: 2 of 6 sources could not be read" in text) == (clips == 0)


def test_a_score_that_is_all_errors_is_shown_with_its_reason(tmp_path: Path) -> None:
    def fail(i: int, row: dict[str, Any]) -> None:
        row["motion_coarse"], row["motion_coarse_error"] = None, "undecodable: frame 3"

    made = make_dataset(tmp_path / "data", clips=5, media=False, change=fail)
    decide(str(made), RULES, "default")
    write_report(str(made), "default")
    text = (made / "report.html").read_text()
    assert "No clip could be scored." in text
    assert "undecodable: frame 3" in text


def test_media_that_is_gone_costs_the_pictures_only(tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "data", clips=5)
    decide(str(made), {}, "default")
    (made / "media/part-00000.tar").unlink()
    write_report(str(made), "default")
    assert "no picture" in (made / "report.html").read_text()


def test_a_frame_without_a_value_leaves_its_clip_without_a_score(tmp_path: Path) -> None:
    def hole(i: int, row: dict[str, Any]) -> None:
        if row["text_area"]:
            row["text_area"][i % 3] = None

    made = make_dataset(tmp_path / "data", clips=6, media=False, change=hole)
    decide(str(made), RULES, "default")
    write_report(str(made), "default")
    assert "text_area –" in (made / "report.html").read_text()


def test_a_histogram_marks_bounds_outside_its_values() -> None:
    data = {"low": 0.0, "high": 1.0, "clips": [1, 0, 3], "kept": [0, 0, 3], "beyond": 0}
    drawn = histogram(data, {"min": 0.5, "max": 9.0})
    assert [(line["x"], line["side"]) for line in drawn["lines"]] == [(50.0, "low"), (100.0, "high")]
    assert [(bar["all"], bar["kept"]) for bar in drawn["bars"]] == [(pytest.approx(100 / 3), 0.0), (100.0, 100.0)]


def test_no_two_ticks_of_an_axis_read_the_same() -> None:
    data = {"clips": [3] + [0] * 47, "kept": [3] + [0] * 47, "low": 1.0, "high": 1.01}
    texts = [tick["text"] for tick in histogram(data)["ticks"]]
    assert texts == ["1", "1.002", "1.004", "1.006", "1.008", "1.01"]


def test_json_lists_of_numbers_stand_on_one_line_and_strings_are_left_alone() -> None:
    data = {"a": [1, 2.5, None], "b": ["x [\n 1,\n  2]", 3], "c": {"d": [[1, 2], [3, 4]]}, "e": []}
    written = as_json(data)
    assert json.loads(written) == data
    assert '"a": [1, 2.5, null]' in written


def test_every_score_that_was_asked_for_has_a_card(root: Path) -> None:
    text = (root / "report.html").read_text()
    asked = ("motion.coarse", "camera", "text_area")
    assert [score.name for score in schema.SCORES if f"<h3>{score.name}</h3>" in text] == list(asked)
