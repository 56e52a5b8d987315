"""Where a source is, as text: a path of this machine, or a URL.

Names of files need not be Unicode, but reports, tables and logs are. A path that is not Unicode is therefore written as
a file URL, `file:///films/caf%E9.mp4`, wherever names are kept; any other path stands for itself.
"""

import os
from urllib.parse import unquote_to_bytes

import fsspec

_SCHEME = "file://"


def local_path(uri: str) -> str | None:
    """The path that a source's name means; None for a URL of elsewhere."""
    if uri.startswith(_SCHEME):
        return os.fsdecode(unquote_to_bytes(os.fsencode(uri.removeprefix(_SCHEME))))
    return uri if uri.startswith("/") or "://" not in uri else None


def local_uri(path: str) -> str:
    """The name of the source at a path: the path, or a file URL where it is not Unicode."""
    if is_unicode(path):
        return path
    written = os.path.abspath(path).replace("%", "%25")
    return _SCHEME + "".join(each if is_unicode(each) else f"%{os.fsencode(each)[0]:02X}" for each in written)


def is_unicode(path: str) -> bool:
    """Whether a path can be written as text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def file_system(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """fsspec's file system of a source, and the path in it. A path is left whole: fsspec takes those with `::` apart.

    Raises:
        ImportError, ValueError: a URL that fsspec cannot read.
    """
    path = local_path(uri)
    if path is not None:
        plain = path.startswith("/")  # `..` is then left to the system, which follows links first, as input policies do
        return fsspec.filesystem("file"), path if plain else os.path.abspath(os.path.expanduser(path))
    fs, inside = fsspec.core.url_to_fs(uri)
    return fs, str(inside)
