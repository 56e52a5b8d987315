"""The figures of a decision's statistics as plain geometry in percent, the same for the report and the dashboard.

Drawing happens in `figures.html.j2`, in HTML and inline SVG whose colours are CSS variables, so that a page is right
in light and dark, on paper, and without a script.
"""

import math
from typing import Any, TypeGuard

import jinja2

WORDS = {
    "sources": "Video in",
    "candidates": "Candidate clips",
    "kept": "Kept",
    "lost_transition": "Transitions",
    "lost_short": "Short shots",
    "lost_keyframe": "Snapped to key frames",
    "lost_error": "Errors",
}

HUES = 6  # colours that tell filters apart, --filter-0 to --filter-5


def _told(number: float | None) -> TypeGuard[float]:
    """Whether there is a number to show: NaN and infinity say no more than null."""
    return number is not None and math.isfinite(number)


def clock(seconds: float | None) -> str:
    """A duration for a person: 9.6 s, 4 min 03 s, 12 h 05 min, 1 204 h."""
    if not _told(seconds):
        return "–"
    if round(seconds, 1) < 60:
        return f"{seconds:z.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours < 100 else f"{count(round(seconds / 3600))} h"


def count(number: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{number:z,.0f}".replace(",", "\u202f") if _told(number) else "–"


def size(number_bytes: int) -> str:
    """A file size for a person: 940 B, 20.5 kB, 1.2 GB."""
    shown, unit = float(number_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if round(shown, 1) < 1000:
            break
        shown, unit = shown / 1000, larger
    return f"{shown:.1f} {unit}" if unit != "B" else f"{number_bytes} B"


def percent(share: float | None) -> str:
    """A share for a person; what is not nothing is never shown as 0 %, nor what is not all as 100 %."""
    if not _told(share):
        return "–"
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{100 * share:z.1f} %" if share < 0.0995 or (share > 0.9 and share < 1) else f"{100 * share:.0f} %"


def value(number: float | None) -> str:
    """A score with three significant digits."""
    if not _told(number):
        return "–"
    return f"{number:z.3g}" if abs(number) < 999.5 else count(number)  # which .3g would write as 1e+03


def score(found: float | str | list[float | None] | None) -> str:
    """A clip's score: its label or number; of one value per frame the largest, and none where a frame has none."""
    if isinstance(found, list):
        found = max(filter(_told, found)) if found and all(map(_told, found)) else None
    return found if isinstance(found, str) else value(found)


def rule_words(rule: dict[str, Any]) -> str:
    """A rule as a person says it: 'drop lowest 25%', 'at most 0.07 in every frame'."""
    where = {"any": "", "all": " in at least one frame", "mean": " on average over frames"}[rule.get("frames", "any")]
    parts = []
    if "min" in rule:
        parts.append(f"at least {value(rule['min'])}")
    if "max" in rule:
        parts.append(f"at most {value(rule['max'])}")
    if "drop_lowest" in rule:
        parts.append(f"drop the lowest {rule['drop_lowest'].replace('%', ' %')}")
    if "drop_highest" in rule:
        parts.append(f"drop the highest {rule['drop_highest'].replace('%', ' %')}")
    if "in" in rule:
        parts.append("only " + ", ".join(rule["in"]))
    if "not_in" in rule:
        parts.append("not " + ", ".join(rule["not_in"]))
    return (", ".join(parts) or "no bound") + where


def step_name(step: dict[str, Any]) -> str:
    """How a step of the funnel is called on a page."""
    name = str(step["step"])
    if step["kind"] == "unscored":
        return f"{name} could not be scored"
    if step["kind"] == "gate":
        return f"Gate {name.removeprefix('gate:')}"
    return WORDS.get(name, name)


def funnel(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A waterfall in seconds: per step `start` and `width` in percent of what came in, and what is left after it."""
    whole = max((step["seconds"] for step in steps if step["kind"] == "level"), default=0.0) or 1.0
    left, rows, filters = whole, [], list(dict.fromkeys(s["step"] for s in steps if s["kind"] == "filter"))
    for step in steps:
        row = {**step, "name": step_name(step), "share": step["seconds"] / whole}
        row["hue"] = filters.index(step["step"]) % HUES if step["kind"] == "filter" else None
        if step["kind"] == "level":
            left = step["seconds"]
            row |= {"start": 0.0, "width": 100 * left / whole}
        else:
            left -= step["seconds"]
            row |= {"start": 100 * max(left, 0.0) / whole, "width": 100 * step["seconds"] / whole}
        if step["seconds"] or step["kind"] == "level":
            rows.append(row)
    return rows


def histogram(data: dict[str, Any], resolved: dict[str, Any] | None = None) -> dict[str, Any]:
    """Bars of a score's histogram: `x`, `width`, `all`, `kept` in percent of the frame; thresholds; ticks.

    Where one bin towers over the rest the bars show the square root of the count, and `root` says so.
    """
    bins, kept = data["clips"], data["kept"]
    filled = sorted(n for n in bins if n)
    root = bool(filled) and filled[-1] > 12 * filled[len(filled) // 2]
    scale = math.sqrt if root else float
    top = scale(max(bins, default=0)) or 1.0
    low, high, n = data["low"], data["high"], len(bins)
    width = (high - low) / n
    bars = []
    for i, (whole, stays) in enumerate(zip(bins, kept, strict=True)):
        if whole:
            edge = low + i * width
            bars.append(
                {
                    "x": 100 * i / n,
                    "width": 100 / n,
                    "all": max(100 * scale(whole) / top, 1.5),
                    "kept": max(100 * scale(stays) / top, 1.5) if stays else 0.0,
                    "title": f"{value(edge)} to {value(edge + width)}: {count(whole)} clips, {count(stays)} kept",
                }
            )
    lines = []
    for key, side in (("min", "low"), ("max", "high")):
        if resolved and key in resolved:
            place = 100 * (resolved[key] - low) / (high - low)
            lines.append({"x": min(max(place, 0.0), 100.0), "side": side, "value": value(resolved[key])})
    ticks = [{"x": 100 * (t - low) / (high - low), "text": text} for t, text in marks(low, high)]
    return {"bars": bars, "lines": lines, "ticks": ticks, "root": root, "beyond": data.get("beyond", 0)}


def marks(low: float, high: float) -> list[tuple[float, str]]:
    """Round numbers on an axis with their texts: as many as fit beside one another, each with the digits that tell it
    from its neighbours."""
    found: list[tuple[float, str]] = []
    for about in (5, 4, 3, 2, 1):
        ticks = nice_ticks(low, high, about)
        found = [(tick, _mark(tick, (high - low) / about)) for tick in ticks]
        if sum(len(text) + 2 for _, text in found) <= 44:
            break
    return found


def _mark(tick: float, span: float) -> str:
    if abs(tick) >= 1000 and tick == round(tick):
        return count(tick)
    texts = (f"{tick:z.{digits}g}" for digits in range(3, 17))
    return next((text for text in texts if abs(float(text) - tick) <= span / 100), str(tick))


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between low and high, at most about + 1 of them."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / about
    size = 10 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def steps_of_share(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts of the yield bar: what was kept first, then what each step took, in percent of what came in."""
    kept = [row for row in rows if row["step"] == "kept"]
    return [part for part in [*kept, *(row for row in rows if row["kind"] != "level")] if part["width"] > 0]


def environment() -> jinja2.Environment:
    """Templates of this package, escaping everything: captions, file names and messages are data."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"clock": clock, "count": count, "percent": percent}
    found.filters |= {"value": value, "score": score, "rule": rule_words}
    return found
