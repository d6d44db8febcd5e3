"""What decides the outputs and gradients of an unraveled network or a view of one, for fingerprints."""

from dataclasses import asdict

from torch import Tensor, fx

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.network.network_view import NetworkView
from resnet_paths_plugin.network.pruning import PrunedNetwork
from resnet_paths_plugin.network.restricted_training import RestrictedTrainingNetwork
from resnet_paths_plugin.network.sampling import SamplingNetwork
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.network.views import RestrictedNetwork, ScheduledNetwork


def parts_of_pruned(module: PrunedNetwork) -> list[object]:
    """Return the graphs of a pruned network, its mode and all tensors that it holds."""
    graphs = {name: part.code for name, part in module.named_modules() if isinstance(part, fx.GraphModule)}
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return [module.model_name, module.training, graphs, tensors]


def parts_of_view(view: NetworkView) -> list[object]:
    """Return the network's graph, blocks and tensors as the model holds them now, and what a view makes of them.

    Raises:
        InputError: if it is a view of another kind.
    """
    match view:
        case UnraveledNetwork():
            live = {node.name: value for node, value in view.graph.live_tensors().items() if isinstance(value, Tensor)}
            blocks = [asdict(block) for block in view.blocks]
            return [view.name, view.units, view.optimize, blocks, view.graph_digest(), live]
        case ScheduledNetwork():
            own: tuple[object, ...] = (view.schedule,)
        case RestrictedNetwork():
            own = (view.lengths,)
        case RestrictedTrainingNetwork():
            own = view.lengths, view.training
        case SamplingNetwork():
            drawn = None if view.generator is None else view.generator.get_state()
            sampled = [block.name for block in view.sampled]
            own = view.n_active, view.survival, sampled, view.eval_schedule, view.training, drawn
        case _:
            raise InputError(
                f"what a {type(view).__name__} computes cannot be compared when a checkpoint is gone on from: give "
                "what reaches it, such as your measure, a version (measure.version = '1')"
            )
    return [parts_of_view(view.network), *own]
