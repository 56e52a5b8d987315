"""`clipmill dashboard`: choose thresholds on a web page."""

import socket
import sys

import click

from pipelines.dataset import Dataset


@click.command("dashboard")
@click.argument("datasets", nargs=-1, required=True, metavar="DATASET...")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free port.")
def dashboard_command(datasets: tuple[str, ...], port: int) -> None:
    """Serve a page on which the thresholds of each DATASET are chosen, saved and exported.

    It listens on 127.0.0.1 only. From elsewhere, forward the port: ssh -L 8080:127.0.0.1:8080 HOST
    """
    from pipelines.dashboard.server import serve

    for dataset in datasets:
        try:
            said = None if Dataset(dataset).storage.exists() else f"{dataset} does not exist"
        except (OSError, ValueError, ImportError) as error:
            said = f"{dataset}: {error}"
        if said is not None:
            click.echo(f"error: {said}", err=True)
            sys.exit(2)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            click.echo(f"error: port {port} is taken; choose another with --port, or --port 0 for any", err=True)
            sys.exit(2)
        port = probe.getsockname()[1]
    click.echo(f"http://127.0.0.1:{port}/   (Ctrl-C ends it)")
    serve(datasets, port=port)
