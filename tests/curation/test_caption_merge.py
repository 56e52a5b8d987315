"""Merging captions: what may stand, what falls back and why; by a small model in a model folder, and by SmolLM2."""

from pathlib import Path

import pytest
import tiny_language_model
import torch

from curation.caption_merge import CaptionMerger, MergedCaption, check_merged
from curation.errors import CannotScore
from curation.weights import WeightsUnavailable

SPATIAL, TEMPORAL = "a man riding a bicycle down a street", "a person pedals past a parked van"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a man rides a bicycle down a street past a parked van", None),
        ('"A man riding a bicycle pedals past a van."', None),
        ("", "empty"),
        ("   \n ", "empty"),
        ("Sure! A man rides a bicycle past a van.", "comment"),
        ("Here is the merged caption: a man rides a bicycle past a van", "comment"),
        ("The first clip describes a man riding a bicycle, a person pedals", "comment"),
        ("a man rides a bicycle " * 15, "too_long"),
        ("a man rides a bicycle past a van, a man rides a bicycle", "repeats"),
        ("a woman cooks soup", "lost_facts"),
        ("a man riding a bicycle", "lost_facts"),
        ("a man on a bicycle passes a van under purple dragons with seven golden castles burning", "new_facts"),
    ],
)
def test_an_answer_is_checked(text: str, reason: str | None) -> None:
    assert check_merged(text, SPATIAL, TEMPORAL)[1] == reason


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> CaptionMerger:
    return CaptionMerger(weights=[tiny_language_model.folder(tmp_path_factory.mktemp("llm") / "tiny")], batch=2)


def test_pairs_that_need_no_model(small: CaptionMerger) -> None:
    answers = small.merge([("a dog", None), (None, "a cat"), ("A dog", "a dog"), (None, None), ("", None)])
    assert answers[:3] == [
        MergedCaption("a dog", "spatial", "one_caption"),
        MergedCaption("a cat", "temporal", "one_caption"),
        MergedCaption("A dog", "spatial", "same"),
    ]
    for answer in answers[3:]:
        assert isinstance(answer, CannotScore)
        assert answer.reason == "no_caption"


def test_nonsense_falls_back_to_the_caption_that_the_model_finds_likelier(small: CaptionMerger) -> None:
    pairs = [("w1 w2 w3 w4", "w9 w8 w7"), ("w9 w8 w7", "w1 w2 w3 w4"), ("w5 w5 w6", "w11 w12")]
    for pair, answer in zip(pairs, small.merge(pairs), strict=True):
        assert isinstance(answer, MergedCaption)
        assert answer.reason is not None
        surprise = small.surprise(pair)
        assert answer.text == pair[surprise.index(min(surprise))]
        assert answer.source == ("spatial" if answer.text == pair[0] else "temporal")


def test_an_accepted_answer_is_the_caption(small: CaptionMerger, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "A man riding a bicycle pedals past a parked van."
    monkeypatch.setattr(small, "_write", lambda pairs: [[answer] for _ in pairs])
    assert small.merge([(SPATIAL, TEMPORAL)]) == [
        MergedCaption("A man riding a bicycle pedals past a parked van.", "merged", None)
    ]


def test_where_the_likeliest_answer_fails_the_first_other_that_passes_is_taken(
    small: CaptionMerger, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = "a man riding a bicycle pedals past a van"
    asked: list[tuple[int, int]] = []

    def write(pairs: list[tuple[str, str]], beams: int = 1) -> list[list[str]]:
        asked.append((len(pairs), beams))
        likely = [good if spatial == SPATIAL else "Sure! A merged caption." for spatial, _ in pairs]
        others = ["", "a dog runs on a beach", "a dog that runs on a beach"]
        return [[text] for text in likely] if beams == 1 else [[likely[k], *others] for k in range(len(pairs))]

    monkeypatch.setattr(small, "_write", write)
    first, second, third = small.merge([(SPATIAL, TEMPORAL), ("a dog on a beach", "a dog runs"), ("w1 w2", "w9 w8")])
    assert first == MergedCaption(good, "merged", None)
    assert second == MergedCaption("a dog runs on a beach", "merged", None)
    assert isinstance(third, MergedCaption)
    assert third.reason == "comment"  # that of the likeliest
    assert asked == [(2, 1), (1, 1), (2, 4)]  # batches of two


def test_batches_do_not_change_an_answer(small: CaptionMerger) -> None:
    pairs = [("w1 w2", "w3 w4 w5 w6 w7"), ("w8", "w9"), ("w10 w11 w12 w13", "w14")]
    for beams in (1, 4):
        assert [small._write([pair], beams)[0] for pair in pairs] == small._write(pairs, beams)


def test_the_prompts_version_is_part_of_the_name(small: CaptionMerger) -> None:
    assert small.name == "tiny_prompt_v2"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="is not a language model"):
        CaptionMerger(weights=[tmp_path])


def test_a_weak_writer_may_add_nothing() -> None:
    added = "A man riding a bicycle down a street pedals past a van on a beach."
    assert check_merged(added, SPATIAL, TEMPORAL)[1] is None
    assert check_merged(added, SPATIAL, TEMPORAL, new_words=0.0)[1] == "new_facts"


def test_smollm2_merges_captions_and_tells_one_from_scrambled_words() -> None:
    torch.set_num_threads(1)
    smollm2 = CaptionMerger(new_words=0.0)
    assert smollm2.name == "SmolLM2-135M-Instruct.Q4_1_prompt_v2"
    good, scrambled = smollm2.surprise([SPATIAL, "street a down riding bicycle man a a"])
    assert good + 2 < scrambled
    pairs = [
        ("a large white rabbit in a green meadow", "the rabbit yawns and stretches its arms"),
        ("a surfer riding a wave in the ocean", "the surfer falls into the water"),
    ]
    answers = [answer for answer in smollm2.merge(pairs) if isinstance(answer, MergedCaption)]
    assert [answer.source for answer in answers] == ["merged"] * 2
    assert answers[0].text == "a large white rabbit in a green meadow yawns and stretches its arms"
    assert "wave" in answers[1].text  # the likeliest answer brings new facts
    assert "falls" in answers[1].text
