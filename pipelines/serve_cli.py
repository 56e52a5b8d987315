"""`clipmill serve`, `clipmill token` and `clipmill cluster`: the service, who may use it, and a Ray for it."""

import ctypes
import os
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import click

from pipelines.curate_cli import refuse
from pipelines.ray_jobs import DEFAULT_ADDRESS

_SETTINGS = {"help_option_names": ["-h", "--help"]}
_WORKER_PORTS = range(10002, 20000)
"""Ray's own choice; deploy/README.md tells firewalls of it."""


@click.command("serve", context_settings=_SETTINGS)
@click.argument("datasets", metavar="DATASETS")
@click.option(
    "--input", "inputs", multiple=True, metavar="ROOT", help="Folder or URL below which inputs may be; repeatable."
)
@click.option("--web", is_flag=True, help="Also allow inputs from http(s) servers with public addresses.")
@click.option("--address", metavar="URL", envvar="RAY_API_SERVER_ADDRESS", default=DEFAULT_ADDRESS, show_default=True,
              help="Of the cluster's Ray dashboard.")  # fmt: skip
@click.option("--running", type=click.IntRange(1), default=2, show_default=True, help="Jobs that may run at once.")
@click.option("--installed", is_flag=True, help="Use the clipmill that is installed on the cluster.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free port.")
@click.option("--certificate", type=click.Path(exists=True, path_type=Path), help="For https: PEM file of the chain.")
@click.option("--key", type=click.Path(exists=True, path_type=Path), help="For https: PEM file of the private key.")
def serve_command(
    datasets: str, inputs: tuple[str, ...], web: bool, address: str, running: int, installed: bool, host: str,
    port: int, certificate: Path | None, key: Path | None,
) -> None:  # fmt: skip
    """Serve jobs on a Ray cluster over HTTP, with a page for them and the dashboard of their results.

    Every job gets a folder below DATASETS (a folder that all nodes share, or a URL). On 127.0.0.1 no token is needed;
    on any other address make one first with `clipmill token make`. It can be killed and started again at any time.
    """
    from curation.input_policy import InputPolicy
    from curation.structured_log import log_to_stderr
    from pipelines.preflight import Refused, locked
    from pipelines.ray_jobs import RayJobs
    from pipelines.service.app import LOOPBACK, serve
    from pipelines.service.jobs import Jobs
    from pipelines.service.tokens import TokenError, TokenStore, default_path

    tokens = None if host in LOOPBACK else TokenStore(default_path())
    try:
        if tokens is not None and not any(not token.expired for token in tokens.tokens()):
            refuse(f"{host} can be reached from elsewhere, so a token is needed: clipmill token make NAME --role admin")
    except TokenError as error:
        refuse(str(error))
    if (certificate is None) != (key is None):
        refuse("--certificate and --key go together")
    if certificate is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
        except OSError as error:
            refuse(f"--certificate {certificate} --key {key}: not a certificate and its key ({error})")
    port = _free_port(host, port)
    log_to_stderr()
    try:
        jobs = Jobs(datasets, RayJobs(address), InputPolicy.of(inputs, web), limit=running, installed=installed)
        with locked(jobs.root):  # a second service would start every job a second time
            click.echo(f"{'https' if certificate else 'http'}://{host}:{port}/   (Ctrl-C ends it; jobs go on)")
            serve(jobs, tokens, host=host, port=port, certificate=certificate, key=key)
    except (OSError, ValueError, Refused) as error:
        refuse(f"{datasets}: {error}")


@click.group("token", context_settings=_SETTINGS)
def token_command() -> None:
    """Make and revoke the tokens of `clipmill serve`. They are kept, hashed, in $CLIPMILL_TOKENS."""


