"""Which files a job may read, when somebody else than the machine's user names them.

The service limits inputs to configured roots and, if wanted, to public http(s) servers. It checks a spec when it is
submitted; but a list names further sources, a link may lead elsewhere, and a name may resolve to another address later.
So the job's own processes check again, with the same policy, which travels in the environment variable `VARIABLE`.
Without it (the command line) everything may be read that the user can read.
"""

import ipaddress
import json
import os
import posixpath
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from curation.location import local_path

VARIABLE = "CLIPMILL_INPUTS"
_WEB = ("http", "https")


class Forbidden(Exception):
    """An input that may not be read. One line for a person."""


@dataclass(frozen=True)
class InputPolicy:
    """Where sources may come from.

    Attributes:
        roots: local folders (absolute) and URLs; what lies below one of them may be read.
        web: http and https, of any server with a public address.
    """

    roots: tuple[str, ...] = ()
    web: bool = False

    @classmethod
    def of(cls, roots: Sequence[str], web: bool = False) -> "InputPolicy":
        """The policy of a configuration: relative folders are made absolute."""
        return cls(tuple(root.rstrip("/") if "://" in root else os.path.realpath(root) for root in roots), web)

    def check(self, uri: str) -> None:
        """Raise Forbidden, with the reason, for what may not be read. Names of http servers are looked up."""
        path = local_path(uri)
        if (path is None and "::" in uri) or any(ord(character) < 32 for character in path or uri):
            raise Forbidden(f"{uri!r}: chained URLs and control characters are not accepted")
        if path is not None:
            self._check_path(path, uri)
            return
        scheme = uri.partition("://")[0]
        parts = urlsplit(uri)
        if parts.username or parts.password:
            raise Forbidden(
                f"an input on {parts.hostname} carries a password; credentials belong in the cluster's environment"
            )
        clean = posixpath.normpath(unquote(parts.path)) if parts.path else ""
        if ".." in unquote(parts.path).split("/"):
            raise Forbidden(f"{uri}: '..' is not accepted in a URL")
        plain = f"{scheme.lower()}://{parts.netloc}{clean}"
        if any(plain == root or plain.startswith(root + "/") for root in self.roots):
            return
        if self.web and scheme.lower() in _WEB:
            _check_public(parts.hostname or "", uri)
            return
        raise Forbidden(f"{uri}: not below any of the inputs that are allowed here ({self._allowed()})")

    def _check_path(self, path: str, uri: str) -> None:
        if not os.path.isabs(path):
            raise Forbidden(f"{uri}: not an absolute path")
        head = path.split("*")[0].split("?")[0].split("[")[0]  # what of a glob is certain
        for real in {os.path.realpath(path), os.path.realpath(head)}:
            if not any("://" not in root and _below(real, root) for root in self.roots):
                raise Forbidden(f"{uri}: not below any of the inputs that are allowed here ({self._allowed()})")

    def _allowed(self) -> str:
        return ", ".join([*self.roots, *(["http(s) servers with public addresses"] if self.web else [])]) or "none"

    def dumps(self) -> str:
        """The policy as the value of `VARIABLE`."""
        return json.dumps({"roots": self.roots, "web": self.web})


def from_environment() -> InputPolicy | None:
    """The policy that this process was given; None: no limits."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return None
    data = json.loads(text)
    return InputPolicy(tuple(data["roots"]), bool(data["web"]))


def enforce() -> InputPolicy | None:
    """The policy of this process; where there is one, from now on fsspec's http connects to public addresses only,
    wherever a redirect or a name server points."""
    policy = from_environment()
    if policy is not None:
        from fsspec.config import conf

        for scheme in _WEB:
            conf.setdefault(scheme, {})["get_client"] = _guarded_client
    return policy


async def _guarded_client(**options: Any) -> Any:
    """An aiohttp session that opens no socket to an address that is not public (fsspec's `get_client`)."""
    import aiohttp

    policy = from_environment()
    named = [urlsplit(root).hostname or "" for root in policy.roots if root.startswith("http")] if policy else []
    trusted = {str(target[0]) for host in named for *_, target in _addresses(host)}  # the operator named these servers

    def opened(address: Any) -> socket.socket:
        family, kind, protocol, _, target = address
        if target[0] not in trusted and not _is_public(target[0]):
            raise OSError(f"{target[0]} is not a public address")
        opened = socket.socket(family, kind, protocol)
        opened.setblocking(False)
        return opened

    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=opened), **options)


def _addresses(host: str) -> list[Any]:
    try:
        return list(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError):
        return []


def _is_public(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_global


def _below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _check_public(host: str, uri: str) -> None:
    found = _addresses(host)
    if not found:
        raise Forbidden(f"{uri}: the name of the server cannot be looked up")
    for *_, target in found:
        if not _is_public(str(target[0])):
            raise Forbidden(f"{uri}: the server's address {target[0]} is not public")
