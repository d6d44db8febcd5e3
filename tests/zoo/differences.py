"""Why what is detected differs from what a model's classes declare: by model, or by family."""

from fnmatch import fnmatch

REASONS: dict[str, str] = {}
"""A pattern of `library/family` or `library/model`, and the reason, which the README's limits tell as well."""


def reason(subject, family):
    """Return the reason that is stated for a model, or an empty text."""
    names = f"{subject.library}/{family}", f"{subject.library}/{subject.name}"
    return next((why for pattern, why in REASONS.items() if any(fnmatch(name, pattern) for name in names)), "")
