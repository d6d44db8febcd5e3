"""One thread and fixed seeds: small networks gain nothing from threads, and every test can be run alone."""

import random

import numpy as np
import pytest
import torch
from hypothesis import settings
from searching import SEARCH

settings.register_profile(SEARCH, deadline=None, print_blob=True)


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