@token_command.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["read", "submit", "admin"]), default="submit", show_default=True)
@click.option(
    "--days", type=click.FloatRange(min=0, min_open=True, max=36500), help="Until it expires (default: never)."
)
def make(name: str, role: str, days: float | None) -> None:
    """Make a token for NAME and print it. It is not shown again."""
    from pipelines.service.record import is_job_id
    from pipelines.service.tokens import TokenError, TokenStore, default_path

    if not is_job_id(name):
        refuse(f"{name!r} is not a name: letters, digits, '_', '.' and '-', at most 100")
    try:
        click.echo(TokenStore(default_path()).make(name, role, days))  # type: ignore[arg-type]
    except (TokenError, OSError) as error:
        refuse(str(error))


@token_command.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Revoke NAME's token. A running service refuses it from the next request on."""
    from pipelines.service.tokens import TokenError, TokenStore, default_path

    try:
        TokenStore(default_path()).revoke(name)
    except (TokenError, OSError) as error:
        refuse(str(error))
    click.echo(f"revoked {name}")


@token_command.command("list")
def list_tokens() -> None:
    """Print name, role and expiry of every token."""
    from pipelines.service.tokens import TokenError, TokenStore, default_path

    try:
        for token in TokenStore(default_path()).tokens():
            click.echo(f"{token.name}  {token.role:6}  {'expired' if token.expired else token.expires or 'no expiry'}")
    except TokenError as error:
        refuse(str(error))


@click.command("cluster", context_settings=_SETTINGS)
@click.option("--cpus", type=click.IntRange(1), help="CPUs to give it (default: all of this machine's).")
@click.option("--gpus", type=click.IntRange(0), help="GPUs to give it (default: all of this machine's).")
@click.option("--port", type=click.IntRange(1, 65535), default=6379, show_default=True, help="For further nodes.")
@click.option("--dashboard-port", type=click.IntRange(1, 65535), default=8265, show_default=True)
@click.option("--join", metavar="HOST:PORT", help="Add this machine to the cluster of that head instead.")
def cluster_command(cpus: int | None, gpus: int | None, port: int, dashboard_port: int, join: str | None) -> None:
    """Run Ray on this machine until interrupted, for `clipmill serve` and `clipmill submit`.

    Ray's token mode is on; the token is in ~/.ray/auth_token, readable by you only. Another machine joins with
    --join, once that file is there too.
    """
    from pipelines.cluster import make_token

    for each in [] if join else [port, dashboard_port]:
        if each in _WORKER_PORTS or port == dashboard_port:
            refuse(
                f"port {each} is taken: Ray needs two, outside of {_WORKER_PORTS[0]} to {_WORKER_PORTS[-1]}, which its "
                "workers use; choose others with --port and --dashboard-port"
            )
    for taken in [] if join else [each for each in (port, dashboard_port) if not _is_free(each)]:
        refuse(
            f"port {taken} is taken: perhaps by a Ray that runs here, or that was ended and takes half a minute; "
            "choose others with --port and --dashboard-port"
        )
    path = make_token()
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', '')}"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    command += ["--dashboard-agent-listen-port=0"]  # not Ray's own 52365: another Ray may have it
    if join:
        command += [f"--address={join}"]
    else:
        command += ["--head", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
        command += [f"--ray-client-server-port={_free_port('127.0.0.1', 0)}"]  # not used; a taken one ends Ray
    command += [f"--num-cpus={cpus}"] if cpus is not None else []
    command += [f"--num-gpus={gpus}"] if gpus is not None else []
    if not join:
        click.echo(f"Ray at http://127.0.0.1:{dashboard_port}, token in {path}   (Ctrl-C ends it)")
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_parent
    )
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        sys.exit(process.wait())
    except KeyboardInterrupt:
        process.terminate()  # `ray start --block` ends what it has started
        process.wait()


def _end_with_parent() -> None:
    """Have Linux terminate this process, a child that is about to become Ray, when its parent is killed: Ray would run
    on, unseen, with its ports taken."""
    pr_set_pdeathsig = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _free_port(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        refuse(f"{host}:{port}: {error.strerror or error}; choose another with --host and --port")
