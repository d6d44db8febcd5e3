"""Claims about who is asked: registration, order of answers, and what a plugin may not say."""

import asyncio
import warnings
from dataclasses import replace

import pluggy
import pytest
import torch
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import ModelNotFoundError, PluginError
from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.plugins import manager as plugins
from resnet_paths_plugin.plugins.hookspecs import hookimpl
from resnet_paths_plugin.plugins.manager import PluginWarning, create_plugin_manager
from resnet_paths_plugin.plugins.model_description import ModelDescription

MODEL = nn.Linear(2, 2)


def block(name, index=0):
    return ResidualBlock(
        index=index,
        name=name,
        module=name,
        group=name,
        skip_kind="identity",
        branch_type="convolution",
        stage=None,
        depth=2,
        source_shape=(4, 8, 8),
        sum_shape=(4, 8, 8),
        source="x",
        skip="x",
        branch="conv",
        sum="add",
    )


BLOCKS = (block("a", 0), block("b", 1), block("c", 2))


def described_as(architecture):
    return ModelDescription(library="zoo", library_version="1", architecture=architecture)


def plugin(**hooks):
    """Make a plugin of functions whose hook names lack their prefix."""
    return type(
        "Plugin",
        (),
        {f"resnet_paths_{hook}": staticmethod(hookimpl(function)) for hook, function in hooks.items()},
    )()


def manager(*registered, **named):
    made = create_plugin_manager(entry_points=False)
    for one in registered:
        made.register(one)
    for name, one in named.items():
        made.register(one, name=name)
    return made


# Reviews


def test_a_review_renames_a_block():
    made = manager(
        plugin(review_blocks=lambda blocks: [replace(blocks[0], name="stem"), *blocks[1:]]),
    )
    assert [one.name for one in plugins.review_blocks(MODEL, BLOCKS, made)] == ["stem", "b", "c"]


def test_a_review_drops_a_block_and_the_others_are_renumbered():
    made = manager(plugin(review_blocks=lambda blocks: (blocks[0], blocks[2])))
    reviewed = plugins.review_blocks(MODEL, BLOCKS, made)
    assert [(one.name, one.index) for one in reviewed] == [("a", 0), ("c", 1)]
    assert [one.index for one in BLOCKS] == [0, 1, 2]


def test_without_reviews_blocks_stay_as_they_are():
    silent = plugin(review_blocks=lambda: None)
    assert plugins.review_blocks(MODEL, BLOCKS, manager(silent)) == BLOCKS
    assert plugins.review_blocks(MODEL, BLOCKS, manager()) == BLOCKS


def test_a_review_may_drop_every_block():
    made = manager(plugin(review_blocks=lambda: ()))
    assert plugins.review_blocks(MODEL, BLOCKS, made) == ()


def appending(suffix):
    def review(model, blocks):
        assert model is MODEL
        return [replace(one, name=one.name + suffix) for one in blocks]

    return review


def test_reviews_are_folded_in_order_of_registration_each_seeing_the_one_before():
    made = manager(
        plugin(review_blocks=appending("1")),
        plugin(review_blocks=lambda: None),
        plugin(review_blocks=appending("2")),
        plugin(review_blocks=appending("3")),
    )
    assert [one.name for one in plugins.review_blocks(MODEL, BLOCKS, made)] == ["a123", "b123", "c123"]


def test_reviews_honour_tryfirst_and_trylast():
    class First:
        @hookimpl(tryfirst=True)
        def resnet_paths_review_blocks(self, blocks):
            return appending("F")(MODEL, blocks)

    class Last:
        @hookimpl(trylast=True)
        def resnet_paths_review_blocks(self, blocks):
            return appending("L")(MODEL, blocks)

    made = manager(Last(), plugin(review_blocks=appending("1")), First(), plugin(review_blocks=appending("2")))
    assert plugins.review_blocks(MODEL, (block("a"),), made)[0].name == "aF12L"


def test_hook_wrappers_stay_in_force():
    class Wrapper:
        @hookimpl(wrapper=True)
        def resnet_paths_describe_model(self):
            return replace((yield), library="wrapped")

    made = manager(Wrapper(), plugin(describe_model=lambda: described_as("net")))
    assert plugins.describe(MODEL, made).library == "wrapped"


@pytest.mark.parametrize(
    "answer",
    [["a", "b"], 3, {"a": 1}, [block("same"), block("same", 1)]],
    ids=["strings", "int", "dict", "twins"],
)
@pytest.mark.parametrize("hook", ["review_blocks", "detect_blocks"])
def test_blocks_that_are_none_are_refused_by_the_plugins_name(hook, answer):
    made = manager(culprit=plugin(**{hook: lambda: answer}), other=plugin(review_blocks=lambda: None))
    with pytest.raises(PluginError, match=f"'culprit' answered {hook} with"):
        getattr(plugins, hook)(MODEL, BLOCKS, made)


