"""The dashboard as an application: `serve` runs it on this machine, `attach` puts it into another FastAPI service."""

import threading
from collections.abc import Sequence
from contextlib import suppress

from fastapi import FastAPI, Request
from nicegui import app as pages
from nicegui import ui
from starlette.middleware.trustedhost import TrustedHostMiddleware

from curation.rules import Rules, RulesError
from curation.score_table import SchemaError
from pipelines import figures
from pipelines.dashboard.clip_page import read_clip, show_clip
from pipelines.dashboard.compare_page import ComparePage
from pipelines.dashboard.datasets import OpenDataset, Registry
from pipelines.dashboard.decide_page import DecidePage
from pipelines.dashboard.errors_page import read_errors, show_errors
from pipelines.dashboard.files import routes
from pipelines.dashboard.live_page import LivePage
from pipelines.dashboard.page import background, fault, frame, head, notice
from pipelines.dashboard.statistics_page import read_statistics, show_statistics
from pipelines.dashboard.view import View, read_view
from pipelines.decide import DatasetError

_LOCAL = ["127.0.0.1", "localhost", "[::1]"]
_PATIENCE_S = 120.0  # opening ten million clips takes a while; the page waits


def attach(app: FastAPI, registry: Registry, *, base: str = "", home: str = "") -> None:
    """Add the dashboard of these datasets to an application, under the path `base` (such as "/dashboard").

    How a service mounts it, after its own routes (what is mounted last answers every path that is left below `base`):

        attach(app, Registry(lambda: {job.id: job.output for job in jobs()}), base="/dashboard")

    Every page and file then lies at /dashboard/d/JOB/...; middleware of `app` (authentication) comes before all of it,
    NiceGUI's web socket included. Call it once per process: NiceGUI keeps one set of pages.
    `home` is what the pages call the link to `base`/, where the application has a page of its own there.
    """
    app.include_router(routes(registry), prefix=base)
    _pages(registry, base, home)
    pages.on_page_exception(_broken)
    ui.run_with(
        app,
        title="Clipmill",
        dark=None,
        tailwind=False,
        mount_path=base or "/",
        show_welcome_message=False,
        favicon="🎞️",
    )


def serve(roots: Sequence[str], *, host: str = "127.0.0.1", port: int = 8080) -> None:
    """Serve the dashboard until interrupted. On a loopback address only requests that name this machine are answered,
    so that no page elsewhere can reach it through a name of its own."""
    import uvicorn

    app = FastAPI(title="Clipmill", docs_url=None, redoc_url=None, openapi_url=None)
    if host in ("127.0.0.1", "localhost", "::1"):
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=_LOCAL)
    registry = Registry(roots)
    attach(app, registry)
    threading.Thread(target=_open_all, args=(registry,), daemon=True).start()
    uvicorn.run(app, host=host, port=port, log_level="warning")


def _broken(error: Exception) -> None:
    """The page that stands where one could not be built. The trace is in the server's log."""
    ui.add_head_html(head())
    notice(f"This page could not be built: {fault(error)}.", bad=True)


def _open_all(registry: Registry) -> None:
    """Have the datasets open before somebody asks. What is wrong with one is said on its page."""
    for dataset in registry:
        with suppress(DatasetError, SchemaError, OSError):
            dataset.reopen()


