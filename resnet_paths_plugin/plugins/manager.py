"""Who is asked: makes the plugin manager, puts each hook's question to the plugins and checks their answers.

Knows pluggy and nothing of any library of models; what the hooks mean is said in `hookspecs`.
"""

import difflib
import importlib
import importlib.metadata
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

import pluggy
from torch import nn
from torch.export import ExportedProgram

from resnet_paths_plugin.errors import InputError, ModelNotFoundError, PluginError, PluginWarning
from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.graph.keywords import split
from resnet_paths_plugin.plugins import hookspecs
from resnet_paths_plugin.plugins.asking import PREFIX, Asked, asked
from resnet_paths_plugin.plugins.model_description import ModelDescription
from resnet_paths_plugin.plugins.plugin_info import PluginInfo, installed_version
from resnet_paths_plugin.plugins.safe_repr import safe_repr
from resnet_paths_plugin.plugins.weights import tensors_only

ENTRY_POINT_GROUP = "resnet_paths_plugin"
BUILT_IN = "resnet_paths_plugin.builtin_plugin"
"""This package's own plugin, which no module imports."""
DISTRIBUTION = "resnet-paths-plugin"
_MAKING = threading.RLock()
T = TypeVar("T")


def create_plugin_manager(*, entry_points: bool = True) -> pluggy.PluginManager:
    """Make a plugin manager that knows the hooks of this package.

    Further plugins are added with its `register`. A hook of theirs that does not exist, such as a misspelt
    one, is a `PluginError` when the manager is first used. Any threads may use it once all are registered.

    Args:
        entry_points: whether to register this package's own plugin and the installed ones. A plugin that cannot be
            imported or registered, or that implements a hook that does not exist, is left out with a `PluginWarning`.
            The own one and the adapters of this package come first, then the others by distribution and name: since
            pluggy asks the latest first, another plugin's answer comes before the adapters'.

    Examples:
        >>> manager = rpp.create_plugin_manager()
        >>> manager.has_plugin("timm")
        True
        >>> rpp.unravel(model, images, plugin_manager=manager).description.architecture
        'digits_resnet110'
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    if entry_points:
        manager.register(importlib.import_module(BUILT_IN), name=BUILT_IN.partition(".")[0])
        for entry_point in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=_place):
            if entry_point.value != BUILT_IN:
                _register(manager, entry_point)
    return manager


@cache
def default_plugin_manager() -> pluggy.PluginManager:
    """Return the manager that is used where none is given: made once, with the installed plugins."""
    return create_plugin_manager()


def checked_plugin_manager(plugin_manager: pluggy.PluginManager | None) -> pluggy.PluginManager:
    """Return the manager to ask: the one given, or the default one.

    Raises:
        PluginError: the manager does not know our hooks, or a plugin implements a hook that does not exist.
    """
    if plugin_manager is None:
        with _MAKING:
            return default_plugin_manager()
    if not hasattr(getattr(plugin_manager, "hook", None), f"{PREFIX}describe_model"):
        raise PluginError(
            f"the plugin manager {getattr(plugin_manager, 'project_name', plugin_manager)!r} does not know the hooks "
            "of this package: make it with resnet_paths_plugin.create_plugin_manager()"
        )
    try:
        plugin_manager.check_pending()
    except pluggy.PluginValidationError as error:
        name = plugin_manager.get_name(error.plugin)
        raise PluginError(f"plugin {name!r} implements a hook that does not exist: {error}") from error
    return plugin_manager


def describe(model: nn.Module, plugin_manager: pluggy.PluginManager | None = None) -> ModelDescription | None:
    """Ask the plugins what a model is; the first answer wins.

    A description decides no result, so a plugin that raises is reported by a `PluginWarning` and skipped.

    Args:
        model: the model, which is only read.
        plugin_manager: the plugin manager; None takes that of the installed plugins.

    Returns:
        The description, or None where no plugin knows the model.

    Raises:
        PluginError: a plugin answered with something else than a `ModelDescription`.
    """
    for one in asked(checked_plugin_manager(plugin_manager), "describe_model"):
        description, raised = one.attempt(model=model)
        if raised is not None:
            message = f"plugin {one.plugin!r} failed to describe {type(model).__name__}: {safe_repr(raised)}"
            warnings.warn(message, PluginWarning, stacklevel=2)
            continue
        if description is not None:
            return one.require(description, ModelDescription)
    return None


def load_model(spec: str, *, pretrained: bool = False, plugin_manager: pluggy.PluginManager | None = None) -> nn.Module:
    """Build a model of a library that a plugin knows.

    Weights that the library reads by `torch.load` may hold tensors alone: no pickle runs code.

    Args:
        spec: the model as `library/name`, such as `"timm/resnet50"`.
        pretrained: whether to load the library's pretrained weights, which may need the network.
        plugin_manager: the plugin manager; None takes that of the installed plugins.

    Returns:
        The model as the library gives it, its mode included.

    Raises:
        ModelNotFoundError: no plugin knows the library, or the library has no such model.
        PluginError: a plugin answered with something else than a module, or tried to end the process.
        Exception: what the library raises.

    Examples:
        >>> resnet = rpp.load_model("timm/test_resnet")
        >>> type(resnet).__name__
        'ResNet'
    """
    loaders = asked(checked_plugin_manager(plugin_manager), "load_model")
    libraries = sorted(one.plugin for one in loaders)
    known = f"Libraries known here: {', '.join(libraries) or 'none'}"
    library, _, model_name = spec.partition("/")
    if not (library and model_name):
        raise ModelNotFoundError(f"{spec!r} is not like library/name, say 'timm/resnet50'. {known}")
    for one in loaders:
        try:
            with tensors_only():
                model = one.ask(spec=spec, pretrained=pretrained)
        except (Exception, KeyboardInterrupt):  # the library's own error says best what it is
            raise
        except BaseException as error:  # it must not end the process
            raise one.failed(error) from error
        if model is not None:
            return one.require(model, nn.Module)
    close = difflib.get_close_matches(library, libraries, n=1)
    hint = f"Did you mean '{close[0]}/{model_name}'? " if close else ""
    raise ModelNotFoundError(f"no plugin loads models of {library!r}. {hint}{known}")


def list_models(
    pattern: str, *, pretrained: bool = False, plugin_manager: pluggy.PluginManager | None = None
) -> tuple[str, ...]:
    """List the models that plugins know and a pattern matches.

    Args:
        pattern: `library/name` with the wildcards of a shell, such as `"timm/resnet*"`; capitals count.
        pretrained: whether to list only models whose pretrained weights the library knows.
        plugin_manager: the plugin manager; None takes that of the installed plugins.

    Returns:
        The models as `load_model` takes them, each once; none where nothing matches. A plugin that fails is left out
        with a `PluginWarning`.

    Raises:
        InputError: the pattern is no text.
        PluginError: a plugin answered with something else than a sequence of texts.

    Examples:
        >>> rpp.list_models("torchvision/resnet1*")
        ('torchvision/resnet101', 'torchvision/resnet152', 'torchvision/resnet18')
    """
    if not isinstance(pattern, str):
        raise InputError(f"a pattern of models is a text, such as 'timm/resnet*', not {pattern!r}")
    found: dict[str, None] = {}
    for one in asked(checked_plugin_manager(plugin_manager), "list_models"):
        answer = one.optional("its models", pattern=pattern, pretrained=pretrained)
        for spec in () if answer is None else one.require(answer, Sequence):  # type: ignore[type-abstract]
            if fnmatchcase(one.require(spec, str), pattern):
                found[spec] = None
    return tuple(found)


def capture(
    model: nn.Module, example_inputs: tuple[Any, ...], plugin_manager: pluggy.PluginManager | None = None
) -> ExportedProgram | None:
    """Ask the plugins to capture a model; the first answer wins.

    Args:
        model: the model, in eval mode.
        example_inputs: the arguments of one call, with a batch of at least two.
        plugin_manager: the plugin manager; None takes that of the installed plugins.

    Returns:
        The exported program, or None where the generic capture is to be used.

    Raises:
        PluginError: a plugin failed, or answered with something else than an exported program.
    """
    positional, keywords = split(example_inputs)
    for one in asked(checked_plugin_manager(plugin_manager), "capture"):
        program = one.answer(model=model, example_inputs=positional, example_keywords=keywords)
        if program is not None:
            return one.require(program, ExportedProgram)
    return None


def detect_blocks(
    model: nn.Module, graph: CapturedGraph, plugin_manager: pluggy.PluginManager | None = None
) -> tuple[ResidualBlock, ...] | None:
    """Ask the plugins to find a model's residual blocks; the first answer wins, an empty one included.

    Args:
        model: the model, which is only read.
        graph: its functional data-flow graph.
        plugin_manager: the plugin manager; None takes that of the installed plugins.

    Returns:
        The blocks, numbered from 0, or None where the generic detector is to be used.

    Raises:
        PluginError: a plugin failed, or answered with something else than differently named blocks.
    """
    for one in asked(checked_plugin_manager(plugin_manager), "detect_blocks"):
        answer = one.answer(model=model, graph=graph)
        if answer is not None:
            return _numbered_blocks(one, answer)
    return None


def review_blocks(
    model: nn.Module, blocks: Sequence[ResidualBlock], plugin_manager: pluggy.PluginManager | None = None
) -> tuple[ResidualBlock, ...]:
    """Let the plugins correct the detected blocks in turn, each seeing the result of the one before.

    They are asked in the order of registration, those marked `tryfirst` before all others, those marked
    `trylast` after them. Blocks decide every result, so a plugin that fails here is an error.

    Args:
        model: the model, which is only read.
        blocks: the blocks as detected, in execution order.
        plugin_manager: the plugin manager; None takes that of the installed plugins.

    Returns:
        The blocks to go on with, numbered from 0.

    Raises:
        PluginError: a plugin failed, or answered with something else than differently named blocks.
    """
    reviewed = tuple(blocks)
    for one in asked(checked_plugin_manager(plugin_manager), "review_blocks"):
        answer = one.answer(model=model, blocks=reviewed)
        if answer is not None:
            reviewed = _numbered_blocks(one, answer)
    return reviewed


def analyzers(plugin_manager: pluggy.PluginManager | None = None) -> dict[str, type]:
    """Return the analyzers that plugins offer, by name: those of this package, which its own plugin offers, first.

    A name that an earlier plugin has taken is left out with a `PluginWarning`, and so is a plugin that fails.

    Args:
        plugin_manager: the plugin manager; None takes that of the installed plugins.

    Returns:
        A class for each name, in the order of registration.

    Raises:
        PluginError: a plugin answered with something else than a mapping of names to classes.
    """
    found = _offered("analyzers", type, "analyzer", checked_plugin_manager(plugin_manager))
    return {name: analyzer for _, name, analyzer in found}


def measures(model: nn.Module, plugin_manager: pluggy.PluginManager | None = None) -> dict[str, Callable[..., Any]]:
    """Return the measures that plugins have for the outputs of a model, by name.

    A name that an earlier plugin has taken is left out with a `PluginWarning`, and so is a plugin that fails.

    Args:
        model: the model, which is only read.
        plugin_manager: the plugin manager; None takes that of the installed plugins.

    Raises:
        PluginError: a plugin answered with something else than a mapping of names to functions.
    """
    kind: type[Callable[..., Any]] = Callable  # type: ignore[assignment]  # isinstance takes it
    found = _offered("measures", kind, "measure", checked_plugin_manager(plugin_manager), model=model)
    return {name: measure for _, name, measure in found}


def figures(plugin_manager: pluggy.PluginManager | None = None) -> list[tuple[str, object]]:
    """Return the figures that plugins offer, each with the plugin's name, in the order of registration.

    A figure decides no result, so a plugin that fails, or answers with something else, is left out with a
    `PluginWarning`.

    Args:
        plugin_manager: the plugin manager; None takes that of the installed plugins.
    """
    found: list[tuple[str, object]] = []
    for one in asked(checked_plugin_manager(plugin_manager), "figures"):
        answer = one.optional("its figures")
        if answer is None:
            continue
        try:
            found += [(one.plugin, figure) for figure in one.require(answer, Sequence)]  # type: ignore[type-abstract]
        except PluginError as error:
            warnings.warn(f"{error}: its figures are left out", PluginWarning, stacklevel=2)
    return found


def _offered(
    hook: str, expected: type[T], noun: str, manager: pluggy.PluginManager, **arguments: object
) -> Iterator[tuple[str, str, T]]:
    """Yield plugin, name and value of what plugins offer by name; a name that is taken is left out with a warning."""
    taken: set[str] = set()
    for one in asked(manager, hook):
        answer = one.optional(hook, **arguments)
        if answer is None:
            continue
        for name, value in one.require(answer, Mapping).items():  # type: ignore[type-abstract]
            if one.require(name, str) in taken:
                message = f"{noun} {name!r} of plugin {one.plugin!r} is left out: its name is taken"
                warnings.warn(message, PluginWarning, stacklevel=3)
            else:
                taken.add(name)
                yield one.plugin, name, one.require(value, expected)


def listing(plugin_manager: pluggy.PluginManager | None = None) -> tuple[PluginInfo, ...]:
    """List the registered plugins in the order of registration.

    Args:
        plugin_manager: whose plugins; None lists the installed ones.

    Returns:
        One row for each plugin. As a string, a row reads `"timm 1.0.15 via resnet-paths-plugin 0.1.0"`.
    """
    manager = checked_plugin_manager(plugin_manager)
    distributions = {
        entry_point.module: entry_point.dist for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    }
    rows = []
    for name, plugin in manager.list_name_plugin():
        if plugin is None:  # the name is blocked
            continue
        module = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__module__
        distribution = distributions.get(module)
        hooks = manager.get_hookcallers(plugin) or ()
        rows.append(
            PluginInfo(
                name=name,
                library_version=installed_version(name),
                distribution=distribution.name if distribution else None,
                version=distribution.version if distribution else None,
                module=module,
                hooks=tuple(hook.name.removeprefix(PREFIX) for hook in hooks),
            )
        )
    return tuple(rows)


def _place(entry_point: importlib.metadata.EntryPoint) -> tuple[bool, str, str]:
    """Order entry points reproducibly, whatever the order of the import path."""
    distribution = (entry_point.dist.name if entry_point.dist else None) or ""  # metadata may lack a name
    return distribution != DISTRIBUTION, distribution, entry_point.name


def _register(manager: pluggy.PluginManager, entry_point: importlib.metadata.EntryPoint) -> None:
    """Import and register one installed plugin, or report why it is left out."""
    name = entry_point.name
    taken = manager.has_plugin(name)
    try:
        manager.register(entry_point.load(), name=name)
        manager.check_pending()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  a plugin may fail in any way
        if not taken and manager.has_plugin(name):
            manager.unregister(name=name)
        distribution = entry_point.dist
        origin = f"{distribution.name} {distribution.version}" if distribution else "no distribution"
        message = f"plugin {name!r} ({entry_point.value}) of {origin} is left out: {safe_repr(error)}"
        warnings.warn(message, PluginWarning, stacklevel=3)


def _numbered_blocks(one: Asked, answer: object) -> tuple[ResidualBlock, ...]:
    """Return the blocks that a plugin answered with, numbered from 0, if that is what they are."""
    blocks = one.require(answer, Sequence)  # type: ignore[type-abstract]
    for block in blocks:
        one.require(block, ResidualBlock)
    names = [block.name for block in blocks]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise PluginError(f"plugin {one.plugin!r} answered {one.hook} with several blocks of one name: {repeated}")
    return tuple(replace(block, index=index) for index, block in enumerate(blocks))
