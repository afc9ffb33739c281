"""/metrics: what happened, counted."""

import asyncio

import pytest

from jaxllama.engine.prompt_store import PromptStore
from jaxllama.errors import ConfigError
from jaxllama.serve.settings import Settings
from jaxllama.testing import ScriptedEngine
from tests.serve.conftest import Gate, config, running, scenario, scripted


async def figures(live):
    async with live.http.get(f"{live.url}/metrics") as response:
        assert response.content_type == "text/plain"
        lines = (await response.text()).splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines)
        if name and not name.startswith("#")
    }


def test_requests_tokens_waits_and_steps_are_counted():
    async def body():
        async with running(scripted(b"123456789")) as live:
            await live.say(prompt="abcdefgh", max_tokens=5)
            await live.say(prompt="abcdefgh", max_tokens=5)
            await live.settled()
            found = await figures(live)
            done = 'jaxllama_requests_total{reason="done",route="POST /say"}'
            assert found[done] == 2
            assert found['jaxllama_tokens_total{kind="prompt"}'] == 16
            assert found['jaxllama_tokens_total{kind="generated"}'] == 10
            assert found["jaxllama_time_to_first_token_seconds_count"] == 2
            assert found["jaxllama_inter_token_seconds_count"] == 8
            assert found["jaxllama_request_seconds_count"] == 2
            assert found["jaxllama_prefix_hits_total"] == 1
            assert found["jaxllama_engine_steps_total"] > 5
            assert found["jaxllama_slots"] == 4
            assert found["jaxllama_slots_used"] == 0
            assert found["jaxllama_recompilations_total"] == 0
            assert found["jaxllama_programs_pending"] == 0
            assert found["jaxllama_programs_compiled_total"] == 0
            assert found["jaxllama_program_load_seconds_total"] == 0
            assert found["jaxllama_queue_requests"] == 0

    scenario(body)


def test_two_servers_in_one_process_do_not_mix():
    async def body():
        async with running() as one, running() as other:
            await one.say()
            await one.settled()
            assert "jaxllama_request_seconds_count" in await figures(one)
            assert (await figures(other))["jaxllama_request_seconds_count"] == 0

    scenario(body)


def test_prompts_from_the_prompt_cache_are_counted():
    store = PromptStore(4 << 10, 1 << 10)
    engine = ScriptedEngine(lambda _: b"1", config=config(slots=1), prompt_store=store)

    async def body():
        async with running(engine) as live:
            for _ in range(2):
                for letter in "abc":
                    await live.say(prompt=letter * 50, max_tokens=1)
            for letter in "defg":
                await live.say(prompt=letter * 50, max_tokens=1)
            await live.settled()
            found = await figures(live)
            assert found["jaxllama_prompt_cache_hits_total"] == 3
            assert found["jaxllama_prompt_cache_tokens_total"] == 3 * 49
            assert found['jaxllama_tokens_total{kind="reused"}'] == 3 * 49
            assert found["jaxllama_prompt_cache_evictions_total"] == 2
            assert found["jaxllama_prompt_cache_bytes"] == 4 << 10

    scenario(body)


def test_the_share_of_a_given_bandwidth_is_served(monkeypatch):
    engine = scripted(b"1" * 50)
    monkeypatch.setattr(type(engine.programs), "weight_bytes", 5_000_000)

    async def body():
        async with running(engine, bandwidth=10.0) as live:
            await live.say(prompt="abcd", max_tokens=20)
            await live.settled()
            found = await figures(live)
            rate = found["jaxllama_weight_bytes_per_second"]
            assert rate == 5_000_000 / found["jaxllama_step_seconds"]
            assert found["jaxllama_bandwidth_share"] == rate / 10e9
        async with running(engine) as live:
            assert "jaxllama_bandwidth_share" not in await figures(live)

    scenario(body)


def test_vllms_names_are_served_when_asked():
    async def body():
        engine = scripted(b"1" * 50, slots=2)
        async with running(engine, metrics_names=("vllm",)) as live:
            idle = await figures(live)
            gate = Gate(engine)
            saying = [asyncio.create_task(live.say(prompt="abcd", max_tokens=40)) for _ in range(3)]
            await gate.advance(lambda: engine.counts["running"] == 2)
            busy = await figures(live)
            gate.open()
            await asyncio.gather(*saying)
        label = '{model_name="scripted"}'
        for state, expected in ((idle, (0, 0)), (busy, (2, 1))):
            names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
            assert tuple(state[f"{name}{label}"] for name in names) == expected
        assert idle[f"vllm:kv_cache_usage_perc{label}"] == 0
        assert 0 < busy[f"vllm:kv_cache_usage_perc{label}"] < 1
        size = 'vllm:cache_config_info{block_size="64",num_gpu_blocks="8"}'
        assert idle[size] == 1

    scenario(body)


def test_only_our_names_are_served_by_default():
    async def body():
        async with running() as live:
            assert not [name for name in await figures(live) if name.startswith("vllm")]

    scenario(body)


def test_unknown_metrics_names_are_refused():
    with pytest.raises(ConfigError, match="metrics names 'sglang' are unknown; expected 'vllm'"):
        Settings(metrics_names=("sglang",))


def test_drafted_and_accepted_tokens_are_counted():
    engine = ScriptedEngine(lambda _: b"1", config=config(slots=1))
    engine.drafts.update(drafted=5, accepted=3)

    async def body():
        async with running(engine) as live:
            found = await figures(live)
            assert found["jaxllama_drafted_tokens_total"] == 5
            assert found["jaxllama_accepted_tokens_total"] == 3

    scenario(body)