def _pages(registry: Registry, base: str, home_name: str) -> None:
    async def opened(name: str, here: str) -> OpenDataset | None:
        """The dataset, its frame drawn and its scores open; None when a sentence stands there instead."""
        dataset = registry.get(name)
        frame(registry, dataset, here, base, home_name)
        if dataset is None:
            notice(f"There is no dataset called {name} here.", bad=True)
            return None
        waiting = None
        if not dataset.is_open:
            waiting = notice("Opening the dataset. With millions of clips this takes a minute.")
            await ui.context.client.connected()
        try:
            scores = await background(dataset.reopen)
        except (DatasetError, SchemaError, OSError) as error:
            notice(str(error), bad=True)
            return None
        finally:
            if waiting is not None:
                waiting.delete()
        if not scores.clips and here in ("", "/compare", "/statistics"):
            notice(_nothing(dataset))
            return None
        return dataset

    async def asked(dataset: OpenDataset, request: Request) -> View:
        """The view of the link; a sentence and no rules for a link that cannot be followed."""
        try:
            view = await background(read_view, dataset, request.query_params)
            await background(dataset.bounds, view.rules, view.recorded)
        except (RulesError, DatasetError) as error:
            notice(str(error), bad=True)
            return View(Rules())
        return view

    @ui.page("/", response_timeout=_PATIENCE_S)
    async def home() -> None:
        datasets = list(registry)
        if len(datasets) == 1:
            ui.navigate.to(f"/d/{datasets[0].name}")  # NiceGUI puts what it is mounted under before it
            return
        frame(registry, None, "", base)
        with ui.element("div").classes("home"):
            for dataset in datasets:
                with ui.link(target=f"/d/{dataset.name}").classes("panel"):
                    ui.label(dataset.name).style("font-size: 17px; font-weight: 650")
                    try:
                        scores = await background(dataset.reopen)
                        clips = f"{figures.count(scores.clips)} clip{'s' if scores.clips != 1 else ''}"
                        text = f"{clips}, {figures.clock(scores.seconds)}"
                    except (DatasetError, SchemaError, OSError) as error:
                        text = str(error)
                    ui.label(text).classes("hint")

    @ui.page("/d/{name}", response_timeout=_PATIENCE_S)
    async def decide(request: Request, name: str) -> None:
        dataset = await opened(name, "")
        if dataset is not None:
            page = DecidePage(dataset, await asked(dataset, request), base)
            await ui.context.client.connected()
            await page.refresh()

    @ui.page("/d/{name}/clip/{clip_id}", response_timeout=_PATIENCE_S)
    async def clip(request: Request, name: str, clip_id: str, place: int | None = None) -> None:
        dataset = await opened(name, "/clip")
        if dataset is not None:
            view = await asked(dataset, request)
            show_clip(dataset, await background(read_clip, dataset, clip_id, place, view), clip_id, view, base)

    @ui.page("/d/{name}/compare", response_timeout=_PATIENCE_S)
    async def compare(name: str, first: str | None = None, second: str | None = None) -> None:
        dataset = await opened(name, "/compare")
        if dataset is not None:
            page = ComparePage(dataset, first, second, base)
            await ui.context.client.connected()
            if hasattr(page, "body"):
                await page.show()

    @ui.page("/d/{name}/statistics", response_timeout=_PATIENCE_S)
    async def statistics(request: Request, name: str) -> None:
        dataset = await opened(name, "/statistics")
        if dataset is not None:
            view = await asked(dataset, request)
            show_statistics(dataset, await background(read_statistics, dataset, view), view)

    @ui.page("/d/{name}/errors", response_timeout=_PATIENCE_S)
    async def errors(name: str) -> None:
        dataset = await opened(name, "/errors")
        if dataset is not None:
            show_errors(await background(read_errors, dataset, base))

    @ui.page("/d/{name}/live", response_timeout=_PATIENCE_S)
    async def live(name: str) -> None:
        dataset = await opened(name, "/live")
        if dataset is not None:
            LivePage(dataset)


def _nothing(dataset: OpenDataset) -> str:
    """Why there is nothing to decide, in a sentence."""
    rows = dict(dataset.ask("SELECT status, count(*) FROM sources GROUP BY 1"))
    total, failed = sum(rows.values()), rows.get("failed", 0)
    if not total:
        return "This dataset is empty so far: no source is finished. The page Live shows the job as it goes."
    return f"This dataset has no clips: of {total} sources {failed} could not be read. The page Errors says why."
