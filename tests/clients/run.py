"""Real clients against a real server: `make clients`, or by hand

    python tests/clients/run.py                          # starts .venv/bin/jaxllama serve --port 0
    python tests/clients/run.py http://127.0.0.1:8000    # a server that runs already
    python tests/clients/run.py --only litellm --only llm

Runs in an environment of its own, into which `make clients` installs the clients (openai,
anthropic, ollama, litellm, llm, langchain-openai, instructor, pydantic-ai-slim, lm-eval,
sglang-router); it is no
part of `make test`. Each client does what its own documentation shows first: an answer, a stream,
and a tool or a schema where it has them. Nothing is fetched while they run. A client that is not
installed is skipped and named. Exits with 1 if one failed. guidellm wants an environment of its
own, for pip finds no set of versions that suits it and lm-eval in reasonable time:

    python3 -m venv DIR && DIR/bin/pip install guidellm
    DIR/bin/python tests/clients/run.py --only guidellm

The model is small, so no answer is judged by its words: only by its shape, or by the schema that a
constraint holds it to.
"""
# ruff: noqa: PLC0415, T201 - each client is imported only where it is tried, and this is a program

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m"
START_SECONDS = 300.0
HI = [{"role": "user", "content": "Say hello in one word."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a town.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "maxLength": 20}},
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}
DOG = {
    "type": "object",
    "properties": {"age": {"type": "integer", "maximum": 30}, "tame": {"type": "boolean"}},
    "required": ["age", "tame"],
    "additionalProperties": False,  # or a small model invents fields without end
}
CLIENTS: dict[str, Callable[[str], str]] = {}
PACKAGES = {"langchain": "langchain-openai", "pydantic-ai": "pydantic-ai-slim"}


class Missing(Exception):
    """A client is not installed."""


def client(run: Callable[[str], str]) -> Callable[[str], str]:
    """Register a client: a function of the server's address that says what it saw."""
    CLIENTS[run.__name__.removeprefix("run_").replace("_", "-")] = run
    return run


