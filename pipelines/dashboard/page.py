"""What all pages share: the frame around them, and how a fault becomes a sentence instead of a blank page."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ParamSpec, TypeVar, cast

import jinja2
from nicegui import run, ui

from curation.reasons import Bound
from pipelines import figures
from pipelines.dashboard.datasets import OpenDataset, Registry

_P = ParamSpec("_P")
_T = TypeVar("_T")
PAGES = {"": "Decide", "/statistics": "Statistics", "/compare": "Compare", "/errors": "Errors", "/live": "Live"}

_LINKS = """<nav aria-label="Pages">
{% for path, text in pages.items() %}
<a href="{{ base }}/d/{{ name }}{{ path }}" data-view{% if path == here %} aria-current="page"{% endif %}>{{ text }}</a>
{% endfor %}
{% if home %}<a href="{{ base }}/">{{ home }}</a>{% endif %}
</nav>"""


@cache
def _environment() -> jinja2.Environment:
    return figures.environment()


def part(name: str, *args: Any) -> str:
    """The HTML of a macro of parts.html.j2, with everything in it escaped."""
    module: Any = _environment().get_template("dashboard/parts.html.j2").module
    return str(getattr(module, name)(*args))


def section(name: str, *args: Any) -> str:
    """The HTML of a macro of sections.html.j2, which the report has too."""
    module: Any = _environment().get_template("sections.html.j2").module
    return str(getattr(module, name)(*args))


def figure(name: str, *args: Any) -> str:
    """The HTML of a macro of figures.html.j2."""
    module: Any = _environment().get_template("figures.html.j2").module
    return str(getattr(module, name)(*args))


def html(content: str = "") -> ui.html:
    """Our own templates' HTML. They escape every value, so the browser need not clean it again."""
    return ui.html(content, sanitize=False).classes("w-full").style("width: 100%")


def _template(source: str, **values: Any) -> str:
    return _environment().from_string(source).render(**values)


def head() -> str:
    """The pages' style sheet and script, for the head of the document."""
    names = ("figures.css.j2", "dashboard/page.css.j2")
    sheet = "\n".join(_environment().get_template(name).render() for name in names)
    script = _environment().get_template("dashboard/page.js.j2").render()
    return f"<style>{sheet}</style><script>{script}</script>"


def frame(registry: Registry, dataset: OpenDataset | None, here: str, base: str, home: str = "") -> None:
    """Head line with the name of the dataset, the pages there are of it, and the way to all datasets: always where that
    page has a name of its own (`home`), else where there are several."""
    ui.add_head_html(head())
    ui.colors(primary="#0b7a7c", accent="#e08a2e", negative="#b83a50")
    ui.dark_mode(None)
    ui.context.client.on_exception(
        lambda error: ui.notify(f"That did not work: {fault(error)}", type="negative", multi_line=True)
    )
    with ui.element("header").classes("top"):
        name = dataset.name if dataset is not None else "Clipmill"
        html(_template("<h1>{{ name }}</h1>", name=name)).style("width: auto")
        if dataset is not None:
            home = home or ("Datasets" if len(registry) > 1 else "")
            links = _template(_LINKS, pages=PAGES, base=base, name=name, here=here, home=home)
            html(links).style("width: auto; max-width: 100%")


async def background(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Do work in a thread, so that other browsers need not wait for it."""
    return cast(_T, await run.io_bound(work, *args, **kwargs))


def may_change() -> bool:
    """Whether the person at this page may write to the dataset; a sentence on the page where not.

    A service that mounts the dashboard says so in the request's scope (`may_change`); on its own everybody may.
    """
    request = ui.context.client.request
    if request is None or request.scope.get("may_change", True):
        return True
    ui.notify("Your role is to look: saving and exporting need the role submit.", type="negative")
    return False


def fault(error: Exception) -> str:
    """An error that nobody foresaw, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def notice(text: str, *, bad: bool = False) -> ui.html:
    """A sentence in a box."""
    box = html(_template("{{ text }}", text=text)).classes("notice")
    return box.classes("bad") if bad else box


def look(reasons: Sequence[str]) -> str:
    """The CSS class of a clip with these reasons."""
    if not reasons:
        return "kept"
    return "unscored" if all(reason.endswith(" unscored") for reason in reasons) else "dropped"


def dressed(
    dataset: OpenDataset, bounds: Sequence[Bound], rows: list[dict[str, Any]], query: str, badge: str | None = None
) -> list[dict[str, Any]]:
    """Rows with what the `clips` macro needs: reasons, look, link; `badge` names a score to show on the picture."""
    reasons = dataset.reasons_of(bounds, rows)
    found = []
    for row, why in zip(rows, reasons, strict=True):
        value = row[dataset.scores.score(badge).column] if badge else None
        shown = figures.score(value) if value not in (None, []) else ""
        found.append(row | {"reasons": why, "look": look(why), "query": query, "badge": shown})
    return found
