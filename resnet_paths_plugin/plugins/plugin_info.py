"""PluginInfo: where a plugin comes from and what it can do."""

import importlib.metadata
from dataclasses import dataclass


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


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution; None where there is none of this name."""
    try:
        return importlib.metadata.version(distribution)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
