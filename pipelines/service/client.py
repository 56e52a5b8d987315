"""What the command line says to a running `clipmill serve`."""

import os
import time
from collections.abc import Iterator
from typing import Any

import httpx

from pipelines.inputs import absolute
from pipelines.service.record import is_job_id
from pipelines.spec import Spec

DEFAULT_ADDRESS = "http://127.0.0.1:8080"
_PATIENCE_S = 60.0  # with a service that has gone away while a log is followed: it may be started again
_RETRY_S = 1.0


class ServiceError(Exception):
    """The service does not answer, or says no. One line for a person."""


class Unreachable(ServiceError):
    """The service does not answer, or no longer."""


class Client:
    """The service at an address (default: $CLIPMILL_ADDRESS), with the token in $CLIPMILL_TOKEN if there is one.

    Raises ServiceError, also where an address or a token cannot be one.
    """

    def __init__(self, address: str | None = None, http: httpx.Client | None = None) -> None:
        self.address = (address or os.environ.get("CLIPMILL_ADDRESS") or DEFAULT_ADDRESS).rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            raise ServiceError(f"{self.address!r} is no address of a service: write http://HOST:PORT or https://...")
        token = os.environ.get("CLIPMILL_TOKEN", "")
        if not (token.isascii() and token.isprintable()):
            raise ServiceError("CLIPMILL_TOKEN: not a token; set it to what `clipmill token make` printed")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = http or httpx.Client(base_url=self.address, timeout=60.0)
        self._http.headers.update(headers)

    def submit(self, spec: Spec) -> str:
        """Submit a spec, its local inputs made absolute. Returns the job's id."""
        data = spec.model_dump(mode="json")
        data["input"]["uris"] = [absolute(uri) for uri in spec.input.uris]
        return str(self._ask("POST", "/api/jobs", json=data)["id"])

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs (`routes.JobOut`)."""
        found: list[dict[str, Any]] = self._ask("GET", "/api/jobs")
        return found

    def job(self, job: str) -> dict[str, Any]:
        """One job (`routes.JobWithSpec`)."""
        return dict(self._ask("GET", f"/api/jobs/{_segment(job)}"))

    def progress(self, job: str) -> dict[str, Any]:
        """Where a job is (`routes.ProgressOut`)."""
        return dict(self._ask("GET", f"/api/jobs/{_segment(job)}/progress"))

    def cancel(self, job: str) -> dict[str, Any]:
        """Stop a job."""
        return dict(self._ask("POST", f"/api/jobs/{_segment(job)}/cancel"))

    def resume(self, job: str) -> dict[str, Any]:
        """Carry a job on."""
        return dict(self._ask("POST", f"/api/jobs/{_segment(job)}/resume"))

    def delete(self, job: str) -> None:
        """Delete an ended job and its dataset."""
        self._ask("DELETE", f"/api/jobs/{_segment(job)}")

    def logs(self, job: str) -> str:
        """What a job has printed."""
        return "".join(self._stream(f"/api/jobs/{_segment(job)}/logs"))

    def follow(self, job: str) -> Iterator[str]:
        """What a job prints, until it ends; also over a service that is killed and started again meanwhile."""
        self.job(job)  # one that is not there is not waited for
        shown, lost_at = 0, None
        while True:
            at = 0
            try:
                for piece in self._stream(f"/api/jobs/{_segment(job)}/logs?follow=true"):
                    at, lost_at = at + len(piece), None
                    if at > shown:
                        yield piece[-(at - shown) :]
                        shown = at
                return
            except Unreachable:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > _PATIENCE_S:
                    raise
            time.sleep(_RETRY_S)

    def _ask(self, method: str, path: str, **body: Any) -> Any:
        try:
            answer = self._http.request(method, path, **body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        self._check(answer)
        try:
            return answer.json() if answer.content else None
        except ValueError:
            raise self._no_service(answer) from None

    def _stream(self, path: str) -> Iterator[str]:
        try:
            with self._http.stream("GET", path, timeout=httpx.Timeout(60.0, read=None)) as answer:
                if answer.is_error:
                    answer.read()
                self._check(answer)
                yield from answer.iter_text()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _check(self, answer: httpx.Response) -> None:
        if not answer.is_error and not answer.is_redirect:
            return
        try:
            said = str(answer.json()["detail"])
        except (ValueError, KeyError, TypeError):
            raise self._no_service(answer) from None
        raise ServiceError(f"service at {self.address}: {' '.join(said.split())}")

    def _no_service(self, answer: httpx.Response) -> ServiceError:
        said = f"answers {answer.status_code}, and not as `clipmill serve` does, which prints its address"
        return ServiceError(f"service at {self.address}: {said}; the address of Ray's dashboard goes with --ray")

    def _unreachable(self, error: Exception) -> Unreachable:
        said = str(error) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in said:
            why = said.partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or said
            way_out = "set SSL_CERT_FILE to the PEM file of the certificate, or of the authority that signed it"
            return Unreachable(f"service at {self.address}: its certificate is not trusted ({why}); {way_out}")
        return Unreachable(f"service at {self.address}: {said}; start it with `clipmill serve`, or use --ray")


def _segment(job: str) -> str:
    """A job's name as one part of a path: `..` would be taken for a way up."""
    if not is_job_id(job):
        raise ServiceError(f"no job is called {job!r}")
    return job
