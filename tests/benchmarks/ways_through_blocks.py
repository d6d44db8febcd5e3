"""What is timed of participation, contributions and gradients at parameters: each against the exact walk."""

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers.gradients.contribution_tasks import ContributionWork
from resnet_paths_plugin.analyzers.gradients.participation_tasks import ParticipationWork
from resnet_paths_plugin.analyzers.gradients.walks import walk_of
from resnet_paths_plugin.engine.parameter_flow import ParameterBanks, ParameterFlow
from resnet_paths_plugin.engine.routing import ByLength
from resnet_paths_plugin.execution.batches import Batch
from tests.benchmarks.study import Ratio, Study
from tests.benchmarks.subjects import pictures, trained

BOUNDS = {"participation": "2.6", "contributions": "1.1", "parameters": "2.2"}


def walks(options, size=8):
    """The walks alone: a forward pass, all lengths back, and what is read off them."""
    net, images = _network(options, size)
    n, chunk = len(net.blocks), Batch((images,), 0, size)
    lengths = ByLength([(1,)] * n)
    flow = ParameterFlow(net.program)
    graph, with_parameters = net.path_graph(), net.path_graph_to(net.program.inputs, parameters=flow.derived)
    line = ((1.0, 1.0),)
    participation = ParticipationWork("score", 1, n + 1, False, "input", None, line, None).on(net)
    contributions = ContributionWork("score", n, False, False, None).on(net)

    def exact():
        walk, seeds = walk_of(net, graph, "score", chunk)
        walk.gradients(seeds, lengths)

    def parameters():
        walk, seeds = walk_of(net, with_parameters, "score", chunk)
        watch = ParameterBanks(flow, walk.forward_pass.static, walk.dtype)
        walk.gradients(seeds, lengths, watch)
        watch.gradients()

    ways = {
        "exact": exact,
        "participation": lambda: participation(0, (chunk,)),
        "contributions": lambda: contributions(0, (chunk,)),
        "parameters": parameters,
    }
    return Study(f"walks, ResNet-56 ({n} blocks), {size} images", ways, _ratios("the exact walk"))


def studies(options, size=8):
    """The same as users call them, with all that a study costs beside."""
    net, images = _network(options, size)
    run = rpp.RunOptions(verify=False)
    ways = {
        "exact": lambda: rpp.PathLengthGradient(net).attribute(images, target=0, run=run),
        "participation": lambda: rpp.PathParticipation(net).attribute(images, target=0, run=run),
        "contributions": lambda: rpp.BlockContribution(net).attribute(images, target=0, run=run),
        "parameters": lambda: rpp.PathLengthGradient(net).attribute(images, target=0, tap="parameters", run=run),
    }
    return Study(f"studies, ResNet-56 ({len(net.blocks)} blocks), {size} images", ways, _ratios("the exact study"))


def _network(options, size):
    images = pictures(size, options.images)
    return rpp.unravel(trained(options.weights), images[:2]), images


def _ratios(exact):
    return tuple(
        Ratio(f"{name} / {exact}", lambda t, name=name: t[name] / t["exact"], bound) for name, bound in BOUNDS.items()
    )
