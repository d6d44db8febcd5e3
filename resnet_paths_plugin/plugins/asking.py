"""One plugin asked one hook: its own answer, its failure by its name, and the order in which plugins are asked."""

import warnings
from dataclasses import dataclass
from typing import Any, TypeVar

import pluggy

from resnet_paths_plugin.errors import PluginError, PluginWarning
from resnet_paths_plugin.plugins.safe_repr import safe_repr

PREFIX = "resnet_paths_"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
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
        answer, raised = self.attempt(**arguments)
        if raised is not None:
            raise self.failed(raised) from raised
        return answer

    def attempt(self, **arguments: object) -> tuple[Any, BaseException | None]:
        """Return the plugin's own answer, or what it raised, `SystemExit` included; Ctrl-C stays Ctrl-C."""
        try:
            return self.ask(**arguments), None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  a plugin may raise anything
            return None, error

    def optional(self, what: str, **arguments: object) -> Any:
        """Return the plugin's own answer; None with a `PluginWarning` where it raises.

        Args:
            what: what is left out then, such as "its figures".
            **arguments: the hook's arguments.
        """
        answer, raised = self.attempt(**arguments)
        if raised is not None:
            message = f"plugin {self.plugin!r} failed to offer {what}, which are left out: {safe_repr(raised)}"
            warnings.warn(message, PluginWarning, stacklevel=3)
        return answer

    def failed(self, error: BaseException) -> PluginError:
        """Return the error that tells what the plugin raised."""
        return PluginError(
            f"plugin {self.plugin!r} failed in {self.hook}: {safe_repr(error)}. To go on without it, uninstall it "
            "or give a plugin_manager that lacks it"
        )

    def require(self, answer: object, expected: type[T]) -> T:
        """Return what the plugin answered if it is of the type that the hook allows."""
        if not isinstance(answer, expected):
            raise PluginError(
                f"plugin {self.plugin!r} answered {self.hook} with {safe_repr(answer)}, not with {expected.__name__}"
            )
        return answer


def asked(manager: pluggy.PluginManager, hook: str) -> list[Asked]:
    """Return the plugins that implement a hook, each to be asked alone, in the order in which they are asked.

    pluggy would give all of them the same arguments and would not say whose an answer is. Its order is kept
    where the first answer wins: the latest registered comes first. Elsewhere it is that of registration.
    `tryfirst` and `trylast` count in both; hook wrappers stay in force around each call.
    """
    caller: pluggy.HookCaller = getattr(manager.hook, PREFIX + hook)
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
        Asked(one.plugin_name, hook, manager.subset_hook_caller(caller.name, plugins - {one.plugin}))
        for one in implementations
    ]


def _first_wins(caller: pluggy.HookCaller) -> bool:
    return bool(caller.spec and caller.spec.opts.get("firstresult"))
