"""`jaxllama deploy`: options into a plan, without Ray."""

import sys
from dataclasses import dataclass, field
from types import ModuleType

import pytest

from jaxllama.cli import deploy
from jaxllama.serve.settings import Settings


@dataclass
class Planned:
    """The arguments of a plan, in their order."""

    settings: Settings
    loading: dict
    replicas: int
    most: int
    cpus: float
    gpus: float
    address: str | None = field(default=None)


@pytest.fixture
def deployed(monkeypatch):
    """The plans that would be deployed."""
    seen: list[Planned] = []

    def remember(plan, address):
        plan.address = address
        seen.append(plan)

    application = ModuleType("jaxllama.deploy.application")
    application.Plan, application.deploy = Planned, remember
    monkeypatch.setitem(sys.modules, "jaxllama.deploy.application", application)
    monkeypatch.setattr(deploy.log, "set_up", lambda **_: None)
    return seen


def test_two_replicas_are_the_default(run, deployed):
    assert run("deploy").exit_code == 0
    assert deployed == [Planned(Settings(), {}, 2, 2, 1.0, 0.0)]


def test_options_of_replicas_and_of_the_server_are_the_plan(run, deployed):
    words = ["smollm2-135m", "--replicas", "3", "--autoscale", "--cpus", "4", "--gpus", "0.5"]
    words += ["--address", "auto", "--slots", "4", "--port", "9", "--queue-requests", "7"]
    assert run("deploy", *words).exit_code == 0
    [plan] = deployed
    assert (plan.replicas, plan.most, plan.cpus, plan.gpus, plan.address) == (3, 6, 4, 0.5, "auto")
    assert plan.loading == {"model": "smollm2-135m", "slots": 4}
    assert plan.settings.port == 9 and plan.settings.bounds.queue_requests == 7


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--most-replicas", "3"], "needs --autoscale"),
        (["--autoscale", "--most-replicas", "1"], "at least --replicas, which is 2"),
        (["--port", "0"], "expected a number"),
        (["--dialect-option", "openai.folder=/tmp"], "one server owns the files"),
        (["--dialect-option", "rama.nothing=1"], "has no option"),
        (["--kv-events", "tcp://*:1"], "No such option"),
        (["--connections", "5"], "No such option"),
        (["--prompt-cache-dir", "x"], "No such option"),
    ],
)
def test_what_does_not_hold_for_replicas_is_refused(run, deployed, words, expected):
    result = run("deploy", *words)
    assert result.exit_code == 2 and expected.lower() in result.stderr.lower()
    assert not deployed


def test_without_ray_the_error_says_how_to_install_it(run, monkeypatch):
    monkeypatch.delitem(sys.modules, "jaxllama.deploy.application", raising=False)
    monkeypatch.delitem(sys.modules, "jaxllama.deploy.router", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(deploy.log, "set_up", lambda **_: None)
    result = run("deploy")
    assert result.exit_code == 2 and 'pip install "jaxllama[ray]"' in result.stderr
