"""Files that appear complete under their final name or not at all, on a local path or any fsspec URL.

On a local file system: a temporary name in the same folder, then an atomic rename. On an object store a single upload
is atomic by itself. Nothing here appends or rewrites in place.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from curation.location import file_system

TEMPORARY_PREFIX = ".tmp-"
"""Names that a killed writer may leave behind; no reader looks at them and `remove_leftovers` deletes them."""

_STAMP = ("size", "mtime", "created", "LastModified", "ETag", "updated", "etag", "last_modified")
"""What file systems call a file's size, time and content hash; each of them has some."""


class Storage:
    """One folder tree, addressed by paths relative to its root, `/`-separated.

    What goes wrong is an OSError, whatever the file system behind it raises.
    """

    def __init__(self, root: str | Path) -> None:
        """Open the tree at `root` (a local path or a URL that fsspec knows). Creates nothing."""
        self.root = str(root)
        self.fs: fsspec.AbstractFileSystem
        self.fs, path = file_system(self.root)
        self.base = path.rstrip("/") or "/"

    @property
    def is_local(self) -> bool:
        """Whether the tree is a folder of this machine."""
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str = "") -> str:
        """The path of `name` inside the file system (without the protocol)."""
        return f"{self.base}/{name}" if name else self.base

    def url(self, name: str = "") -> str:
        """The path of `name` as a person or another program would write it."""
        return self.path(name) if self.is_local else self.fs.unstrip_protocol(self.path(name))

    def local(self, name: str = "") -> Path:
        """The path of `name` as a pathlib path. Raises ValueError when the tree is not local."""
        if not self.is_local:
            raise ValueError(f"{self.root}: not a local folder")
        return Path(self.path(name))

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder of that name is there now."""
        self.fs.invalidate_cache()
        with self._faults(name):
            return bool(self.fs.exists(self.path(name)))

    def read(self, name: str) -> bytes:
        """All bytes of one file. Raises FileNotFoundError."""
        with self._faults(name):
            return bytes(self.fs.cat_file(self.path(name)))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`: how a clip is taken out of its tar."""
        with self._faults(name):
            return bytes(self.fs.cat_file(self.path(name), start=offset, end=offset + size))

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Put a whole file under its final name, atomically. Raises OSError."""
        with self._faults(name), self.writing(name) as temporary:
            if self.is_local:
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
            else:
                self.fs.pipe_file(temporary, bytes(data))

    def create(self, name: str, data: bytes) -> None:
        """The same on an object store, where there is no such file yet. Raises FileExistsError, or another OSError."""
        with self._faults(name):
            self.fs.pipe_file(self.path(name), data, mode="create")

    @contextmanager
    def writing(self, name: str) -> Iterator[str]:
        """A path inside the file system to write `name` to; it becomes `name` when the block ends without an exception.

        On an object store this is the final name itself: an upload shows only once it is complete.
        """
        final = self.path(name)
        folder, _, leaf = final.rpartition("/")
        if not self.is_local:
            try:
                yield final
            except BaseException:
                self.remove(name)  # closing a file half written uploads the half
                raise
            return
        os.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/{TEMPORARY_PREFIX}{uuid.uuid4().hex[:12]}-{leaf}"
        try:
            yield temporary
            os.replace(temporary, final)
        except OSError as error:
            if error.errno is not None and error.filename is None:
                error.filename = final  # a full disk is told by `write`, which knows no name
            raise
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)

    def list(self, folder: str) -> list[str]:
        """Names of the files directly inside `folder`, sorted, without temporary ones; none when it does not exist."""
        return list(self.stamps(folder))

    def stamps(self, folder: str) -> dict[str, tuple[Any, ...]]:
        """The files of `list`, each with what is different when it is replaced."""
        self.fs.invalidate_cache()
        try:
            with self._faults(folder):
                entries = self.fs.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return {}
        found = {
            str(entry["name"]).rstrip("/").rpartition("/")[2]: tuple(entry.get(key) for key in _STAMP)
            for entry in entries if entry["type"] == "file"
        }  # fmt: skip
        return {name: found[name] for name in sorted(found) if name and not name.startswith(TEMPORARY_PREFIX)}

    def rename(self, old: str, new: str) -> None:
        """Move a file, replacing what is there. Atomic on a local file system; copy and delete on an object store."""
        if self.is_local:
            os.replace(self.path(old), self.path(new))
        else:
            with self._faults(old):
                self.fs.mv(self.path(old), self.path(new))

    def remove(self, name: str) -> None:
        """Delete one file; no error when it is already gone."""
        with suppress(FileNotFoundError), self._faults(name):
            self.fs.rm_file(self.path(name))

    def remove_leftovers(self, folder: str) -> None:
        """Delete the temporary files that killed writers left in `folder`."""
        if not self.is_local or not os.path.isdir(self.path(folder)):
            return
        for name in os.listdir(self.path(folder)):
            if name.startswith(TEMPORARY_PREFIX):
                os.unlink(self.path(f"{folder}/{name}"))

    @contextmanager
    def _faults(self, name: str) -> Iterator[None]:
        """Object stores have exceptions of their own: no credentials, nobody who answers, an operation that is not."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{self.url(name)}: {str(error) or type(error).__name__}") from error
