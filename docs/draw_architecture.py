"""Draw docs/architecture.png and the tables of docs/architecture.md from the code's imports.

    python docs/draw_architecture.py

tests/repository/test_architecture.py fails when an import runs up, and when picture or tables are old.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
CORE = "collab_plugin"
# From the ground up. A module imports from its own package and from lower floors.
FLOORS: tuple[dict[str, str], ...] = (
    {"errors": "a user's mistake in one line", "progress": "how far a step is"},
    {"formats": "GGUF, safetensors, JSON, names, types"},
    {"checkpoint": "models as stored, families, topology"},
    {"stats": "what calibration saw", "plans": "what was decided"},
    {"quantize": "kernels, error of a type", "placement": "what lies where"},
    {"engines": "what runs models", "repair": "kept experts do the work of dropped ones"},
    {"compression": "a plan becomes a file or folder"},
    {"planning": "criteria, allocators, search", "evaluation": "tasks and scores"},
    {"reports": "a plan explained on one page"},
    {"plugins": "hooks, registry, built-ins"},
    {"api": "the calls of a program"},
    {"cli": "the command line"},
)
# Package -> its folder, for what is built on the core.
OTHERS = {
    "collab_llamacpp": "adapters",
    "collab_lm_eval": "adapters",
    "collab_ollama": "adapters",
    "collab_vllm": "adapters",
    "collab_conformance": "conformance",
}
PICTURE, PAGE = ROOT / "docs" / "architecture.png", ROOT / "docs" / "architecture.md"
# The two modules at the root that are on no floor: the public names, each imported on demand, and `python -m`.
ROOT_MODULES = ("__init__", "__main__")
# In the picture's metadata: the tables that it was drawn with, hashed.
DRAWN_OF = "imports"


@dataclass(frozen=True, order=True)
class Import:
    """``module`` of ``package`` imports from ``room`` of the core; ``typing_only`` is under TYPE_CHECKING."""

    package: str
    module: str
    room: str
    typing_only: bool


def room_of(module: str) -> str:
    """The part of the core that a module is in: its package there, or itself at the root."""
    return module.split(".")[1] if "." in module else "__init__"


def floor_of(room: str) -> int:
    """The number of the floor, 0 for the ground; KeyError naming a room that is on none."""
    for number, rooms in enumerate(FLOORS):
        if room in rooms or (room == "__init__" and "plugins" in rooms):
            return number
    raise KeyError(f"{room} is on no floor: add it to FLOORS in docs/draw_architecture.py")


def modules(package: str) -> Iterator[tuple[str, Path]]:
    """Every module of a package with its file, in order of names."""
    start = ROOT / OTHERS.get(package, ".")
    for path in sorted((start / package).rglob("*.py")):
        yield ".".join(path.relative_to(start).with_suffix("").parts).removesuffix(".__init__"), path


def imports(package: str) -> list[Import]:
    """What the modules of ``package`` import from the core, where they are not of the core's same room."""
    found = set()
    for module, path in modules(package):
        tree = ast.parse(path.read_text("utf-8"))
        guarded = {id(inner) for node in ast.walk(tree) if _is_guard(node) for inner in ast.walk(node)}
        for node in ast.walk(tree):
            for room in _rooms(node):
                if package != CORE or room != room_of(module):
                    found.add(Import(package, module, room, id(node) in guarded))
    return sorted(found)


