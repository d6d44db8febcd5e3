"""Models by a pattern of their names, from all plugins that know some."""

import pytest
import timm

import resnet_paths_plugin as rpp
import resnet_paths_timm
import resnet_paths_torchvision
from resnet_paths_plugin import hookimpl
from resnet_paths_plugin.errors import InputError, PluginError


def manager(*plugins):
    made = rpp.create_plugin_manager(entry_points=False)
    for plugin in plugins:
        made.register(plugin)
    return made


def listing(answer):
    class Plugin:
        @hookimpl
        def resnet_paths_list_models(self, pattern, pretrained):
            return answer(pattern, pretrained) if callable(answer) else answer

    return Plugin()


def test_the_models_of_all_plugins_that_match_are_listed_once():
    zoo, ark = listing(["zoo/net2", "zoo/net10", "zoo/other"]), listing(["ark/net1", "zoo/net2"])
    assert rpp.list_models("*/net*", plugin_manager=manager(zoo, ark)) == ("zoo/net2", "zoo/net10", "ark/net1")
    assert rpp.list_models("zoo/net?", plugin_manager=manager(zoo, listing(None))) == ("zoo/net2",)
    assert rpp.list_models("zoo/Net*", plugin_manager=manager(zoo)) == ()
    assert rpp.list_models("zoo/net*", plugin_manager=manager()) == ()


def test_plugins_are_told_the_pattern_and_whether_weights_are_wanted():
    asked = []
    made = manager(listing(lambda *told: asked.append(told)))
    rpp.list_models("a/*", pretrained=True, plugin_manager=made)
    rpp.list_models("b/*", plugin_manager=made)
    assert asked == [("a/*", True), ("b/*", False)]


@pytest.mark.parametrize("answer", [["zoo/net", 3], {"zoo/net"}])
def test_another_answer_is_an_error(answer):
    with pytest.raises(PluginError, match="answered list_models with"):
        rpp.list_models("*", plugin_manager=manager(listing(answer)))


def test_a_plugin_that_fails_is_reported_and_left_out():
    def fails(*_):
        raise ZeroDivisionError("out of luck")

    made = manager(listing(fails), listing(["zoo/net"]))
    with pytest.warns(rpp.PluginWarning, match="failed to offer its models, which are left out: .*out of luck"):
        assert rpp.list_models("zoo/*", plugin_manager=made) == ("zoo/net",)


def test_the_adapters_list_what_their_libraries_have():
    made = manager(resnet_paths_timm, resnet_paths_torchvision)
    both = rpp.list_models("*/resnet18", plugin_manager=made)
    assert both == ("timm/resnet18", "torchvision/resnet18")
    whole = rpp.list_models("timm/test_*", plugin_manager=made)
    assert whole == tuple(f"timm/{name}" for name in timm.list_models("test_*"))
    trained = rpp.list_models("timm/test_*", pretrained=True, plugin_manager=made)
    assert set(trained) == {name for name in whole if timm.is_model_pretrained(name.removeprefix("timm/"))}
    assert 10 <= len(trained) < len(whole)


def test_a_dot_asks_for_the_weights_of_an_architecture():
    made = manager(resnet_paths_timm)
    found = rpp.list_models("timm/resnet18.*", plugin_manager=made)
    assert {"timm/resnet18.a1_in1k", "timm/resnet18.tv_in1k"} <= set(found)
    for spec in found:
        assert timm.is_model_pretrained(spec.removeprefix("timm/"))


def test_the_embedded_networks_are_listed():
    assert rpp.list_models("resnet_paths_plugin/*", plugin_manager=rpp.create_plugin_manager()) == (
        "resnet_paths_plugin/digits_resnet110",
        "resnet_paths_plugin/digits_plain15",
    )


@pytest.mark.parametrize("pattern", [None, 3, ["timm/*"]])
def test_a_pattern_that_is_no_text_is_refused(pattern):
    with pytest.raises(InputError, match="a pattern of models is a text"):
        rpp.list_models(pattern)
