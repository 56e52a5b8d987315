"""The service as one application: interface, pages, dashboard, and who is let in."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from pipelines.service.auth import Failures, Gate, refusal
from pipelines.service.jobs import JobError, Jobs
from pipelines.service.pages import pages
from pipelines.service.routes import Fault, api
from pipelines.service.tokens import TokenError, TokenStore
from pipelines.spec import Spec

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LOCAL_NAMES = ["127.0.0.1", "localhost", "[::1]"]
_TAGS = [
    {"name": "jobs", "description": "Curation jobs."},
    {"name": "service", "description": "The service itself."},
]
log = logging.getLogger("clipmill.service")


def create_app(jobs: Jobs, tokens: TokenStore | None, *, dashboard: bool = True, https: bool = False) -> FastAPI:
    """The application. It keeps the jobs going while it is served.

    Args:
        tokens: who is let in; None on a loopback address: everybody who can reach it there.
        dashboard: mount the dashboard of the jobs' datasets.
        https: cookies go over TLS only.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        end: Callable[[], None] = jobs.keep_going()
        try:
            yield
        finally:
            end()

    app = FastAPI(
        title="Clipmill",
        summary="Curation jobs on a Ray cluster.",
        version="1",
        lifespan=lifespan,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        openapi_tags=_TAGS,
    )
    failures = Failures()
    app.include_router(api(jobs))
    app.include_router(pages(jobs, tokens, failures, https=https))
    _answer_in_one_sentence(app)
    app.openapi = lambda: _openapi(app, needs_token=tokens is not None)  # type: ignore[method-assign]
    nothing = _Nothing(app.router.routes[:])
    app.router.routes += [Route("/api", nothing), Route("/api/{rest:path}", nothing)]
    if dashboard:
        from pipelines.dashboard.datasets import Registry
        from pipelines.dashboard.server import attach

        datasets = Registry(lambda: {job.record.id: jobs.storage(job.record.id).root for job in jobs.list()})
        attach(app, datasets, home="Jobs")
    app.add_middleware(Gate, tokens=tokens, failures=failures)
    if tokens is None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=_LOCAL_NAMES)
    return app


class _Nothing:
    """Answers what is at /api or below and is no operation: else the dashboard would, with a page of its own."""

    def __init__(self, operations: list[BaseRoute]) -> None:
        self._operations = operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for route in self._operations:
            if route.matches(scope)[0] == Match.PARTIAL:  # another method
                await route.handle(scope, receive, send)
                return
        raise HTTPException(404)


def _answer_in_one_sentence(app: FastAPI) -> None:
    @app.exception_handler(JobError)
    def job_error(request: Request, error: JobError) -> Response:
        return refusal(error.status, str(error))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        faults = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()]
        return refusal(422, "; ".join(faults))

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> Response:
        said = str(error.detail)
        if error.status_code == 404 and said == "Not Found":
            said = f"there is nothing at {request.url.path}"
        return refusal(error.status_code, said, dict(error.headers or {}))

    @app.exception_handler(TokenError)
    def tokens(request: Request, error: TokenError) -> Response:
        log.error("%s", error)
        return refusal(500, "the file of tokens cannot be read; the service's log says why")

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> Response:
        log.error("%s %s", request.method, request.url.path, exc_info=error)
        return refusal(500, "an unexpected error; the service's log says what happened")


def _openapi(app: FastAPI, *, needs_token: bool) -> dict[str, Any]:
    """The interface's description, with the spec's schema among its components."""
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes, tags=app.openapi_tags
        )
        schema = Spec.model_json_schema(ref_template="#/components/schemas/{model}")
        found["components"]["schemas"] |= schema.pop("$defs", {}) | {"Spec": schema, "Fault": Fault.model_json_schema()}
        for unused in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(unused, None)
        if needs_token:
            found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            found["security"] = [{"token": []}]
            found["paths"]["/api/health"]["get"]["security"] = []
        app.openapi_schema = found
    return app.openapi_schema


def serve(
    jobs: Jobs, tokens: TokenStore | None, *, host: str, port: int, certificate: Path | None = None,
    key: Path | None = None,
) -> None:  # fmt: skip
    """Serve until interrupted."""
    import uvicorn

    https = certificate is not None
    uvicorn.run(
        create_app(jobs, tokens, https=https),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,  # addresses of requests could carry what should not be written down
        ssl_certfile=certificate,
        ssl_keyfile=key,
        timeout_graceful_shutdown=5,
    )
