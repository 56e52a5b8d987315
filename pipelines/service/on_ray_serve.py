"""The service as an application of Ray Serve, for KubeRay's RayService (`deploy/kubernetes/rayservice.yaml`).

    serve run pipelines.service.on_ray_serve:build datasets=/data/datasets

It is what `clipmill serve` is on a cluster's own node: one replica, which Ray starts again when it dies. Ray's proxy
listens on every interface, so tokens are always needed. Needs the extra `serve`.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, PositiveInt
from ray import serve

if TYPE_CHECKING:
    from fastapi import FastAPI


class Arguments(BaseModel):
    """What `clipmill serve` takes as options."""

    model_config = ConfigDict(extra="forbid")

    datasets: str
    """Folder that all nodes share, or URL, below which every job gets its dataset."""
    inputs: list[str] = []
    """Folders or URLs below which inputs may be."""
    web: bool = False
    """Also allow inputs from http(s) servers with public addresses."""
    running: PositiveInt = 2
    """Jobs that may run at once."""
    tokens: Path | None = None
    """File of the tokens, as `clipmill token` writes it; by default $CLIPMILL_TOKENS."""
    installed: bool = True
    """Use the clipmill that is installed on the cluster; without, that of the replica is sent with each job."""


def build(arguments: Arguments) -> serve.Application:
    """The application for `serve run` and `serveConfigV2`. It takes no CPU: all of them are the jobs'."""
    service = serve.deployment(
        serve.ingress(lambda: _service(arguments))(),
        name="clipmill",
        num_replicas=1,  # two would start every job twice
        max_ongoing_requests=1000,  # pages and followed logs stay open
        ray_actor_options={"num_cpus": 0},
    )
    return service.bind()


def _service(arguments: Arguments) -> "FastAPI":
    """The service inside its replica.

    Raises:
        RuntimeError: there is no token.
        pipelines.preflight.Refused: another service works on these datasets.
    """
    import ray

    from curation.input_policy import InputPolicy
    from curation.structured_log import log_to_stderr
    from pipelines.preflight import locked
    from pipelines.ray_jobs import RayJobs
    from pipelines.service.app import create_app
    from pipelines.service.jobs import Jobs
    from pipelines.service.tokens import TokenStore, default_path

    log_to_stderr()
    path = arguments.tokens or default_path()
    tokens = TokenStore(path)
    if all(token.expired for token in tokens.tokens()):
        raise RuntimeError(f"a token is needed in {path}: clipmill token make NAME --role admin")
    jobs = Jobs(
        arguments.datasets,
        RayJobs(ray.get_runtime_context().gcs_address),
        InputPolicy.of(arguments.inputs, arguments.web),
        limit=arguments.running,
        installed=arguments.installed,
    )
    held = ExitStack()
    held.enter_context(locked(jobs.root))  # a second service would start every job a second time
    app = create_app(jobs, tokens)
    app.state.held = held  # until the replica ends
    return app
