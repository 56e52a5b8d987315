"""Who may do what: named tokens with a role, of which only hashes are kept.

The file is JSON, readable by its owner only. A token is 256 random bits, so a plain SHA-256 of it cannot be turned
back, and needs no salt. The service reads the file again when it has changed: what is revoked is revoked at once.
"""

import hashlib
import hmac
import json
import os
import secrets
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from itsdangerous import BadSignature, URLSafeTimedSerializer

Role = Literal["read", "submit", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may: look; submit, and manage one's own jobs; manage everybody's."""

_SESSION_S = 12 * 3600


class TokenError(Exception):
    """A token that cannot be made or revoked, or a file that cannot be used. One line for a person."""


@dataclass(frozen=True)
class Principal:
    """Who asks."""

    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """Whether this one has that role or a higher one."""
        return ROLES.index(self.role) >= ROLES.index(role)


@dataclass(frozen=True)
class Token:
    """What is kept of a token. `expires` is None for one that does not."""

    name: str
    role: Role
    sha256: str
    made: str
    expires: str | None

    @property
    def expired(self) -> bool:
        return self.expires is not None and datetime.now(UTC) >= datetime.fromisoformat(self.expires)


def default_path() -> Path:
    """$CLIPMILL_TOKENS, or tokens.json in the user's configuration folder."""
    if named := os.environ.get("CLIPMILL_TOKENS"):
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "clipmill" / "tokens.json"


class TokenStore:
    """The tokens of one file. Every method may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._read_at: tuple[int, int] | None = None
        self._data: dict[str, Any] = {"key": "", "tokens": []}

    def make(self, name: str, role: Role, days: float | None = None) -> str:
        """Make a token and give it, this once. Raises TokenError when the name is taken."""
        data = self._load()
        if any(each["name"] == name for each in data["tokens"]):
            raise TokenError(f"there is a token called {name} already; revoke it first, or choose another name")
        text = f"cm_{secrets.token_urlsafe(32)}"
        made = datetime.now(UTC).replace(microsecond=0)
        expires = (made + timedelta(days=days)).isoformat() if days is not None else None
        token = {"name": name, "role": role, "sha256": _hash(text), "made": made.isoformat(), "expires": expires}
        self._save({"key": data["key"] or secrets.token_hex(32), "tokens": [*data["tokens"], token]})
        return text

    def revoke(self, name: str) -> None:
        """Forget a token; sessions that were opened with it end too. Raises TokenError when there is none."""
        data = self._load()
        kept = [each for each in data["tokens"] if each["name"] != name]
        if len(kept) == len(data["tokens"]):
            raise TokenError(f"no token is called {name}")
        self._save({"key": data["key"], "tokens": kept})

    def tokens(self) -> list[Token]:
        """All tokens, without what they are."""
        return [Token(**each) for each in self._load()["tokens"]]

    def who(self, text: str) -> Principal | None:
        """Whose token that is; None for one that is unknown, revoked or expired."""
        wanted, found = _hash(text), None
        for token in self.tokens():
            if hmac.compare_digest(token.sha256, wanted) and not token.expired:
                found = Principal(token.name, token.role)
        return found

    def session(self, text: str) -> str | None:
        """A signed cookie that stands for a token for half a day; None where `who` finds nobody."""
        who = self.who(text)
        return None if who is None else str(self._signer().dumps([who.name, _hash(text)[:16]]))

    def who_by_session(self, cookie: str) -> Principal | None:
        """Whose session a cookie opens; None once it is too old or its token is gone."""
        try:
            name, fingerprint = self._signer().loads(cookie, max_age=_SESSION_S)
        except (BadSignature, ValueError, TypeError):
            return None
        for token in self.tokens():
            if token.name == name and token.sha256[:16] == fingerprint and not token.expired:
                return Principal(token.name, token.role)
        return None

    def _signer(self) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(self._load()["key"] or secrets.token_hex(32), salt="clipmill session")

    def _load(self) -> dict[str, Any]:
        with self._lock:
            try:
                found = self.path.stat()
            except FileNotFoundError:
                return {"key": "", "tokens": []}
            if (stamp := (found.st_mtime_ns, found.st_ino)) != self._read_at:
                try:
                    data = json.loads(self.path.read_text(encoding="utf-8"))
                    [Token(**each) for each in data["tokens"]]
                except (OSError, ValueError, TypeError, KeyError) as error:
                    raise TokenError(f"{self.path}: not a file of tokens ({error})") from None
                self._data, self._read_at = data, stamp
            return self._data

    def _save(self, data: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1)
        os.replace(temporary, self.path)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