@client
def run_openai(url: str) -> str:
    """OpenAI's own: chat, stream, tools, responses, completions, embeddings, files, batches."""
    import openai

    api = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    assert MODEL in [one.id for one in api.models.list()]
    answer = api.chat.completions.create(model=MODEL, messages=HI, max_tokens=8)
    assert answer.choices[0].message.content
    parts = api.chat.completions.create(model=MODEL, messages=HI, max_tokens=8, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts)
    raw = api.chat.completions.with_raw_response.create(
        model=MODEL, messages=HI, tools=[WEATHER], tool_choice="required", max_tokens=60
    )
    message = raw.parse().choices[0].message
    (call,) = message.tool_calls
    assert "town" in json.loads(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
    told = [*HI, message, result]
    api.chat.completions.create(model=MODEL, messages=told, tools=[WEATHER], max_tokens=8)
    response = api.responses.create(model=MODEL, input="Say hello.", max_output_tokens=8)
    assert response.output_text
    with api.responses.stream(model=MODEL, input="Say hello.", max_output_tokens=8) as events:
        kinds = [event.type for event in events]
    assert kinds[0] == "response.created" and "response.output_text.delta" in kinds
    assert api.completions.create(model=MODEL, prompt="Once", max_tokens=4).choices[0].text
    vectors = api.embeddings.create(model=MODEL, input=["a", "b"]).data
    assert len(vectors) == 2
    more_of_responses(api)
    batch_of_chats(api)
    return f"tools in prompt format {raw.headers.get('X-Prompt-Format', 'of the model')}"


def more_of_responses(api: Any) -> None:
    """Responses: an answer to an earlier one, and a tool that must be called, there and back."""
    settings = {"model": MODEL, "max_output_tokens": 8}
    first = api.responses.create(input="Say hello.", **settings)
    second = api.responses.create(input="Again.", previous_response_id=first.id, **settings)
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens
    assert api.responses.retrieve(first.id).output_text == first.output_text
    tool = {"type": "function", "strict": True, **WEATHER["function"]}
    asked = {"model": MODEL, "max_output_tokens": 60, "tools": [tool]}
    called = api.responses.create(input="Weather in Linz?", tool_choice="required", **asked)
    (call,) = [each for each in called.output if each.type == "function_call"]
    assert "town" in json.loads(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    api.responses.create(input=[result], previous_response_id=called.id, **asked)


def batch_of_chats(api: Any) -> None:
    """Files and batches: two chats in a file, answered; then all is deleted."""
    lines = [
        {
            "custom_id": name,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": MODEL, "messages": HI, "max_tokens": 4},
        }
        for name in ("one", "two")
    ]
    raw = "\n".join(map(json.dumps, lines)).encode()
    file = api.files.create(file=("chats.jsonl", raw), purpose="batch")
    assert api.files.content(file.id).read() == raw
    batch = api.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    deadline = time.monotonic() + START_SECONDS
    while batch.status not in {"completed", "failed", "expired"} and time.monotonic() < deadline:
        time.sleep(0.2)
        batch = api.batches.retrieve(batch.id)
    assert batch.status == "completed" and batch.request_counts.completed == len(lines), batch
    answers = [json.loads(line) for line in api.files.content(batch.output_file_id).iter_lines()]
    assert {each["custom_id"] for each in answers} == {"one", "two"}
    assert all(each["response"]["body"]["choices"] for each in answers)
    assert batch.id in [each.id for each in api.batches.list()]
    for id_ in (file.id, batch.output_file_id):
        assert api.files.delete(id_).deleted


@client
def run_anthropic(url: str) -> str:
    """Anthropic's own: messages, streams, tools there and back, schemas, counting of tokens."""
    import anthropic

    api = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    settings = {"model": MODEL, "max_tokens": 8, "messages": HI}
    answer = api.messages.create(system="Be brief.", **settings)
    assert answer.content[0].text and answer.usage.output_tokens
    again = api.messages.create(system="Be brief.", **settings)
    assert again.usage.cache_read_input_tokens > 0
    with api.messages.stream(**settings) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text and final.content[0].text == text and final.stop_reason
    tool = {
        "name": "get_weather",
        "description": "The weather in a town.",
        "input_schema": WEATHER["function"]["parameters"],
    }
    asked = {**settings, "max_tokens": 60, "tools": [tool], "tool_choice": {"type": "any"}}
    called = api.messages.create(**asked)
    (use,) = [block for block in called.content if block.type == "tool_use"]
    assert called.stop_reason == "tool_use" and "town" in use.input
    with api.messages.stream(**asked) as stream:
        assert "town" in stream.get_final_message().content[-1].input
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "Sunny."}
    told = [*HI, {"role": "assistant", "content": called.content}]
    told.append({"role": "user", "content": [result]})
    api.messages.create(**{**settings, "messages": told, "tools": [tool]})
    form = {"format": {"type": "json_schema", "schema": DOG}}
    dog = api.messages.create(**{**settings, "max_tokens": 40}, output_config=form)
    assert set(json.loads(dog.content[0].text)) == {"age", "tame"}
    count = api.messages.count_tokens(model=MODEL, messages=HI).input_tokens
    assert count > 0
    try:
        api.messages.create(**{**settings, "model": "nobody"})
    except anthropic.NotFoundError as error:
        assert error.body["error"]["type"] == "not_found_error"
    return "messages, streams, tools, schema and count"


@client
def run_ollama(url: str) -> str:
    """Ollama's own: chat, generate, streams, tools, schemas, vectors, and facts about the model."""
    import ollama

    api = ollama.Client(host=url)
    short = {"num_predict": 8, "temperature": 0.5}
    answer = api.chat(MODEL, HI, options=short)
    assert answer.message.content and answer.eval_count and answer.done_reason
    parts = list(api.chat(MODEL, HI, stream=True, options=short))
    assert "".join(part.message.content for part in parts) and parts[-1].done
    first = api.generate(MODEL, "Say hello.", options=short)
    assert first.response
    assert api.generate(MODEL, "And now?", context=first.context, options=short).response
    parts = list(api.generate(MODEL, "Say hello.", stream=True, options=short))
    assert "".join(part.response for part in parts)
    dog = api.chat(MODEL, HI, format=DOG, options={"num_predict": 40})
    assert set(json.loads(dog.message.content)) == {"age", "tame"}
    told = api.chat(MODEL, HI, tools=[WEATHER], options=short)
    assert told.message.role == "assistant"
    call = {"function": {"name": "get_weather", "arguments": {"town": "Linz"}}}
    said = [*HI, {"role": "assistant", "tool_calls": [call]}]
    said.append({"role": "tool", "tool_name": "get_weather", "content": "Sunny."})
    api.chat(MODEL, said, tools=[WEATHER], options=short)
    vectors = api.embed(MODEL, ["a", "b"]).embeddings
    assert len(vectors) == 2 and len(vectors[0]) == len(vectors[1])
    assert f"{MODEL}:latest" in [one.model for one in api.list().models]
    assert api.show(MODEL).modelinfo["llama.context_length"]
    assert api.ps().models[0].name == f"{MODEL}:latest"
    assert [one.status for one in api.pull(MODEL, stream=True)][-1] == "success"
    try:
        api.chat("nobody", HI)
    except ollama.ResponseError as error:
        assert error.status_code == 404
    return "chat, generate, streams, tools, schema, vectors, facts"


@client
def run_litellm(url: str) -> str:
    """LiteLLM, which calls it an OpenAI-like server."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"  # or it fetches a price list
    import litellm

    settings = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"}
    answer = litellm.completion(messages=HI, max_tokens=8, **settings)
    assert answer.choices[0].message.content
    parts = litellm.completion(messages=HI, max_tokens=8, stream=True, **settings)
    assert "".join(part.choices[0].delta.content or "" for part in parts)
    called = litellm.completion(
        messages=HI, tools=[WEATHER], tool_choice="required", max_tokens=60, **settings
    )
    assert called.choices[0].message.tool_calls
    hosted = {**settings, "model": f"hosted_vllm/{MODEL}"}
    assert litellm.completion(messages=HI, max_tokens=8, **hosted).choices
    return "as openai/ and hosted_vllm/"


@client
def run_llm(url: str) -> str:
    """simonw/llm, with its file of extra models: a prompt, a schema and a tool."""
    program = Path(sys.executable).with_name("llm")
    if not program.exists():
        raise Missing("llm")
    with tempfile.TemporaryDirectory() as folder:
        text = (
            f"- model_id: here\n  model_name: {MODEL}\n  api_base: {url}/v1\n"
            f"  supports_schema: true\n  supports_tools: true\n"
        )
        (Path(folder) / "extra-openai-models.yaml").write_text(text)
        env = os.environ | {"LLM_USER_PATH": folder, "OPENAI_API_KEY": "none"}

        def llm(*words: str) -> str:
            done = subprocess.run(
                [program, "prompt", "-m", "here", *words],
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert llm("Say hello.", "-o", "max_tokens", "8").strip()
        assert llm("Say hello.", "-o", "max_tokens", "8", "--no-stream").strip()
        dog = llm("A dog.", "--schema", json.dumps(DOG), "-o", "temperature", "0")
        assert isinstance(json.loads(dog)["age"], int)
        llm("What time is it?", "-T", "llm_time", "-o", "max_tokens", "40")
    return "prompt, stream, schema and tool"


@client
def run_langchain(url: str) -> str:
    """langchain-openai: invoke, stream, a bound tool that must be called, structured output."""
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings
    from pydantic import BaseModel

    @tool
    def get_weather(town: str) -> str:
        """The weather in a town."""
        return f"Sunny in {town}."

    class Dog(BaseModel):
        """A dog."""

        model_config = {"extra": "forbid"}

        age: int

    settings: dict[str, Any] = {"model": MODEL, "base_url": f"{url}/v1", "api_key": "none"}
    model = ChatOpenAI(max_tokens=60, temperature=0, **settings)
    assert model.invoke("Say hello.").content
    assert "".join(part.content for part in model.stream("Say hello."))
    called = model.bind_tools([get_weather], tool_choice="any").invoke("Weather in Linz?")
    assert called.tool_calls[0]["name"] == "get_weather"
    assert isinstance(model.with_structured_output(Dog).invoke("A dog of 3."), Dog)
    embeddings = OpenAIEmbeddings(check_embedding_ctx_length=False, **settings)
    assert embeddings.embed_query("a")
    return "invoke, stream, tool, structured output, embeddings"


@client
def run_instructor(url: str) -> str:
    """Instructor: a pydantic model as the answer, by a tool, by JSON and by a JSON schema."""
    import instructor
    import openai
    from pydantic import BaseModel

    class Dog(BaseModel):
        """A dog."""

        model_config = {"extra": "forbid"}

        age: int
        tame: bool

    api = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        patched = instructor.from_openai(api, mode=mode)
        dog = patched.chat.completions.create(
            model=MODEL, response_model=Dog, messages=HI, temperature=0, max_tokens=60
        )
        assert isinstance(dog, Dog)
    return "modes TOOLS and JSON_SCHEMA"


@client
def run_pydantic_ai(url: str) -> str:
    """pydantic-ai: text, and an output type that is held to by a tool."""
    from pydantic import BaseModel
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class Dog(BaseModel):
        """A dog."""

        model_config = {"extra": "forbid"}

        age: int
        tame: bool

    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))
    settings: Any = {"max_tokens": 60, "temperature": 0}
    assert Agent(model, model_settings=settings).run_sync("Say hello.").output
    for kind in (Dog, NativeOutput(Dog)):
        agent = Agent(model, output_type=kind, model_settings=settings)
        assert isinstance(agent.run_sync("A dog of 3.").output, Dog)
    return "text, tool output and native output"


@client
def run_lm_eval(url: str) -> str:
    """lm-eval's local-completions with the server's tokenizer, on two tasks of our own."""
    program = Path(sys.executable).with_name("lm_eval")
    if not program.exists():
        raise Missing("lm_eval")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        rows = [
            {"question": "The sky is", "options": [" blue", " made of cheese"], "answer": 0},
            {"question": "Two and two is", "options": [" a fish", " four"], "answer": 1},
        ]
        data = made / "rows.json"
        data.write_text("\n".join(map(json.dumps, rows)))
        common = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "doc_to_text": "{{question}}",
        }
        tasks = {
            "choosing": {
                "output_type": "multiple_choice",
                "doc_to_choice": "{{options}}",
                "doc_to_target": "{{answer}}",
                "metric_list": [{"metric": "acc"}],
            },
            "going_on": {
                "output_type": "generate_until",
                "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
                "doc_to_target": "{{options[answer]}}",
                "metric_list": [{"metric": "exact_match"}],
            },
        }
        for name, task in tasks.items():  # JSON is YAML
            (made / f"{name}.yaml").write_text(json.dumps({"task": name} | common | task))
        words = [
            *("--model", "local-completions", "--tasks", ",".join(tasks)),
            *("--include_path", folder, "--output_path", str(made / "out")),
            "--model_args",
            f"model={MODEL},base_url={url}/v1/completions,tokenizer_backend=remote,"
            f"num_concurrent=2,max_length=512",
        ]
        env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(made / "hf")}
        done = subprocess.run(
            [program, *words], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (file,) = (made / "out").rglob("results*.json")
        results = json.loads(file.read_text())["results"]
    assert results.keys() == tasks.keys()
    return f"accuracy {results['choosing']['acc,none']} on two questions, tokenizer_backend=remote"


@client
def run_guidellm(url: str) -> str:
    """guidellm, on prompts of our own, with the usage in every chunk that it asks for."""
    program = Path(sys.executable).with_name("guidellm")
    if not program.exists():
        raise Missing("guidellm")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        data, out = made / "prompts.jsonl", made / "out.json"
        data.write_text("\n".join(json.dumps({"prompt": f"Count to {n}."}) for n in range(4)))
        words = [
            *("--backend", f"kind=openai_http,target={url},max_tokens=8"),
            *("--profile", "kind=synchronous"),
            *("--constraint", "kind=max_requests,count=2"),
            *("--data", f"kind=json_file,path={data}"),
            *("--output", f"kind=json,path={out}"),
            "--disable-console",
        ]
        env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(made / "hf")}
        done = subprocess.run(
            [program, "run", *words], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (benchmark,) = json.loads(out.read_text())["benchmarks"]
        requests = benchmark["requests"]
    assert len(requests["successful"]) == 2 and not requests["errored"]
    return "two synchronous requests, usage in every chunk"


@client
def run_open_webui(url: str) -> str:
    """The fields of Open WebUI, which is a server of its own and not installed here."""
    body = {
        "model": MODEL,
        "messages": HI,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 8,
        "chat_id": "c",
        "session_id": "s",
        "id": "i",
        "features": {"web_search": False, "image_generation": False},
        "variables": {"{{USER_NAME}}": "me"},
        "files": [],
        "options": {"num_ctx": 2048},
        "keep_alive": "5m",
        "background_tasks": {"title_generation": True},
    }
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), headers
    )
    with urllib.request.urlopen(request) as response:
        assert response.read().rstrip().endswith(b"[DONE]")
        return f"ignored and named: {response.headers['X-Ignored-Fields']}"


@client
def run_sglang_router(url: str) -> str:
    """SGLang's router before two servers: both join, and answers go on when one has left."""
    import sglang_router  # noqa: F401 - it runs as a process of its own

    with ExitStack() as leaving, ExitStack() as last:
        other = leaving.enter_context(served(None))
        router = last.enter_context(routed([url, other]))
        workers = json.loads(urllib.request.urlopen(f"{router}/workers").read())["workers"]
        assert {each["url"] for each in workers} == {url, other}, workers
        assert {each["model_id"] for each in workers} == {MODEL}, workers
        for _ in range(4):
            assert routed_answer(router)
        both = [urllib.request.urlopen(f"{each}/metrics").read() for each in (url, other)]
        assert all(b'route="POST /v1/chat/completions"' in each for each in both)
        leaving.close()  # drains and stops one server
        assert all(routed_answer(router) for _ in range(4))
    return "two workers with their model; both answered; one left, and four answers followed"


def routed_answer(router: str) -> str:
    """The text of one chat answer through the router."""
    body = {"model": MODEL, "messages": HI, "max_tokens": 4}
    request = urllib.request.Request(
        f"{router}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        return str(json.loads(response.read())["choices"][0]["message"]["content"])


@contextmanager
def routed(urls: list[str]) -> Iterator[str]:
    """The address of a router before these servers, once all of them have joined."""
    ports = [free_port(), free_port()]
    command = [sys.executable, "-m", "sglang_router.launch_router", "--policy", "round_robin"]
    places = ["--host", "127.0.0.1", "--port", str(ports[0]), "--prometheus-port", str(ports[1])]
    process = subprocess.Popen(
        [*command, *places, "--worker-urls", *urls],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    router, deadline = f"http://127.0.0.1:{ports[0]}", time.monotonic() + START_SECONDS
    try:
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.5)
            with suppress(OSError):
                found = urllib.request.urlopen(f"{router}/workers").read()
                if json.loads(found)["total"] == len(urls):
                    break
        yield router
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def served(url: str | None) -> Iterator[str]:
    """The address of a server: the given one, or one that runs meanwhile."""
    if url is not None:
        yield url
        return
    with tempfile.TemporaryFile("w+") as log:
        command = [ROOT / ".venv/bin/jaxllama", "serve", "--port", "0"]
        process = subprocess.Popen(command, stderr=log, text=True)
        try:
            yield ready(process, log)
        finally:
            process.terminate()
            process.wait()


def ready(process: "subprocess.Popen[str]", log: Any) -> str:
    """The address of a server that has started, once it takes requests."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.5)
        log.seek(0)
        found = re.search(r"listening on (http[^\s,]+)", log.read())
        if found is None:
            continue
        try:
            with urllib.request.urlopen(f"{found[1]}/ready"):
                return found[1]
        except OSError:
            continue
    log.seek(0)
    raise SystemExit(f"the server did not start:\n{log.read()[-3000:]}")


def version_of(name: str) -> str:
    """The installed version of a client and a comma; nothing for one that is not installed."""
    with suppress(PackageNotFoundError):
        return f"{version(PACKAGES.get(name, name))}, "
    return ""


def main() -> int:
    """Run the clients; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", nargs="?", help="a server that runs (default: start one)")
    parser.add_argument("--only", action="append", choices=CLIENTS, help="this client alone")
    options = parser.parse_args()
    failed = False
    with served(options.url and options.url.rstrip("/")) as url:
        for name in options.only or CLIENTS:
            try:
                seen = CLIENTS[name](url)
                print(f"{name:14} ok      {version_of(name)}{seen}", flush=True)
            except (ModuleNotFoundError, Missing) as error:
                print(f"{name:14} skipped {error} is not installed", flush=True)
            except Exception:
                failed = True
                print(f"{name:14} FAILED\n{traceback.format_exc()}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
