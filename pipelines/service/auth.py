"""Which requests are let in, and as whom: one ASGI layer around everything that the service serves.

On a loopback address a request needs no token and may do everything. Elsewhere it brings a bearer token or the cookie
of a session. In both cases a browser's request must come from the service's own pages (Origin, Sec-Fetch-Site): a page
from elsewhere that makes the user's browser send something is refused, WebSockets included.
"""

import time
from collections import defaultdict, deque
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.service.tokens import Principal, TokenStore

COOKIE = "clipmill_session"
LOCAL = Principal("local", "admin")
_PUBLIC = ("/api/health", "/login")
_SAFE = ("GET", "HEAD", "OPTIONS")
_FAILURES, _WINDOW_S = 10, 60.0
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Content-Security-Policy": "frame-ancestors 'self'; object-src 'none'; base-uri 'self'",
}


class Failures:
    """Counts wrong tokens per client address. A right token is never turned away, so nobody can lock others out."""

    def __init__(self) -> None:
        self._at: defaultdict[str, deque[float]] = defaultdict(deque)

    def note(self, client: str) -> int:
        """Count one more. Returns the seconds to wait; 0 while there were few."""
        now = time.monotonic()
        if len(self._at) > 10_000:
            self._at.clear()
        times = self._at[client]
        times.append(now)
        while times and now - times[0] > _WINDOW_S:
            times.popleft()
        return 0 if len(times) <= _FAILURES else 1 + int(_WINDOW_S - (now - times[-_FAILURES]))


class Gate:
    """The layer. What is let in finds its `Principal` in `scope["principal"]`."""

    def __init__(self, app: ASGIApp, tokens: TokenStore | None, failures: Failures) -> None:
        """`tokens` is None where none are needed."""
        self._app, self._tokens, self._failures = app, tokens, failures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        answer = self._judge(scope)

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                more = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *[each for each in more if each[0] not in present]]
            await send(message)

        if answer is None:
            await self._app(scope, receive, dressed)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "not allowed"})
        else:
            await answer(scope, receive, dressed)

    def _judge(self, scope: Scope) -> Response | None:
        """The answer to a request that is not let in; None for one that is."""
        headers = Headers(scope=scope)
        public = scope["path"] in _PUBLIC
        authorization = headers.get("authorization")
        principal: Principal | None = None
        if authorization is not None:
            kind, _, text = authorization.partition(" ")
            if self._tokens is None:
                principal = LOCAL
            elif kind.lower() == "bearer":
                principal = self._tokens.who(text.strip())
            if principal is None:
                return self.refused(scope, "the token is wrong, has expired or was revoked")
        elif self._tokens is None:
            principal = LOCAL
        elif (cookie := _cookie(headers)) is not None:
            principal = self._tokens.who_by_session(cookie)
        if authorization is None and not self._from_here(scope, headers):
            return refusal(403, "the request comes from another site's page")
        if principal is None and not public:
            if scope["type"] == "http" and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
                return RedirectResponse(f"/login?next={quote(scope['path'])}", 303)
            return refusal(401, "a token is needed: Authorization: Bearer ...", {"WWW-Authenticate": "Bearer"})
        scope["principal"] = principal
        scope["may_change"] = principal is not None and principal.may("submit")  # what the dashboard asks
        return None

    def refused(self, scope: Scope, message: str) -> Response:
        """401, or 429 for a client that has been wrong too often."""
        client = scope.get("client") or ("?", 0)
        wait_s = self._failures.note(client[0])
        if wait_s:
            return refusal(429, f"too many wrong tokens; wait {wait_s} s", {"Retry-After": str(wait_s)})
        return refusal(401, message, {"WWW-Authenticate": "Bearer"})

    def _from_here(self, scope: Scope, headers: Headers) -> bool:
        """Whether a request that needs care comes from the service's own pages, or from no browser at all."""
        if scope["type"] == "http" and scope["method"] in _SAFE:
            return True
        if (origin := headers.get("origin")) is not None:
            return urlsplit(origin).netloc == headers.get("host")
        if (site := headers.get("sec-fetch-site")) is not None:
            return site in ("same-origin", "none")
        return _cookie(headers) is None  # every browser that sends our cookie sends one of the two as well


def principal_of(request: Request) -> Principal:
    """Who a request that was let in comes from."""
    found: Principal = request.scope["principal"]
    return found


def refusal(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as every answer of the service states it."""
    return JSONResponse({"detail": message or HTTPStatus(status).phrase}, status, headers)


def _cookie(headers: Headers) -> str | None:
    try:
        cookies: SimpleCookie = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return None
    return cookies[COOKIE].value if COOKIE in cookies else None
