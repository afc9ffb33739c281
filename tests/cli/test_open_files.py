"""The limit on open files fits the connections that the operator allows."""

import logging

import pytest

from jaxllama.cli import open_files

resource = pytest.importorskip("resource")


@pytest.fixture
def limits(monkeypatch):
    """The limits of a process, soft and hard, instead of our own."""
    found = [1024, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(found))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: found.__setitem__(slice(2), new))
    return found


def test_the_limit_is_raised_as_far_as_needed(limits, caplog):
    open_files.allow(2000)
    assert limits == [2000 + open_files.OTHERS, 4096]
    assert not caplog.records


def test_a_limit_that_suffices_stays(limits):
    open_files.allow(100)
    assert limits == [1024, 4096]


def test_a_hard_limit_that_is_too_low_is_told(limits, caplog):
    with caplog.at_level(logging.WARNING):
        open_files.allow(10_000)
    assert limits == [4096, 4096]
    assert "10000 connections need 10256 open files, and this process may open 4096" in caplog.text


def test_without_limits_nothing_is_set(limits):
    limits[:] = [resource.RLIM_INFINITY] * 2
    open_files.allow(10**6)
    assert limits == [resource.RLIM_INFINITY] * 2
