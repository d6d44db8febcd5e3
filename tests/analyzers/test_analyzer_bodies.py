"""The boilerplate of `attribute` stands once, in `Analyzer`; Captum's conventions stay."""

import ast
import inspect
import textwrap

import pytest
from captum.attr import Attribution

import resnet_paths_plugin as rpp
from resnet_paths_plugin.plugins import manager as plugins

MOST_LINES = 20
COMMON = ["self", "inputs", "target", "additional_forward_args"]


@pytest.mark.parametrize(
    "name",
    [
        "BlockContribution",
        "BlockInfluence",
        "BlockLesion",
        "BlockReordering",
        "BlockSchedules",
        "BlockSelection",
        "PathLengthGradient",
        "PathParticipation",
    ],
)
def test_attribute_only_says_how_its_study_is_made(name):
    analyzer = plugins.analyzers()[name]
    source = textwrap.dedent(inspect.getsource(analyzer.attribute.__wrapped__))
    (function,) = ast.parse(source).body
    assert ast.unparse(function.decorator_list[0]) == "log_usage()"
    first, last = function.body[1], function.body[-1]
    assert last.end_lineno - first.lineno + 1 < MOST_LINES
    calls = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
    assert "self.run_study" in calls
    assert not calls & {"StudyRun", "study_attrs", "Batches", "unravel"}


@pytest.mark.parametrize(
    "name",
    [
        "BlockContribution",
        "BlockInfluence",
        "BlockInteraction",
        "BlockLesion",
        "BlockReordering",
        "BlockSchedules",
        "BlockSelection",
        "PathLengthGradient",
        "PathParticipation",
    ],
)
def test_analyzers_are_captums_with_arguments_in_its_order(name):
    analyzer = getattr(rpp, name)
    assert issubclass(analyzer, rpp.Analyzer)
    assert issubclass(analyzer, Attribution)
    assert list(inspect.signature(analyzer.attribute).parameters)[:4] == COMMON