def _is_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _rooms(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {room_of(name.name) for name in node.names if name.name.split(".")[0] == CORE}
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == CORE:
        if node.module != CORE:
            return {room_of(node.module)}
        homes = public_homes()
        # The version is a constant of the package itself, which is there before any module.
        return {homes.get(name.name, "__init__") for name in node.names if name.name != "__version__"}
    return set()


@cache
def public_homes() -> dict[str, str]:
    """Name in the package -> the room that it is at home in: who imports it from the package imports from there."""
    tree = ast.parse((ROOT / CORE / "__init__.py").read_text("utf-8"))
    found = {room: room for floor in FLOORS for room in floor}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{CORE}."):
            found |= {name.name: room_of(node.module) for name in node.names}
    return found


def upward(found: list[Import]) -> list[Import]:
    """Imports of the core that do not run down. The root with the public names counts as a part of `plugins`."""
    inside = [i for i in found if i.package == CORE and room_of(i.module) not in ROOT_MODULES]
    return [i for i in inside if floor_of(i.room) >= floor_of(room_of(i.module)) and not _public_names(i)]


def _public_names(item: Import) -> bool:
    return item.room == "__init__" and room_of(item.module) == "plugins"


def graph(found: list[Import]) -> dict[str, set[str]]:
    """Room of the core that is there -> rooms below it that it imports."""
    here = {room_of(module) for module, _ in modules(CORE)}
    rooms: dict[str, set[str]] = {room: set() for floor in FLOORS for room in floor if room in here}
    for item in found:
        above = room_of(item.module)
        if item.room in rooms and above in rooms and floor_of(item.room) < floor_of(above):
            rooms[above].add(item.room)
    return rooms


def reduced(rooms: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The graph without edges that a longer way stands for."""

    def below(room: str) -> set[str]:
        return rooms[room].union(*(below(other) for other in rooms[room]))

    return {room: {o for o in to if not any(o in below(p) for p in to if p != o)} for room, to in rooms.items()}


# -- tables


def floors_table(rooms: Mapping[str, set[str]]) -> str:
    """Markdown: each floor from the top, what its packages are for, and what they import."""
    rows = ["| floor | package | what it is for | imports |", "|---|---|---|---|"]
    for number in reversed(range(len(FLOORS))):
        for room in [room for room in FLOORS[number] if room in rooms]:
            below = ", ".join(sorted(rooms[room], key=lambda other: (-floor_of(other), other)))
            rows.append(f"| {number} | `{room}` | {FLOORS[number][room]} | {below or 'nothing'} |")
    return "\n".join(rows)


def others_table() -> str:
    """Markdown: what each package that is built on the core imports of it."""
    rows = ["| package | imports of the core |", "|---|---|"]
    for package in OTHERS:
        rooms = {item.room for item in imports(package)} - set(ROOT_MODULES)
        rows.append(f"| `{package}` | {', '.join(sorted(rooms, key=lambda room: (floor_of(room), room)))} |")
    return "\n".join(rows)


def tables() -> dict[str, str]:
    """Name of the marker in the page -> what stands between it and its end."""
    return {"floors": floors_table(graph(imports(CORE))), "others": others_table()}


def filled(page: str, texts: Mapping[str, str]) -> str:
    """``page`` with each text between `<!-- NAME -->` and `<!-- /NAME -->`."""
    for name, text in texts.items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        before, _, rest = page.partition(start)
        page = before + start + text + end + rest.partition(end)[2]
    return page


def digest(texts: Mapping[str, str]) -> str:
    """What the picture says that it was drawn of."""
    return hashlib.sha256("\n".join(texts.values()).encode()).hexdigest()


# -- picture

WIDTH, BOX, GAP = 11.4, 0.62, 0.5


def places(rooms: Mapping[str, set[str]]) -> dict[str, tuple[float, float, float]]:
    """Room -> middle, height and width of its box."""
    found, height = {}, 0.0
    for floor in FLOORS:
        here = [room for room in floor if room in rooms]
        for i, room in enumerate(here):
            found[room] = (WIDTH * (2 * i + 1) / (2 * len(here)), height, 3.5)
        height += (BOX + GAP) if here else 0.0
    return found


def box(axes: Axes, x: float, y: float, width: float, title: str, text: str, colour: str) -> None:
    axes.add_patch(
        FancyBboxPatch((x - width / 2, y), width, BOX, boxstyle="round,pad=0.03", fc=colour, ec="0.3", lw=0.8, zorder=2)
    )
    axes.text(x, y + 0.43, title, ha="center", va="center", size=9, weight="bold", zorder=3)
    axes.text(x, y + 0.16, text, ha="center", va="center", size=6.5, color="0.25", zorder=3)


def draw(rooms: Mapping[str, set[str]]) -> Figure:
    """The core's floors with their imports (those that no longer way stands for), and beside it what uses it."""
    at = places(rooms)
    top = max(y for _, y, _ in at.values()) + BOX
    figure = Figure(figsize=(11.5, 9))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(-0.2, WIDTH + 1.4 + 1.2 * len(OTHERS))
    axes.set_ylim(-0.3, top + 0.3)
    axes.axis("off")
    what = {room: text for floor in FLOORS for room, text in floor.items()}
    for room, (x, y, width) in at.items():
        box(axes, x, y, width, room, what[room], "#dce9f5")
        for other in sorted(reduced(rooms)[room]):
            to_x, to_y, _ = at[other]
            axes.annotate(
                "",
                (to_x, to_y + BOX + 0.04),
                (x, y - 0.04),
                arrowprops={"arrowstyle": "-|>", "color": "0.45", "lw": 0.8},
                zorder=1,
            )
    for i, package in enumerate(OTHERS):
        used = {item.room for item in imports(package)} & set(at)
        x = WIDTH + 1.6 + 1.2 * i
        axes.plot([x, x], [min(at[r][1] for r in used) + BOX / 2, top], color="#c98b2b", lw=1, zorder=1)
        for room in used:
            axes.plot([x], [at[room][1] + BOX / 2 + _shift(room)], "o", color="#c98b2b", ms=4, zorder=3)
        axes.text(x, top + 0.12, package.removeprefix("collab_"), ha="center", va="bottom", size=7, weight="bold")
    for room, (_, y, _) in at.items():
        axes.text(WIDTH + 1.3, y + BOX / 2 + _shift(room), room, ha="right", va="center", size=6, color="#8a5a0f")
    return figure


def _shift(room: str) -> float:
    """Dots of the rooms of one floor are one above the other."""
    here = list(FLOORS[floor_of(room)])
    return 0.2 * (len(here) - 1) / 2 - 0.2 * here.index(room)


if __name__ == "__main__":
    texts = tables()
    PAGE.write_text(filled(PAGE.read_text("utf-8"), texts), "utf-8")
    metadata = {"Software": None, DRAWN_OF: digest(texts)}
    draw(graph(imports(CORE))).savefig(PICTURE, dpi=110, metadata=metadata)
