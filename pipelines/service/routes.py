"""The HTTP interface: /api/jobs and what belongs to it. Every fault is an HTTP status and one sentence in `detail`."""

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field

from curation.data_files import read_json, read_yaml
from pipelines.ray_jobs import RayUnreachable
from pipelines.service.auth import principal_of
from pipelines.service.jobs import Job, JobError, Jobs
from pipelines.service.record import ENDED, JOB_ID, State
from pipelines.service.tokens import Principal, Role
from pipelines.spec import Spec

BODY_BYTES = 1 << 20
_YAML = ("application/yaml", "application/x-yaml", "text/yaml")


class Fault(BaseModel):
    """Why a request was not met."""

    detail: str = Field(description="One sentence.")


class JobOut(BaseModel):
    """A job."""

    id: str = Field(description="The name of its dataset folder.")
    owner: str
    state: State
    place: int | None = Field(description="Place in the queue, from 1; null for a job that does not wait.")
    output: str = Field(description="Where its dataset is.")
    submitted: str
    started: str | None = Field(description="When its last attempt began.")
    finished: str | None
    attempt: int = Field(description="How often it was handed to Ray.")
    cpus: float = Field(description="Its share of the cluster.")
    message: str | None = Field(description="Why it failed, or what happened last.")
    ray_id: str | None = Field(description="Its last attempt's id in Ray.")

    @classmethod
    def of(cls, job: Job) -> "JobOut":
        record = job.record
        return cls(
            id=record.id, owner=record.owner, state=job.state, place=job.place, output=job.output,
            submitted=record.submitted, started=record.started, finished=record.finished, attempt=record.attempt,
            cpus=record.cpus, message=record.message, ray_id=record.ray_id if record.attempt else None,
        )  # fmt: skip


class JobWithSpec(JobOut):
    """A job and its spec, every default written out."""

    spec: dict[str, Any]


class ProgressOut(BaseModel):
    """Where a job is. Sums count what is finished; seconds are of video unless they say otherwise."""

    state: State
    stage: str | None = Field(description="curating, compacting, deciding, ...; null while it does not run.")
    sources: int | None = Field(description="Videos in all; null until the job has looked.")
    sources_done: int
    failed: int
    duplicates: int
    clips: int
    video_s: float
    kept_s: float = Field(description="In clips.")
    lost_s: dict[str, float] = Field(description="By what it was lost to.")
    errors: dict[str, dict[str, int]] = Field(description="By stage, then by reason, numbers of videos or clips.")
    cpu_s: dict[str, float] = Field(description="Processor seconds by stage.")
    video_hours_per_hour: float | None = Field(description="Of this attempt.")
    clips_per_minute: float | None = Field(description="Of this attempt.")
    elapsed_s: float | None = Field(description="Wall seconds of this attempt.")
    left_s: float | None = Field(description="Wall seconds left; null while that cannot be told.")


class Health(BaseModel):
    """Whether the service and its cluster answer."""

    service: Literal["up"] = "up"
    ray: Literal["up", "down"]
    message: str | None = None


JobId = Annotated[str, Path(pattern=JOB_ID, description="The job's id.")]


def needs(role: Role) -> Any:
    """A dependency: the request's principal, if it has that role."""

    def check(request: Request) -> Principal:
        principal = principal_of(request)
        if not principal.may(role):
            raise JobError(403, f"this needs the role {role}; {principal.name} has {principal.role}")
        return principal

    return Depends(check)


Submitter = Annotated[Principal, needs("submit")]


