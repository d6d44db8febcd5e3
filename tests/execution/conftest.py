"""Fixtures of several files of this room."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
from counted_lesions import counted
from small_studies import margin, run


@pytest.fixture
def counting(monkeypatch):
    """Set what is called for each output that is measured."""

    def by(measure):
        monkeypatch.setattr(counted, "by", measure)
        return measure

    by(margin)
    return by


@pytest.fixture(scope="session")
def processes():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="session")
def serial():
    """The studies run here; each once."""
    found = {}

    def result(name):
        if name not in found:
            found[name] = run(name)
        return found[name]

    return result
