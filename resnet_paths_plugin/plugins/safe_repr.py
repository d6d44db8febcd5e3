"""The `repr` of another's object, whatever that does."""


def safe_repr(value: object) -> str:
    """Return the `repr` of an object; where that raises anything but Ctrl-C, the name of its type."""
    try:
        return repr(value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - another's object may raise anything
        return f"{type(value).__name__} (which cannot be shown)"
