"""What goes wrong in a file system is an OSError, whichever it is."""

from collections.abc import Callable
from typing import Any

import pytest

from curation.storage import Storage


class NoCredentials(Exception):
    """As an object store's library has it: no OSError."""


@pytest.mark.parametrize(
    "use",
    [
        lambda storage: storage.exists(),
        lambda storage: storage.read("a"),
        lambda storage: storage.read_range("a", 0, 1),
        lambda storage: storage.write("a", b"a"),
        lambda storage: storage.create("a", b"a"),
        lambda storage: storage.list("a"),
        lambda storage: storage.rename("a", "b"),
        lambda storage: storage.remove("a"),
    ],
)
def test_a_store_that_cannot_be_asked(use: Callable[[Storage], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage("memory://bucket")

    def refuse(*_: object, **__: object) -> None:
        raise NoCredentials("unable to locate credentials")

    for name in ("exists", "cat_file", "pipe_file", "ls", "mv", "rm_file"):
        monkeypatch.setattr(type(storage.fs), name, refuse)
    with pytest.raises(OSError, match=r"memory://.*bucket.*: unable to locate credentials"):
        use(storage)
