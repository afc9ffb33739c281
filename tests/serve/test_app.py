"""The application: requests in, answers out, and every error in the dialect's form."""

from tests.serve.conftest import running, scenario, scripted


def test_an_answer_streamed_is_the_answer_whole():
    async def body():
        async with running(scripted(b"A \xe2\x82\xac sign")) as live:
            whole = await live.say()
            events = await live.stream()
            assert whole["texts"] == ["A € sign"]
            assert events[-1] == "[DONE]"
            assert "".join(event["text"] for event in events[:-1]) == "A € sign"

    scenario(body)


def test_choices_have_their_own_declared_seeds():
    async def body():
        async with running() as live:
            answer = await live.say(n=3, seed=7)
            assert answer["texts"] == ["Hello!"] * 3
            assert answer["seeds"][0] == 7
            assert len(set(answer["seeds"])) == 3

    scenario(body)


def test_unknown_field_is_refused_with_the_nearest_name():
    async def body():
        async with running() as live:
            error = (await live.say(400, temprature=1))["error"]
            assert error["param"] == "temprature"
            assert "'temperature'" in error["message"]

    scenario(body)
