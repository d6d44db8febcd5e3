"""How long hypothesis looks for counterexamples: a few stable examples, or many with `--hypothesis-profile=search`."""

from hypothesis import HealthCheck, settings

SEARCH = "search"
_LONGER = 30


def examples(count):
    """Return settings for a test: `count` examples that are always the same, or 30 times as many that are not."""
    searches = settings.get_current_profile_name() == SEARCH
    return settings(
        deadline=None,
        derandomize=not searches,
        max_examples=count * _LONGER if searches else count,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
