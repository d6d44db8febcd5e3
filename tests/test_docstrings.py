"""Every public name has an example in its docstring, and each example prints what it says that it prints."""

import doctest
import io
import re
from pathlib import Path
from types import FunctionType, ModuleType

import matplotlib.pyplot as plt
import pytest

import resnet_paths_plugin as rpp

pytestmark = pytest.mark.slow

METHODS = {
    "BlockGame": ("__call__", "per_sample", "effects", "forward_passes"),
    "Schedule": ("identity", "lesion", "order", "scaled", "repeated", "parallel", "from_weights", "from_rows"),
    "UnraveledNetwork": (
        "lesioned", "pruned", "scheduled", "restricted", "sampling", "outputs", "block", "select", "path_counts",
        "table", "other_sums", "weights_digest",
    ),
}  # fmt: skip
"""What a user calls on the objects of a class."""
STANDS_ELSEWHERE = {"hookimpl": "hookspecs", "errors": "ResnetPathsError", "analyzers": "Study"}
"""Names whose example is in another name's docstring."""
PRELUDE = "resnet_paths_plugin"


def documented():
    """Return each public object that has to show how it is used, by its name."""
    found = {PRELUDE: rpp, **{name: getattr(rpp, name) for name in rpp.__all__ if name not in STANDS_ELSEWHERE}}
    for room in ("paths", "plotting", "schedules", "statistics", "tasks"):
        module = found.pop(room)
        public = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
        found |= {f"{room}.{name}": shown for name, shown in public.items() if isinstance(shown, FunctionType)}
    for owner, names in METHODS.items():
        found |= {f"{owner}.{name}": getattr(found[owner], name) for name in names}
    return found


DOCUMENTED = documented()


def run(name, names):
    """Run the examples of a docstring with some names defined, and return what they define."""
    docstring = DOCUMENTED[name].__doc__ or ""
    examples = doctest.DocTestParser().get_doctest(docstring, names, name, None, 0)
    assert examples.examples, f"{name} has no example in its docstring"
    told = io.StringIO()
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples, out=told.write, clear_globs=False)
    assert not told.getvalue(), told.getvalue()
    return examples.globs


@pytest.fixture(scope="module")
def prelude():
    return run(PRELUDE, {})


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if name != PRELUDE])
def test_the_example_runs(name, prelude, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    run(name, dict(prelude))
    plt.close("all")


def test_names_without_an_example_of_their_own_are_shown_elsewhere():
    for name, where in STANDS_ELSEWHERE.items():
        assert f"rpp.{name}" in DOCUMENTED[where].__doc__ or isinstance(getattr(rpp, name), ModuleType)


def test_the_pages_of_the_api_show_every_public_name():
    pages = Path(__file__).parent.parent / ".docs" / "pages"
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages.glob("*.md"))
    shown = {name.removeprefix("resnet_paths_plugin.") for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    for name, there in DOCUMENTED.items():
        owner, room = name.partition(".")[0], getattr(there, "__module__", "").rpartition(".")[2]
        assert name in {PRELUDE, "hookspecs"} or {name, owner, room} & shown, name
    assert "plugins.hookspecs" in shown