@pytest.mark.parametrize("hook", ["review_blocks", "detect_blocks", "capture"])
def test_a_plugin_that_fails_where_results_are_decided_is_an_error_with_its_cause(hook):
    def fail():
        raise ZeroDivisionError("no luck")

    with pytest.raises(PluginError, match=rf"'culprit' failed in {hook}: ZeroDivisionError\('no luck'\)") as caught:
        getattr(plugins, hook)(MODEL, (), manager(culprit=plugin(**{hook: fail})))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


# The first answer wins


def test_the_first_description_wins_in_pluggys_own_order():
    class First:
        @hookimpl(tryfirst=True)
        def resnet_paths_describe_model(self):
            return None

    made = manager(
        First(),
        plugin(describe_model=lambda: described_as("earlier")),
        plugin(describe_model=lambda: described_as("later")),
        plugin(describe_model=lambda: None),
    )
    assert plugins.describe(MODEL, made).architecture == "later"
    assert plugins.describe(MODEL, made) == made.hook.resnet_paths_describe_model(model=MODEL)


def test_later_plugins_are_not_asked_after_an_answer():
    def never():
        pytest.fail("asked although another had answered")

    made = manager(plugin(describe_model=never), plugin(describe_model=lambda: described_as("net")))
    assert plugins.describe(MODEL, made) == described_as("net")


def test_a_model_that_no_plugin_knows_has_no_description():
    assert plugins.describe(MODEL, manager(plugin(describe_model=lambda: None))) is None
    assert plugins.describe(MODEL, manager()) is None


def test_a_plugin_that_fails_to_describe_is_reported_and_passed_over():
    def fail(model):
        raise KeyError(type(model).__name__)

    made = manager(good=plugin(describe_model=lambda: described_as("net")), bad=plugin(describe_model=fail))
    with pytest.warns(PluginWarning, match=r"'bad' failed to describe Linear: KeyError\('Linear'\)"):
        assert plugins.describe(MODEL, made) == described_as("net")


def test_an_empty_tuple_of_blocks_is_an_answer_and_none_is_not():
    made = manager(plugin(detect_blocks=lambda: BLOCKS), plugin(detect_blocks=lambda: ()))
    assert plugins.detect_blocks(MODEL, None, made) == ()
    made = manager(plugin(detect_blocks=lambda: [block("a", 7)]), plugin(detect_blocks=lambda: None))
    assert plugins.detect_blocks(MODEL, None, made) == (block("a", 0),)
    assert plugins.detect_blocks(MODEL, None, manager()) is None


def test_a_plugin_captures_a_model_in_its_own_way():
    inputs = (torch.zeros(2, 2),)
    exported = torch.export.export(MODEL, inputs, strict=False)
    asked = []

    def capture(model, example_inputs):
        asked.append((model, example_inputs))
        return exported

    assert plugins.capture(MODEL, inputs, manager(plugin(capture=capture))) is exported
    assert asked == [(MODEL, inputs)]
    assert plugins.capture(MODEL, inputs, manager()) is None


@pytest.mark.parametrize(
    ("hook", "ask"),
    [
        ("describe_model", lambda made: plugins.describe(MODEL, made)),
        ("load_model", lambda made: plugins.load_model("zoo/net", plugin_manager=made)),
        ("capture", lambda made: plugins.capture(MODEL, (), made)),
        ("analyzers", plugins.analyzers),
    ],
)
def test_an_answer_of_the_wrong_type_is_refused_by_the_plugins_name(hook, ask):
    made = manager(culprit=plugin(**{hook: lambda: ["nonsense"]}))
    with pytest.raises(PluginError, match=rf"'culprit' answered {hook} with \['nonsense'\]"):
        ask(made)


# Models by name


def loads(library, model):
    return plugin(load_model=lambda spec: model if spec.startswith(f"{library}/") else None)


def test_a_model_is_loaded_by_the_plugin_that_knows_its_library():
    asked = []

    def load(spec, pretrained):
        asked.append((spec, pretrained))
        return MODEL if spec.startswith("zoo/") else None

    made = manager(plugin(load_model=load), loads("other", nn.ReLU()))
    assert plugins.load_model("zoo/net", plugin_manager=made) is MODEL
    assert plugins.load_model("zoo/sub/net", pretrained=True, plugin_manager=made) is MODEL
    assert asked == [("zoo/net", False), ("zoo/sub/net", True)]


def test_an_unknown_library_is_refused_with_the_known_ones():
    made = manager(zoo=loads("zoo", MODEL), ark=loads("ark", MODEL), describer=plugin(describe_model=lambda: None))
    with pytest.raises(ModelNotFoundError, match=r"'zooo'\. Did you mean 'zoo/net'\? .*here: ark, zoo$"):
        plugins.load_model("zooo/net", plugin_manager=made)
    with pytest.raises(ModelNotFoundError, match="here: none"):
        plugins.load_model("zoo/net", plugin_manager=manager())


@pytest.mark.parametrize("spec", ["net", "", "/", "zoo/", "/net"])
def test_a_specification_without_library_and_name_is_refused(spec):
    with pytest.raises(ModelNotFoundError, match=r"is not like library/name.*here: zoo"):
        plugins.load_model(spec, plugin_manager=manager(zoo=loads("zoo", MODEL)))


