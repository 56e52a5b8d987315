"""No module needs itself by way of another, not even for a type or inside a function."""

import ast
import graphlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("curation", "workers", "pipelines", "model")
FRONT = "model.tasks.video_model"
"""`VideoModel.load` and `.save`: a front for the two formats, which are read into it."""


def modules() -> dict[str, Path]:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    known = modules()
    packages = {name for name, path in known.items() if path.name == "__init__.py"}
    arrows = {name: (imported(path) & set(known)) - {name} - packages for name, path in known.items() if name != FRONT}
    graphlib.TopologicalSorter(arrows).prepare()  # raises CycleError, which names the modules
