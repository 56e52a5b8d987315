"""Whatever a file is called, its source has a name that is text, and the name means that file."""

import os

import pytest

from curation.location import file_system, local_path, local_uri

ODD = [b"/films/caf\xe9.mp4", b"/films/100%/\xff%FF.mp4", b"/films/\xe2\x82.mp4"]
PLAIN = ["/films/a.mp4", "/films/100%.mp4", "/films/caf%E9.mp4", "/films/é ü.mp4", "/films/a::b.mp4", "/a:/b"]


@pytest.mark.parametrize("path", [*map(os.fsdecode, ODD), *PLAIN])
def test_a_path_has_one_name_that_leads_back(path: str) -> None:
    uri = local_uri(path)
    assert uri.encode().decode() == uri
    assert (uri == path) == (path in PLAIN)
    assert local_path(uri) == path
    assert file_system(uri)[1] == path


def test_urls_are_not_paths() -> None:
    for uri in ("s3://bucket/a.mp4", "zip://x::/films/a.zip", "https://films.example/a.mp4"):
        assert local_path(uri) is None
    assert local_path("file:///films/a%20b.mp4") == "/films/a b.mp4"