def _faults(*statuses: int) -> dict[int | str, dict[str, Any]]:
    said = {"application/json": {"schema": {"$ref": "#/components/schemas/Fault"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": said}
        for status in (400, 401, 403, 422, 429, *statuses)
    }


_BODY = {
    "requestBody": {
        "required": True,
        "description": "A job spec, at most 1 MiB. `output` is a name; the service makes a dataset folder of it.",
        "content": {kind: {"schema": {"$ref": "#/components/schemas/Spec"}} for kind in ("application/json", _YAML[0])},
    }
}


def api(jobs: Jobs) -> APIRouter:
    """The routes for these jobs."""
    router = APIRouter(prefix="/api")

    def own(job: str, principal: Principal) -> None:
        """Raise JobError unless this principal may manage the job."""
        found = jobs.get(job)
        if principal.role != "admin" and found.record.owner != principal.name:
            raise JobError(403, f"{job} is {found.record.owner}'s; only they or an admin may do that")

    @router.get("/health", responses=_faults(), tags=["service"])
    def health() -> Health:
        """Whether the service and its cluster answer. Needs no token."""
        try:
            jobs.ray.cpus_and_gpus()
        except RayUnreachable as error:
            return Health(ray="down", message=str(error))
        return Health(ray="up")

    @router.get("/spec/schema", responses=_faults(), tags=["service"], dependencies=[needs("read")])
    def schema() -> dict[str, Any]:
        """The JSON schema of a job spec."""
        return Spec.model_json_schema()

    @router.post(
        "/jobs", status_code=201, responses=_faults(409, 413, 415, 503, 507), tags=["jobs"], openapi_extra=_BODY
    )
    async def submit(request: Request, response: Response, principal: Submitter) -> JobOut:
        """Submit a job spec (JSON or YAML). It is checked now; the job runs when its turn comes."""
        data = _parse(await _body(request), request.headers.get("content-type", ""))
        job = await asyncio.to_thread(jobs.submit, data, principal.name)
        response.headers["Location"] = f"/api/jobs/{job.record.id}"
        return JobOut.of(job)

    @router.get("/jobs", responses=_faults(), tags=["jobs"], dependencies=[needs("read")])
    def list_jobs(
        state: Annotated[State | None, Query(description="Only jobs in this state.")] = None,
        owner: Annotated[str | None, Query(description="Only this owner's jobs.", max_length=100)] = None,
    ) -> list[JobOut]:
        """All jobs, the one submitted last first."""
        found = [JobOut.of(job) for job in jobs.list()]
        return [job for job in found if state in (None, job.state) and owner in (None, job.owner)]

    @router.get("/jobs/{job}", responses=_faults(404), tags=["jobs"], dependencies=[needs("read")])
    def inspect(job: JobId) -> JobWithSpec:
        """One job with its spec."""
        spec = jobs.spec(job).model_dump(mode="json")
        return JobWithSpec(**JobOut.of(jobs.get(job)).model_dump(), spec=spec)

    @router.get("/jobs/{job}/progress", responses=_faults(404), tags=["jobs"], dependencies=[needs("read")])
    def progress(job: JobId) -> ProgressOut:
        """How far a job is, how fast, what failed, and how long it will take."""
        return progress_of(jobs, job)

    @router.get(
        "/jobs/{job}/logs",
        responses=_faults(404, 503) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        response_class=PlainTextResponse,
        tags=["jobs"],
        dependencies=[needs("read")],
    )
    async def logs(job: JobId, follow: Annotated[bool, Query(description="Go on until it ends.")] = False) -> Response:
        """What a job has printed, all attempts; with `follow`, as it is printed."""
        text = await asyncio.to_thread(jobs.logs, job)
        if not follow:
            return PlainTextResponse(text)
        return StreamingResponse(_followed(jobs, job, text), media_type="text/plain; charset=utf-8")

    @router.post("/jobs/{job}/cancel", responses=_faults(404, 409), tags=["jobs"])
    def cancel(job: JobId, principal: Submitter) -> JobOut:
        """Stop a job or take it out of the queue. What it has finished is kept."""
        own(job, principal)
        return JobOut.of(jobs.cancel(job))

    @router.post("/jobs/{job}/resume", responses=_faults(404, 409), tags=["jobs"])
    def resume(job: JobId, principal: Submitter) -> JobOut:
        """Queue an ended job again. It goes on from where it is."""
        own(job, principal)
        return JobOut.of(jobs.resume(job))

    @router.delete("/jobs/{job}", status_code=204, responses=_faults(404, 409), tags=["jobs"])
    def delete(job: JobId, principal: Submitter) -> None:
        """Delete an ended job and its whole dataset."""
        own(job, principal)
        jobs.delete(job)

    return router


def progress_of(jobs: Jobs, job: str) -> ProgressOut:
    """A job's progress: its own word while it runs, its dataset otherwise. How many videos there are in all it has
    said before it was stopped or killed, too. Raises JobError."""
    state = jobs.get(job).state
    said, tally = jobs.progress(job)
    live = said if said and said.running and state in ("starting", "running", "stopping") else None
    rate = clips_rate = None
    if live is not None and live.elapsed_s:
        rate = round(live.video_s / live.elapsed_s, 3)
        clips_rate = round(60 * live.clips / live.elapsed_s, 1) if live.stage == "curating" else None
    done = max(live.sources_done if live else 0, tally.sources_done)
    return ProgressOut(
        state=state,
        stage=live.stage if live else None,
        sources=tally.sources_done if state == "succeeded" else said.sources if said else None,
        sources_done=done,
        failed=max(live.failed if live else 0, tally.sources["failed"]),
        duplicates=tally.sources["duplicate"],
        clips=max(live.clips if live else 0, tally.clips),
        video_s=round(tally.video_s, 3),
        kept_s=round(tally.kept_s, 3),
        lost_s={name.removeprefix("lost_").removesuffix("_s"): round(lost, 3) for name, lost in tally.lost_s.items()},
        errors={"sources": dict(tally.reasons)} | {score: {"unscored": n} for score, n in tally.score_errors.items()},
        cpu_s={stage: round(spent, 3) for stage, spent in tally.cpu_s.items()},
        video_hours_per_hour=rate,
        clips_per_minute=clips_rate,
        elapsed_s=live.elapsed_s if live else None,
        left_s=live.left_s if live else None,
    )


async def _body(request: Request) -> bytes:
    """The body, if it is not too large. Raises JobError(413)."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise JobError(
                413, f"the body is larger than {BODY_BYTES} bytes; name a list of inputs instead of them all"
            )
    return bytes(body)


def _parse(body: bytes, kind: str) -> Any:
    """The data of a body. Raises JobError: 415 another kind, 400 not what it says."""
    kind = kind.partition(";")[0].strip().lower()
    try:
        if kind in _YAML:
            return read_yaml(body, aliases=False)
        if kind == "application/json":
            return read_json(body)
    except ValueError as error:
        raise JobError(400, f"the body is not {kind}: {error}") from None
    raise JobError(415, "send a spec as application/json or application/yaml")


async def _followed(jobs: Jobs, job: str, text: str) -> AsyncIterator[str]:
    """A log as it grows, from `text` on, until the job has ended or is gone."""
    shown = 0
    while True:
        yield text[shown:]
        shown = max(shown, len(text))
        try:
            ended = (await asyncio.to_thread(jobs.get, job)).state in ENDED
            text = await asyncio.to_thread(jobs.logs, job)
        except JobError as error:
            if error.status != 503:
                return
            ended = False
        if ended and len(text) <= shown:
            return
        if not ended:
            await asyncio.sleep(1.0)
