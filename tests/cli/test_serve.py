"""`jaxllama serve`: options into settings."""

from types import SimpleNamespace

import pytest

import jaxllama
from jaxllama.cli import serve
from jaxllama.serve.crowd import RESERVE
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.settings import Settings
from jaxllama.service.bounds import Bounds
from jaxllama.startup import Startup


@pytest.fixture
def served(monkeypatch):
    """What would be served, instead of serving it."""
    seen = {}

    async def pretend(settings, loading, dialects, several):
        seen.update(settings=settings, loading=loading, several=several)
        assert all(isinstance(each, Dialect) for each in dialects)
        return 0

    monkeypatch.setattr(serve, "serve", pretend)
    monkeypatch.setattr(serve.open_files, "allow", lambda _: None)
    monkeypatch.setattr(serve.log, "set_up", lambda **_: None)
    return seen


def test_without_options_everything_is_as_declared(run, served):
    assert run("serve").exit_code == 0
    assert served == {"settings": Settings(), "loading": {}, "several": None}


def test_dialects_are_chosen_with_their_options(run, served):
    words = ["--dialects", "ollama,rama", "--dialects", "openai", "--root-dialect", "rama"]
    assert run("serve", *words, "--dialect-option", "rama.step=9").exit_code == 0
    assert served["settings"].dialects == ("ollama", "rama", "openai")
    assert served["settings"].dialect_options == ("rama.step=9",)
    for wrong in ("nobody", "rama.step=0"):
        option = "--dialects" if wrong == "nobody" else "--dialect-option"
        result = run("serve", option, wrong)
        assert result.exit_code == 2 and wrong.partition("=")[0].partition(".")[0] in result.stderr


def test_every_setting_is_an_option(run, served):
    arguments = ["--port", "9", "--allowed-host", "a", "--allowed-host", "b", "--log-json"]
    arguments += ["--drain-timeout", "1.5", "--queue-requests", "7", "--request-seconds", "3"]
    assert run("serve", *arguments, "--slots", "2").exit_code == 0
    bounds = Bounds(queue_requests=7, request_seconds=3.0)
    assert served["settings"] == Settings(
        port=9, allowed_hosts=("a", "b"), log_json=True, drain_timeout=1.5, bounds=bounds
    )
    assert served["loading"] == {"slots": 2}


def test_the_model_is_named_by_itself_or_by_its_option(run, served):
    for words in (["smollm2-135m"], ["--model", "smollm2-135m"]):
        assert run("serve", *words).exit_code == 0
        assert served["loading"] == {"model": "smollm2-135m"}
    assert run("serve", "a", "--model", "b").exit_code == 2


def test_a_model_is_listed_as_it_was_given_and_has_its_files_names_as_well(tmp_path):
    file = tmp_path / "Tiny.Q4.gguf"
    file.touch()
    assert serve.model_name("smollm2-135m") == serve.model_name(None) == "smollm2-135m"
    assert serve.model_name("hf:owner/name") == "hf:owner/name"
    assert serve.model_name(str(file)) == "Tiny.Q4"
    (tmp_path / "bge-small-v1.5").mkdir()
    assert serve.model_name(str(tmp_path / "bge-small-v1.5")) == "bge-small-v1.5"
    others = serve.other_names(str(file), file, "Tiny 1M")
    assert others == {str(file), "Tiny.Q4.gguf", "Tiny.Q4", "Tiny 1M"}


def test_an_embedding_model_is_loaded_under_its_own_name(run, served, monkeypatch, tmp_path):
    assert run("serve", "--embedding-model", "minilm").exit_code == 0
    assert served["settings"].embedding_model == "minilm"
    folder = tmp_path / "all-MiniLM-L6-v2"
    folder.mkdir()
    seen = []

    def load(model, **settings):
        seen.append((model, settings["compile_cache"]))
        return SimpleNamespace(path=folder, config=SimpleNamespace(name="MiniLM"))

    monkeypatch.setattr(jaxllama.Encoder, "load", load)
    startup = Startup(seen.append)
    assert serve.open_encoder(None, {}, startup) is None
    found = serve.open_encoder("minilm", {"compile_cache": False}, startup)
    assert found.names == {"minilm", "all-MiniLM-L6-v2", "MiniLM"} and found.name == "minilm"
    assert serve.open_encoder(str(folder), {}, startup).name == "all-MiniLM-L6-v2"
    assert seen == [("minilm", False), (str(folder), True)]


def test_keys_come_from_options_the_environment_and_a_file(run, served, tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text("# ours\nthree\n\n  four\n")
    monkeypatch.setenv("JAXLLAMA_API_KEYS", "one, two")
    result = run("serve", "--api-key", "zero", "--api-key-file", str(file))
    assert result.exit_code == 0
    assert served["settings"].api_keys == ("zero", "one", "two", "three", "four")


def test_an_empty_key_file_is_no_open_door(run, served, tmp_path):
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    result = run("serve", "--api-key-file", str(file))
    assert result.exit_code == 2
    assert not served


@pytest.mark.usefixtures("served")
def test_an_open_door_to_the_network_is_warned_of(run, caplog):
    assert run("serve", "--host", "0.0.0.0").exit_code == 0
    assert "every client that can reach 0.0.0.0" in caplog.text
    caplog.clear()
    assert run("serve", "--host", "0.0.0.0", "--api-key", "k").exit_code == 0
    assert not caplog.text


@pytest.mark.parametrize(
    "arguments",
    [["--queue-requests", "0"], ["--tls-certificate", "c.pem"], ["--ping-seconds", "-1"]],
)
def test_settings_that_cannot_work_end_it_with_2(run, served, arguments):
    result = run("serve", *arguments)
    assert result.exit_code == 2
    assert not served


@pytest.mark.parametrize("key", ["", " ", "\t", " key", "key\n", "k" * 5000])
def test_a_key_that_cannot_keep_anybody_out_ends_it_with_2(run, served, key):
    result = run("serve", "--api-key", "good", "--api-key", key)
    assert result.exit_code == 2
    assert "API key 2 is empty, blank at an end, or longer than" in result.stderr
    assert not served


@pytest.mark.parametrize("keys", ["", " ", ",", " , \n"])
def test_a_variable_without_a_key_ends_it_with_2(run, served, monkeypatch, keys):
    monkeypatch.setenv("JAXLLAMA_API_KEYS", keys)
    result = run("serve")
    assert result.exit_code == 2
    assert "JAXLLAMA_API_KEYS is set but holds no API key" in result.stderr
    assert not served


def test_connections_of_an_address_are_bounded_as_the_operator_says(run, served):
    arguments = ["--connections-per-address", "0", "--trusted-address", "10.0.0.0/8"]
    assert run("serve", *arguments, "--trusted-address", "::1").exit_code == 0
    assert served["settings"] == Settings(
        connections_per_address=0, trusted_addresses=("10.0.0.0/8", "::1")
    )


@pytest.mark.usefixtures("served")
def test_as_many_files_may_be_open_as_there_may_be_connections(run, monkeypatch):
    allowed = []
    monkeypatch.setattr(serve.open_files, "allow", allowed.append)
    assert run("serve", "--connections", "3000").exit_code == 0
    assert allowed == [3000 + RESERVE]


def test_block_events_have_a_socket_only_if_they_are_asked_for():
    pytest.importorskip("zmq")
    assert serve.open_publisher(Settings()) is None
    publisher = serve.open_publisher(Settings(kv_events="tcp://127.0.0.1:*"))
    assert publisher.endpoint.startswith("tcp://127.0.0.1:")
    publisher.close()
