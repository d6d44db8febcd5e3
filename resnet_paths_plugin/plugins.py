"""Who is asked: makes the plugin manager, puts each hook's question to the plugins and checks their answers.

Knows pluggy and nothing of any library of models; what the hooks mean is said in `hookspecs`.
"""

import difflib
import importlib.metadata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

import pluggy
from torch import nn
from torch.export import ExportedProgram

from resnet_paths_plugin import hookspecs
from resnet_paths_plugin.description import ModelDescription
from resnet_paths_plugin.errors import ModelNotFoundError, PluginError
from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.weights import tensors_only

ENTRY_POINT_GROUP = "resnet_paths_plugin"
DISTRIBUTION = "resnet-paths-plugin"
_PREFIX = f"{hookspecs.PROJECT}_"
T = TypeVar("T")


class PluginWarning(UserWarning):
    """An installed plugin could not be used, and the run goes on without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo:
    """Where a plugin comes from and what it can do.

    Attributes:
        name: name under which the plugin is registered; by custom that of the library it knows.
        library_version: version of the installed distribution of that name; None where there is none.
        distribution: distribution that ships the plugin; None for one registered by hand.
        version: that distribution's version.
        module: module that the plugin is, or that its class is defined in.
        hooks: hooks that it implements, without their common prefix.
    """

    name: str
    library_version: str | None
    distribution: str | None
    version: str | None
    module: str
    hooks: tuple[str, ...]

    def __str__(self) -> str:
        library = f"{self.name} {self.library_version}" if self.library_version else self.name
        return f"{library} via {self.distribution} {self.version}" if self.distribution else library


@dataclass(frozen=True, slots=True)
class _Asked:
    """One plugin, to be asked one hook."""

    plugin: str
    hook: str
    caller: pluggy.HookCaller

    def ask(self, **arguments: object) -> Any:
        """Return the plugin's own answer, None included, and let through what it raises."""
        answer = self.caller(**arguments)
        if _first_wins(self.caller):
            return answer
        return answer[0] if answer else None  # pluggy lists the answers that are not None: here of one plugin

    def answer(self, **arguments: object) -> Any:
        """Return the plugin's own answer, None included; what it raises becomes a `PluginError`."""
        try:
            return self.ask(**arguments)
        except Exception as error:
            raise PluginError(
                f"plugin {self.plugin!r} failed in {self.hook}: {error!r}. To go on without it, uninstall it "
                "or give a plugin_manager that lacks it"
            ) from error

    def require(self, answer: object, expected: type[T]) -> T:
        """Return what the plugin answered if it is of the type that the hook allows."""
        if not isinstance(answer, expected):
            raise PluginError(
                f"plugin {self.plugin!r} answered {self.hook} with {answer!r}, not with {expected.__name__}"
            )
        return answer


