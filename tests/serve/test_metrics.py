"""/metrics: what happened, counted."""

from jaxllama.engine.prompt_store import PromptStore
from jaxllama.testing import ScriptedEngine
from tests.serve.conftest import config, running, scenario, scripted


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
