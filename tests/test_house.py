"""The structure of the package: which room imports which, and no circles. The guide draws it from `ROOMS`.

`python -m tests.test_house` writes the picture into the contributor guide.
"""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

GUIDE = Path(__file__).parent.parent / ".github" / "CONTRIBUTING.md"
PACKAGE = Path(__file__).parent.parent / "resnet_paths_plugin"
ROOMS = {
    "errors": (),
    "process_lock": (),
    "visible_text": (),
    "argument_sizes": ("errors",),
    "paths": ("argument_sizes", "errors"),
    "files": ("errors",),
    "graph": ("argument_sizes", "errors", "process_lock"),
    "tasks": ("errors",),
    "plugins": ("tasks", "graph", "files", "errors"),
    "engine": ("graph", "argument_sizes", "errors", "process_lock"),
    "network": ("engine", "graph", "plugins", "tasks", "argument_sizes", "errors", "process_lock"),
    "results": ("graph", "plugins", "paths", "files", "errors", "process_lock"),
    "execution": ("network", "engine", "graph", "results", "tasks", "files", "errors", "process_lock"),
    "analyzers": (
        "execution", "network", "engine", "graph", "results", "plugins", "tasks", "paths", "argument_sizes", "errors",
        "process_lock",
    ),
    "statistics": ("errors",),
    "plotting": ("statistics", "results", "plugins", "paths", "errors"),
    "comparison": ("statistics", "plotting", "results", "paths", "errors"),
    "report": ("plotting", "results", "paths", "files", "visible_text", "errors", "process_lock"),
    "demo": ("plugins", "errors"),
    "builtin_plugin": ("analyzers", "plotting", "demo", "plugins", "graph"),
    "schedules": ("network",),
    "hookspecs": ("plugins",),
    "cli": (
        "analyzers", "execution", "network", "graph", "plugins", "results", "report", "comparison", "plotting", "demo",
        "files", "paths", "visible_text", "argument_sizes", "errors", "process_lock",
    ),
    "__main__": ("cli",),
}  # fmt: skip
"""Each room with those that it may import, from the ground up."""
SMALL = {"paths", "report", "plotting", "demo", "statistics", "tasks"}
"""Rooms that are imported as such: `from resnet_paths_plugin import paths`."""


def picture():
    """Return the rooms as a Mermaid graph; an arrow that follows from others is left out."""
    below = {}
    for room, others in ROOMS.items():
        below[room] = set(others).union(*(below[other] for other in others))
    arrows = [
        f"  {room} --> {other}"
        for room, others in ROOMS.items()
        for other in others
        if not any(other in below[between] for between in others)
    ]
    return "\n".join(["```mermaid", "graph TD", *arrows, "```"])


def drawn():
    """Return the guide's text before, in and after the picture."""
    found = re.fullmatch(r"(.*<!-- rooms -->\n)(.*?)(\n<!-- end -->.*)", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    return found.groups()


def test_the_guide_shows_the_rooms_as_they_are():
    assert drawn()[1] == picture(), "run python -m tests.test_house"


def test_the_guide_says_what_each_room_holds():
    told = set(re.findall(r"`(\w+)(?:\.py|/)`", drawn()[2]))
    assert told >= {room for room in ROOMS if room != "__main__"}


def modules():
    return {
        str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".").removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE or path.stem != "__init__"
    }


def imports():
    """Return for each module those that it imports, inside functions and for type checkers too."""
    known = modules()
    found = {}
    for module, path in known.items():
        found[module] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
                base = node.module.removeprefix(PACKAGE.name).removeprefix(".")
                for alias in node.names:
                    whole = f"{base}.{alias.name}".strip(".")
                    found[module].add(whole if whole in known else base)
        found[module] -= {"", module}
    return found


def test_rooms_import_downwards_only():
    wrong = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in others
        if other.partition(".")[0] not in (module.partition(".")[0], *ROOMS[module.partition(".")[0]])
    ]
    assert not wrong


def test_rooms_stand_on_lower_ones():
    order = list(ROOMS)
    for room, others in ROOMS.items():
        assert all(order.index(other) < order.index(room) for other in others), room


def test_no_module_imports_itself_by_way_of_others():
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


if __name__ == "__main__":
    before, _, after = drawn()
    GUIDE.write_text(before + picture() + after, encoding="utf-8")
