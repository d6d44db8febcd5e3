"""Claims about installed plugins: how they are found, listed, and left out where they are broken."""

import sys
from itertools import count

import pluggy
import pytest
from torch import nn

from resnet_paths_plugin.plugins import manager as plugins
from resnet_paths_plugin.plugins.hookspecs import hookimpl
from resnet_paths_plugin.plugins.manager import PluginWarning, create_plugin_manager
from resnet_paths_plugin.plugins.model_description import ModelDescription

MODEL = nn.Linear(2, 2)
fresh = count()


def described_as(architecture):
    return ModelDescription(library="zoo", library_version="1", architecture=architecture)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution, with the metadata of a real one, whose one plugin has the source given."""

    def install(source, *, name="zoo", distribution="zoo-plugin", version="1.2"):
        module = f"installed_plugin_{next(fresh)}"
        site = tmp_path / f"site_{module}"
        metadata = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(f"[resnet_paths_plugin]\n{name} = {module}\n")
        if source is not None:
            (site / f"{module}.py").write_text(
                f"from resnet_paths_plugin.plugins.model_description import ModelDescription\n"
                f"from resnet_paths_plugin.plugins.hookspecs import hookimpl\n{source}"
            )
        monkeypatch.syspath_prepend(site)
        return module

    before = set(sys.modules)
    yield install
    for name in set(sys.modules) - before:
        if name.startswith("installed_plugin_"):
            del sys.modules[name]


DESCRIBES = """
@hookimpl
def resnet_paths_describe_model(model):
    return ModelDescription(library="zoo", library_version="1", architecture="{}")
"""


def installed_names(made):
    return {name for name, _ in made.list_name_plugin()}


def test_an_installed_plugin_is_found_and_asked(install):
    install(DESCRIBES.format("net"))
    assert plugins.describe(MODEL, create_plugin_manager()) == described_as("net")
    assert "zoo" not in installed_names(create_plugin_manager(entry_points=False))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "ModuleNotFoundError"),
        ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
        ("raise SystemExit(3)", r"SystemExit\(3\)"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("import asyncio\nraise asyncio.CancelledError", "CancelledError"),
        ("class Odd(BaseException):\n    def __repr__(self): return 1 / 0\nraise Odd", "Odd"),
        ("def broken(:", "SyntaxError"),
        ("@hookimpl\ndef resnet_paths_describe_modell(model): ...", "resnet_paths_describe_modell"),
        ("@hookimpl\ndef resnet_paths_describe_model(network): ...", "network"),
    ],
    ids=[
        "no module",
        "import",
        "exit",
        "generator exit",
        "cancelled",
        "odd",
        "syntax",
        "misspelt hook",
        "misspelt argument",
    ],
)
def test_a_broken_installed_plugin_is_reported_and_left_out(install, source, reason):
    install(DESCRIBES.format("before"), name="before", distribution="aaa")
    module = install(source, name="broken", distribution="broken-dist", version="7")
    install(DESCRIBES.format("after"), name="after", distribution="zzz")
    with pytest.warns(PluginWarning) as reported:
        made = create_plugin_manager()
    (message,) = (str(one.message) for one in reported)
    assert message.startswith(f"plugin 'broken' ({module}) of broken-dist 7 is left out: ")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(message)
    assert {"before", "after"} <= installed_names(made)
    assert "broken" not in installed_names(made)
    assert plugins.describe(MODEL, made) == described_as("after")


def test_an_interruption_while_a_plugin_is_imported_stays_one(install):
    install("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        create_plugin_manager()


def test_what_a_misspelt_plugin_does_rightly_is_left_out_too(install):
    install(DESCRIBES.format("net") + "\n@hookimpl\ndef resnet_paths_describe_modell(model): ...")
    with pytest.warns(PluginWarning, match="describe_modell"):
        made = create_plugin_manager()
    assert plugins.describe(MODEL, made) is None


def test_of_two_installed_plugins_of_one_name_the_first_is_kept(install):
    install(DESCRIBES.format("first"), distribution="aaa")
    install(DESCRIBES.format("second"), distribution="bbb")
    with pytest.warns(PluginWarning, match=r"'zoo' \(\w+\) of bbb 1.2 is left out: ValueError"):
        made = create_plugin_manager()
    assert plugins.describe(MODEL, made) == described_as("first")


def test_a_strangers_answer_comes_before_that_of_our_own_adapters(install):
    install(DESCRIBES.format("ours"), name="ours", distribution="resnet-paths-plugin")
    install(DESCRIBES.format("strange"), name="strange", distribution="aaa")
    assert plugins.describe(MODEL, create_plugin_manager()) == described_as("strange")


def test_the_default_manager_holds_the_installed_plugins_and_is_made_once(install):
    install(DESCRIBES.format("default"))
    plugins.default_plugin_manager.cache_clear()
    try:
        assert plugins.describe(MODEL) == described_as("default")
        assert plugins.default_plugin_manager() is plugins.checked_plugin_manager(None)
    finally:
        plugins.default_plugin_manager.cache_clear()


class ByHand:
    @hookimpl
    def resnet_paths_review_blocks(self): ...

    @hookimpl
    def resnet_paths_analyzers(self): ...


def test_the_listing_tells_where_plugins_come_from(install):
    module = install(DESCRIBES.format("net"), name="pluggy", distribution="pluggy-zoo", version="0.3")
    made = create_plugin_manager()
    made.register(ByHand(), name="by hand")
    rows = {row.name: row for row in plugins.listing(made)}
    row = rows["pluggy"]
    assert (row.distribution, row.version, row.module) == ("pluggy-zoo", "0.3", module)
    assert row.hooks == ("describe_model",)
    assert str(row) == f"pluggy {pluggy.__version__} via pluggy-zoo 0.3"
    by_hand = rows["by hand"]
    assert (by_hand.distribution, by_hand.version, by_hand.module) == (None, None, __name__)
    assert set(by_hand.hooks) == {"review_blocks", "analyzers"}
    assert str(by_hand) == "by hand"


def test_the_listing_leaves_out_blocked_names():
    made = create_plugin_manager(entry_points=False)
    made.register(ByHand(), name="mine")
    made.set_blocked("mine")
    assert plugins.listing(made) == ()
