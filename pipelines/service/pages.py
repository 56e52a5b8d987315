"""The pages that a browser gets besides the dashboard: jobs, the form for a new one, and the log-in.

They are plain documents with a little script that speaks to the HTTP interface, so what a person may do there is what
their token may do. The form is made from the JSON schema of the spec: a new key of the spec is a new field of the form.
"""

from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from pipelines import figures
from pipelines.service.auth import COOKIE, Failures, principal_of, refusal
from pipelines.service.form import sections
from pipelines.service.jobs import Jobs
from pipelines.service.tokens import TokenStore

_POLICY = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; frame-ancestors 'none'; object-src 'none'; base-uri 'self'; form-action 'self'",
    "Cache-Control": "no-store",
}
_TOKEN_BYTES = 1000


def pages(jobs: Jobs, tokens: TokenStore | None, failures: Failures, *, https: bool) -> APIRouter:
    """The routes of the pages. They are not part of the documented interface."""
    router = APIRouter(include_in_schema=False)

    def page(name: str, status: int = 200, **values: Any) -> HTMLResponse:
        text = figures.environment().get_template(f"service/{name}.html.j2").render(**values)
        return HTMLResponse(text, status, _POLICY)

    @router.get("/")
    def home() -> Response:
        return RedirectResponse("/jobs", 303)

    @router.get("/jobs")
    def jobs_page(request: Request) -> Response:
        who = principal_of(request)
        return page("jobs", who=who, may_submit=who.may("submit"), login=tokens is not None, sections=sections())

    @router.get("/service.js")
    def script() -> Response:
        text = figures.environment().get_template("service/jobs.js.j2").render()
        return Response(text, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    @router.get("/login")
    def login_page(request: Request) -> Response:
        return page("login", wrong="", next=_local(request.query_params.get("next", "")))

    @router.post("/login")
    async def login(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _TOKEN_BYTES:
                return refusal(413, "that is too long for a token")
        form = parse_qs(body.decode("utf-8", "replace"))
        where = _local(form.get("next", [""])[0])
        cookie = tokens.session(form.get("token", [""])[0].strip()) if tokens is not None else ""
        if cookie is None:
            wait_s = failures.note(request.client.host if request.client else "?")
            said = f"Too many wrong tokens; wait {wait_s} s." if wait_s else "This token is wrong, expired or revoked."
            return page("login", 429 if wait_s else 401, wrong=said, next=where)
        answer = RedirectResponse(where, 303)
        answer.set_cookie(COOKIE, cookie, max_age=12 * 3600, httponly=True, secure=https, samesite="strict")
        return answer

    @router.post("/logout")
    def logout() -> Response:
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, httponly=True, secure=https, samesite="strict")
        return answer

    return router


def _local(where: str) -> str:
    """A path of this service to go to; never another site's."""
    plain = where.startswith("/") and not where.startswith("//") and "\\" not in where and "\n" not in where
    return where if plain and where.isprintable() else "/jobs"