def test_what_the_library_raises_while_loading_is_passed_on():
    def load():
        raise ConnectionError("no network")

    with pytest.raises(ConnectionError, match="no network"):
        plugins.load_model("zoo/net", pretrained=True, plugin_manager=manager(plugin(load_model=load)))


# Analyzers


def test_a_plugin_adds_an_analyzer():
    class Study: ...

    class Census: ...

    made = manager(plugin(analyzers=lambda: {"study": Study}), plugin(analyzers=lambda: {"census": Census}))
    assert plugins.analyzers(made) == {"study": Study, "census": Census}
    assert plugins.analyzers(manager()) == {}


def test_the_first_registered_keeps_an_analyzers_name():
    made = manager(first=plugin(analyzers=lambda: {"a": int}), second=plugin(analyzers=lambda: {"a": str, "b": str}))
    with pytest.warns(PluginWarning, match="'a' of plugin 'second' is left out"):
        assert plugins.analyzers(made) == {"a": int, "b": str}


@pytest.mark.parametrize("answer", [{"a": 3}, {3: int}])
def test_analyzers_are_classes_with_names(answer):
    with pytest.raises(PluginError, match="'culprit' answered analyzers with 3"):
        plugins.analyzers(manager(culprit=plugin(analyzers=lambda: answer)))


# Managers


def test_a_misspelt_hook_of_a_plugin_registered_by_hand_is_an_error():
    made = manager(mine=plugin(describe_modell=lambda: None))
    with pytest.raises(PluginError, match=r"'mine' implements a hook that does not exist: .*describe_modell"):
        plugins.describe(MODEL, made)


def test_a_manager_without_our_hooks_is_refused():
    with pytest.raises(PluginError, match=r"'elsewhere' does not know the hooks.*create_plugin_manager"):
        plugins.describe(MODEL, pluggy.PluginManager("elsewhere"))


def test_the_public_module_offers_every_hook_and_nothing_else():
    hooks = {name for name in vars(plugins.hookspecs) if name.startswith("resnet_paths_")}
    assert set(rpp.hookspecs.__all__) == {"hookimpl", *hooks}


def test_a_plugin_that_answers_well_gives_no_warning():
    made = manager(plugin(describe_model=lambda: described_as("net")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plugins.describe(MODEL, made)


# Whatever they raise


class Unshowable(BaseException):
    def __repr__(self):
        raise SystemExit(3)


ANYTHING = [SystemExit(0), GeneratorExit(), asyncio.CancelledError(), BaseException("odd"), MemoryError(), Unshowable()]


def raising(error):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize("error", ANYTHING, ids=lambda error: type(error).__name__)
def test_a_plugin_may_raise_anything_where_no_result_is_decided(error):
    made = manager(bad=plugin(describe_model=raising(error), analyzers=raising(error)))
    with pytest.warns(PluginWarning, match=f"'bad' failed to describe Linear: {type(error).__name__}"):
        assert plugins.describe(MODEL, made) is None
    with pytest.warns(PluginWarning, match=f"'bad' failed to offer analyzers, .*: {type(error).__name__}"):
        assert plugins.analyzers(made) == {}


@pytest.mark.parametrize("error", ANYTHING, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("hook", ["review_blocks", "detect_blocks", "capture"])
def test_where_results_are_decided_anything_raised_is_an_error_of_the_plugin(hook, error):
    with pytest.raises(PluginError, match=f"'bad' failed in {hook}: {type(error).__name__}"):
        getattr(plugins, hook)(MODEL, (), manager(bad=plugin(**{hook: raising(error)})))


def test_a_plugin_that_loads_models_cannot_end_the_process():
    with pytest.raises(PluginError, match=r"'bad' failed in load_model: SystemExit\(0\)"):
        plugins.load_model("a/b", plugin_manager=manager(bad=plugin(load_model=raising(SystemExit(0)))))


def test_an_answer_that_cannot_be_shown_is_refused_by_its_type():
    with pytest.raises(PluginError, match=r"with Unshowable \(which cannot be shown\), not with"):
        plugins.describe(MODEL, manager(bad=plugin(describe_model=Unshowable)))


@pytest.mark.parametrize("hook", ["describe_model", "analyzers", "review_blocks", "capture", "load_model"])
def test_an_interruption_inside_a_hook_stays_one(hook):
    made = manager(plugin(**{hook: raising(KeyboardInterrupt())}))
    ask = {
        "describe_model": lambda: plugins.describe(MODEL, made),
        "analyzers": lambda: plugins.analyzers(made),
        "review_blocks": lambda: plugins.review_blocks(MODEL, (), made),
        "capture": lambda: plugins.capture(MODEL, (), made),
        "load_model": lambda: plugins.load_model("a/b", plugin_manager=made),
    }
    with pytest.raises(KeyboardInterrupt):
        ask[hook]()
