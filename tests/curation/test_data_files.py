"""YAML and JSON that could be understood in two ways are refused in one line."""

import pytest

from curation.data_files import read_json, read_yaml


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clips: {min: 5 s}\nother: 1\nclips: {mode: exact}", "line 3: the key 'clips' is there twice"),
        ("a:\n  - {b: 1, 'b': 2}", "line 2: the key 'b' is there twice"),
        ("[" * 5000, "nested too deep"),
        ("a: 2026-13-01", "month must be in 1..12"),
        (b"a: \xff", "can't decode byte"),
        ("a: [", "while parsing a flow"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ('a: "\\ud800"', "invalid Unicode character"),
    ],
)
def test_yaml_that_is_ambiguous_or_none_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value)


def test_yaml_is_read_as_it_is_everywhere() -> None:
    assert read_yaml("") is None
    assert read_yaml(b"a: &x {b: 1, c: off}\nd: *x\ne: {<<: *x, b: 2}") == {
        "a": {"b": 1, "c": False},
        "d": {"b": 1, "c": False},
        "e": {"b": 2, "c": False},
    }
    with pytest.raises(ValueError, match="aliases are not accepted"):
        read_yaml("a: &x 1\nb: *x", aliases=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' is there twice"),
        ("[" * 100_000, "nested too deep"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('["\\ud800"]', "surrogates not allowed"),
        ("{", "Expecting property name"),
    ],
)
def test_json_that_is_ambiguous_or_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_json(text)
    assert read_json('{"a": [1, "\\ud83d\\ude00"]}') == {"a": [1, "😀"]}
