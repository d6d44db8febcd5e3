"""One thread and fixed seeds: small networks gain nothing from threads, and every test can be run alone."""

import gc
import random

import numpy as np
import pytest
import torch
from hypothesis import settings
from searching import SEARCH
from torch_state import global_hooks, thread_modes

settings.register_profile(SEARCH, deadline=None, print_blob=True)


LEFT_OUT = ("endurance", "zoo", "wild")
"""Markers of tests that are run when asked for; `-m "not slow"` leaves them out as well."""


def pytest_collection_modifyitems(items):
    for item in items:
        if any(map(item.get_closest_marker, LEFT_OUT)):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    """Keep what stays from the garbage collector, which a capture makes look through everything again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global generator is part of the state that has to stay untouched
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_hook_is_left_on_all_modules():
    before = global_hooks()
    yield
    assert global_hooks() == before


@pytest.fixture(autouse=True)
def no_mode_is_left_on():
    before = thread_modes()
    yield
    assert thread_modes() == before