def create_plugin_manager(*, entry_points: bool = True) -> pluggy.PluginManager:
    """Make a plugin manager that knows the hooks of this package.

    Further plugins are added with its `register`. A hook of theirs that does not exist, such as a misspelt
    one, is a `PluginError` when the manager is first used.

    Args:
        entry_points: whether to register the installed plugins. A plugin that cannot be imported or
            registered, or that implements a hook that does not exist, is left out with a `PluginWarning`. The
            adapters of this package come first, then the others by distribution and name: since pluggy asks
            the latest first, a stranger's answer comes before the adapters'.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    if entry_points:
        for entry_point in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=_place):
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
        return default_plugin_manager()
    if not hasattr(plugin_manager.hook, f"{_PREFIX}describe_model"):
        raise PluginError(
            f"the plugin manager of {plugin_manager.project_name!r} does not know the hooks of this package: "
            "make it with resnet_paths_plugin.create_plugin_manager()"
        )
    try:
        plugin_manager.check_pending()
    except pluggy.PluginValidationError as error:
        name = plugin_manager.get_name(error.plugin)
        raise PluginError(f"plugin {name!r} implements a hook that does not exist: {error}") from error
    return plugin_manager


def describe(model: nn.Module, plugin_manager: pluggy.PluginManager | None = None) -> ModelDescription | None:
    """Ask the plugins what a model is; the first answer wins.

    A description decides no result, so a plugin that raises is reported by a `PluginWarning` and passed over.

    Args:
        model: the model, which is only read.
        plugin_manager: whom to ask; None asks the installed plugins.

    Returns:
        The description, or None where no plugin knows the model.

    Raises:
        PluginError: a plugin answered with something else than a `ModelDescription`.
    """
    for asked in _asked(checked_plugin_manager(plugin_manager), "describe_model"):
        try:
            description = asked.ask(model=model)
        except Exception as error:  # noqa: BLE001  whatever a stranger's plugin raises is reported
            message = f"plugin {asked.plugin!r} failed to describe {type(model).__name__}: {error!r}"
            warnings.warn(message, PluginWarning, stacklevel=2)
            continue
        if description is not None:
            return asked.require(description, ModelDescription)
    return None


def load_model(spec: str, *, pretrained: bool = False, plugin_manager: pluggy.PluginManager | None = None) -> nn.Module:
    """Build a model of a library that a plugin knows.

    Weights that the library reads by `torch.load` may hold tensors alone: no pickle runs code.

    Args:
        spec: the model as `library/name`, such as `"timm/resnet50"`.
        pretrained: whether to load the library's pretrained weights, which may need the network.
        plugin_manager: whom to ask; None asks the installed plugins.

    Returns:
        The model as the library gives it, its mode included.

    Raises:
        ModelNotFoundError: no plugin knows the library, or the library has no such model.
        PluginError: a plugin answered with something else than a module.
    """
    loaders = _asked(checked_plugin_manager(plugin_manager), "load_model")
    libraries = sorted(asked.plugin for asked in loaders)
    known = f"Libraries known here: {', '.join(libraries) or 'none'}"
    library, _, model_name = spec.partition("/")
    if not (library and model_name):
        raise ModelNotFoundError(f"{spec!r} is not like library/name, say 'timm/resnet50'. {known}")
    for asked in loaders:
        with tensors_only():
            model = asked.ask(spec=spec, pretrained=pretrained)
        if model is not None:
            return asked.require(model, nn.Module)
    close = difflib.get_close_matches(library, libraries, n=1)
    hint = f"Did you mean '{close[0]}/{model_name}'? " if close else ""
    raise ModelNotFoundError(f"no plugin loads models of {library!r}. {hint}{known}")


def capture(
    model: nn.Module, example_inputs: tuple[Any, ...], plugin_manager: pluggy.PluginManager | None = None
) -> ExportedProgram | None:
    """Ask the plugins to capture a model; the first answer wins.

    Args:
        model: the model, in eval mode.
        example_inputs: positional arguments of one call, with a batch of at least two.
        plugin_manager: whom to ask; None asks the installed plugins.

    Returns:
        The exported program, or None where the generic capture is to be used.

    Raises:
        PluginError: a plugin failed, or answered with something else than an exported program.
    """
    for asked in _asked(checked_plugin_manager(plugin_manager), "capture"):
        program = asked.answer(model=model, example_inputs=example_inputs)
        if program is not None:
            return asked.require(program, ExportedProgram)
    return None


def detect_blocks(
    model: nn.Module, graph: CapturedGraph, plugin_manager: pluggy.PluginManager | None = None
) -> tuple[ResidualBlock, ...] | None:
    """Ask the plugins to find a model's residual blocks; the first answer wins, an empty one included.

    Args:
        model: the model, which is only read.
        graph: its functional data-flow graph.
        plugin_manager: whom to ask; None asks the installed plugins.

    Returns:
        The blocks, numbered from 0, or None where the generic detector is to be used.

    Raises:
        PluginError: a plugin failed, or answered with something else than differently named blocks.
    """
    for asked in _asked(checked_plugin_manager(plugin_manager), "detect_blocks"):
        answer = asked.answer(model=model, graph=graph)
        if answer is not None:
            return _numbered_blocks(asked, answer)
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
        plugin_manager: whom to ask; None asks the installed plugins.

    Returns:
        The blocks to go on with, numbered from 0.

    Raises:
        PluginError: a plugin failed, or answered with something else than differently named blocks.
    """
    reviewed = tuple(blocks)
    for asked in _asked(checked_plugin_manager(plugin_manager), "review_blocks"):
        answer = asked.answer(model=model, blocks=reviewed)
        if answer is not None:
            reviewed = _numbered_blocks(asked, answer)
    return reviewed


