"""The errors of this package: one root, so that a caller can catch them all.

Every message says what was wrong, what was expected and what to do.
"""


class ResnetPathsError(Exception):
    """Root of every error that this package raises on purpose."""


class CaptureError(ResnetPathsError):
    """The model could not be captured as a data-flow graph."""


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
    """No plugin knows the model that was named."""


class FileError(ResnetPathsError, OSError):
    """A file or folder is missing, damaged, or not of the kind expected."""


class CheckpointError(ResnetPathsError, ValueError):
    """A checkpoint was made by another call, for another model or from other data."""


class WorkerLostError(ResnetPathsError, RuntimeError):
    """An executor has lost workers and cannot go on."""


class UnsupportedMethodError(ResnetPathsError, TypeError):
    """A method that hooks or walks submodules was applied to a view, where it would silently mean nothing."""


class NonFiniteOutputWarning(UserWarning):
    """The intact network's outputs hold NaN or infinity, so measures of them mean little."""


class IncompleteGradientWarning(UserWarning):
    """Path gradients do not add up to the model's own gradient as far as rounding allows."""


class StochasticModelWarning(UserWarning):
    """The model draws random numbers even in eval mode, so two runs of it differ."""
