"""NetworkView: a module that runs a captured graph, and has no submodules to hook."""

from collections.abc import Iterator
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from resnet_paths_plugin.errors import UnsupportedMethodError
from resnet_paths_plugin.graph.keywords import packed


class NetworkView(nn.Module):
    """A module that runs a captured graph instead of submodules.

    It takes the model's arguments, by position or by name, and computes in eval mode, but for a sampling network and
    restricted training in training mode. All but these are for any number of threads. Its parameters and buffers are
    the model's own; methods that hook or walk submodules are refused, since they would run and mean nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # A tuple, so that the user's model does not become a submodule whose flags and hooks this one could touch.
        self._model = (model,)
        self.training = False

    @property
    def model(self) -> nn.Module:
        """The user's model."""
        return self._model[0]

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run the view, eagerly also in what `torch.compile` compiles (which `fullgraph=True` refuses)."""
        if torch.compiler.is_dynamo_compiling():
            from resnet_paths_plugin.network.eager_call import called_eagerly  # noqa: PLC0415 - imports the compiler

            return called_eagerly(self, args, options)
        return super().__call__(*packed(args, options))

    def train(self, mode: bool = True) -> Self:  # noqa: D102 - as nn.Module
        if mode:
            raise UnsupportedMethodError(
                "an unraveled network always runs in eval mode: train the model itself, then unravel it or go on "
                "with this network, which reads the model's parameters each time it runs"
            )
        return self

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:  # noqa: D102
        return self.model.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:  # noqa: D102
        return self.model.named_buffers(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102 - as nn.Module
        return self.model.state_dict(*args, **kwargs)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise UnsupportedMethodError(
            f"{type(self).__name__} runs a captured graph and has no submodules to hook, walk or export, so a method "
            "that needs them (DeepLift, GuidedBackprop, LRP, layer methods, hooks) would run and mean nothing. Use a "
            "method that needs only the forward function or the input gradient, such as Saliency, "
            "IntegratedGradients or FeatureAblation; to export (torch.export, ONNX), take the model, "
            "`.model`, or a module of its own: net.pruned(blocks), or to_module() of a network under a schedule; to "
            "change parameters, device or dtype, change the model and unravel it again"
        )

    def _refuse_copy(self, *_: Any) -> NoReturn:
        raise UnsupportedMethodError(
            f"{type(self).__name__} holds a captured graph, which cannot be copied (copy.deepcopy) or pickled "
            "(torch.save): copy the model, `.model`, and unravel the copy; save its state_dict"
        )

    apply = _refuse
    children = _refuse
    modules = _refuse
    named_modules = _refuse
    __deepcopy__ = _refuse_copy
    __reduce_ex__ = _refuse_copy
    named_children = _refuse
    _apply = _refuse
    load_state_dict = _refuse
    register_forward_hook = _refuse
    register_forward_pre_hook = _refuse
    register_full_backward_hook = _refuse
    register_full_backward_pre_hook = _refuse
    register_backward_hook = _refuse
