"""The errors of this package: one root, so that a caller can catch them all.

Every message says what was wrong, what was expected and what to do.
"""


class ResnetPathsError(Exception):
    """Root of every error that this package raises on purpose.

    Examples:
        >>> try:
        ...     net.lesioned("layer9.0")
        ... except rpp.ResnetPathsError as error:
        ...     print(type(error).__name__)
        UnknownBlockError
    """


class CaptureError(ResnetPathsError):
    """The model could not be captured as a data-flow graph."""


class CaptureMismatchError(ResnetPathsError):
    """The network is not, or not any more, what its model is: outputs or gradients of the two differ.

    Examples:
        >>> changed = demo.DigitsResNet(blocks_per_stage=1).eval()
        >>> stale = rpp.unravel(changed, images)
        >>> changed.layer1[0] = torch.nn.Identity()
        >>> stale(images)
        Traceback (most recent call last):
            ...
        resnet_paths_plugin.errors.CaptureMismatchError: ...
    """


class ModelGradientError(ResnetPathsError, RuntimeError):
    """The model's own backward pass fails, so that it has no gradient to study.

    Examples:
        >>> class Overwrites(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(4, 4)
        ...
        ...     def forward(self, x):
        ...         y = self.linear(x).sigmoid()
        ...         branch = y * y
        ...         y.mul_(2)  # in place, on what the backward pass reads
        ...         return x + branch
        >>> rpp.PathLengthGradient(Overwrites()).attribute(torch.randn(2, 4), target=0)
        Traceback (most recent call last):
            ...
        resnet_paths_plugin.errors.ModelGradientError: ...
    """


class NoResidualBlocksError(ResnetPathsError):
    """The network has no residual blocks, so the study asked for has no subject."""


class UnknownBlockError(ResnetPathsError, LookupError):
    """A block was given that the network does not have."""


class ScheduleError(ResnetPathsError, ValueError):
    """A schedule asks for what the network cannot run, such as a branch at a place where it does not fit."""


class InputError(ResnetPathsError, ValueError):
    """Inputs, targets or options do not fit the model or each other."""


class PluginError(ResnetPathsError):
    """A plugin answered a hook with something that the hook does not allow."""


class ModelNotFoundError(ResnetPathsError, LookupError):
    """No plugin knows the model that was named.

    Examples:
        >>> rpp.load_model("timm/resnet5O")
        Traceback (most recent call last):
            ...
        resnet_paths_plugin.errors.ModelNotFoundError: ...
    """


class FileError(ResnetPathsError, OSError):
    """A file or folder is missing, damaged, or not of the kind expected."""


class CheckpointError(ResnetPathsError, ValueError):
    """A checkpoint was made by another call, for another model or from other data.

    Examples:
        >>> def batches():
        ...     yield images, labels
        ...     raise ConnectionError
        >>> run = rpp.RunOptions(checkpoint="lesions.nc")
        >>> try:
        ...     rpp.BlockLesion(net).attribute(batches(), run=run)
        ... except ConnectionError:
        ...     print("interrupted: the same call would go on from here")
        interrupted: the same call would go on from here
        >>> rpp.BlockLesion(net).attribute(batches(), n_deleted=2, run=run)
        Traceback (most recent call last):
            ...
        resnet_paths_plugin.errors.CheckpointError: ...
    """


class WorkerLostError(ResnetPathsError, RuntimeError):
    """An executor has lost workers and cannot go on.

    Examples:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> pool = ThreadPoolExecutor()
        >>> pool.shutdown()
        >>> rpp.BlockLesion(net).attribute(images, target=labels, run=rpp.RunOptions(executor=pool))
        Traceback (most recent call last):
            ...
        resnet_paths_plugin.errors.WorkerLostError: ...
    """


class UnsupportedMethodError(ResnetPathsError, TypeError):
    """A method that hooks or walks submodules was applied to a view, where it would silently mean nothing."""


class NonFiniteInputWarning(UserWarning):
    """Some inputs hold NaN or infinity, so what is found for their samples means little."""


class NonFiniteOutputWarning(UserWarning):
    """A network's outputs hold NaN or infinity, so measures of them mean little."""


class IncompleteGradientWarning(UserWarning):
    """Path gradients do not add up to the model's own gradient as far as rounding allows."""


class PluginWarning(UserWarning):
    """An installed plugin could not be used, and the run goes on without it.

    Examples:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", rpp.PluginWarning)  # stop where an installed plugin fails
        ...     manager = rpp.create_plugin_manager()
    """


class OmittedStudyWarning(UserWarning):
    """A comparison of models leaves out a study or a measure, or compares studies that were run in different ways."""


class StaleResultWarning(UserWarning):
    """A result was selected or joined, and holds means or sums over other samples than its own."""


class StochasticModelWarning(UserWarning):
    """The model draws random numbers even in eval mode, so two runs of it differ."""