def analyzers(plugin_manager: pluggy.PluginManager | None = None) -> dict[str, type]:
    """Return the analyzers that plugins offer, by name: those of this package, which its own plugin offers, first.

    A name that an earlier plugin has taken is left out with a `PluginWarning`.

    Args:
        plugin_manager: whom to ask; None asks the installed plugins.

    Returns:
        A class for each name, in the order of registration.

    Raises:
        PluginError: a plugin failed, or answered with something else than a mapping of names to classes.
    """
    offered: dict[str, type] = {}
    for asked in _asked(checked_plugin_manager(plugin_manager), "analyzers"):
        for name, analyzer in asked.require(asked.answer(), Mapping).items():  # type: ignore[type-abstract]
            if asked.require(name, str) in offered:
                message = f"analyzer {name!r} of plugin {asked.plugin!r} is left out: its name is taken"
                warnings.warn(message, PluginWarning, stacklevel=2)
            else:
                offered[name] = asked.require(analyzer, type)
    return offered


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
                library_version=_installed_version(name),
                distribution=distribution.name if distribution else None,
                version=distribution.version if distribution else None,
                module=module,
                hooks=tuple(hook.name.removeprefix(_PREFIX) for hook in hooks),
            )
        )
    return tuple(rows)


def _place(entry_point: importlib.metadata.EntryPoint) -> tuple[bool, str, str]:
    """Order entry points reproducibly, whatever the order of the import path."""
    distribution = entry_point.dist.name if entry_point.dist else ""
    return distribution != DISTRIBUTION, distribution, entry_point.name


def _register(manager: pluggy.PluginManager, entry_point: importlib.metadata.EntryPoint) -> None:
    """Import and register one installed plugin, or report why it is left out."""
    name = entry_point.name
    taken = manager.has_plugin(name)
    try:
        manager.register(entry_point.load(), name=name)
        manager.check_pending()
    except (Exception, SystemExit) as error:  # noqa: BLE001  a stranger's plugin may fail in any way
        if not taken and manager.has_plugin(name):
            manager.unregister(name=name)
        distribution = entry_point.dist
        origin = f"{distribution.name} {distribution.version}" if distribution else "no distribution"
        message = f"plugin {name!r} ({entry_point.value}) of {origin} is left out: {error!r}"
        warnings.warn(message, PluginWarning, stacklevel=3)


def _asked(manager: pluggy.PluginManager, hook: str) -> list[_Asked]:
    """Return the plugins that implement a hook, each to be asked alone, in the order in which they are asked.

    pluggy would give all of them the same arguments and would not say whose an answer is. Its order is kept
    where the first answer wins: the latest registered comes first. Elsewhere it is that of registration.
    `tryfirst` and `trylast` count in both; hook wrappers stay in force around each call.
    """
    caller: pluggy.HookCaller = getattr(manager.hook, _PREFIX + hook)
    implementations = [
        implementation
        for implementation in reversed(caller.get_hookimpls())
        if not (implementation.wrapper or implementation.hookwrapper)
    ]
    if not _first_wins(caller):
        place = {name: number for number, (name, _) in enumerate(manager.list_name_plugin())}
        implementations.sort(key=lambda one: (not one.tryfirst, one.trylast, place[one.plugin_name]))
    plugins = {one.plugin for one in implementations}
    return [
        _Asked(one.plugin_name, hook, manager.subset_hook_caller(caller.name, plugins - {one.plugin}))
        for one in implementations
    ]


def _first_wins(caller: pluggy.HookCaller) -> bool:
    return bool(caller.spec and caller.spec.opts.get("firstresult"))


def _numbered_blocks(asked: _Asked, answer: object) -> tuple[ResidualBlock, ...]:
    """Return the blocks that a plugin answered with, numbered from 0, if that is what they are."""
    blocks = asked.require(answer, Sequence)  # type: ignore[type-abstract]
    for block in blocks:
        asked.require(block, ResidualBlock)
    names = [block.name for block in blocks]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise PluginError(f"plugin {asked.plugin!r} answered {asked.hook} with several blocks of one name: {repeated}")
    return tuple(replace(block, index=index) for index, block in enumerate(blocks))


def _installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
