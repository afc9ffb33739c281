"""A server on the scripted engine as a program, for tests that need a process of its own.

Prints its address, then serves until a signal. Settings come as JSON in the first argument; of
them `pace` is how long each step takes, `loading` how long the model does.
"""

import asyncio
import json
import sys
import time

from jaxllama.serve import log
from jaxllama.serve.awake import AwakeLoop
from jaxllama.serve.server import Server
from jaxllama.serve.settings import Settings
from jaxllama.service import GenerationService, Model
from jaxllama.service.bounds import Bounds
from jaxllama.service.served_models import ServedModels
from tests.serve.conftest import TinyDialect, intake_for, scripted


async def main(pace: float = 0.0, loading: float = 0.0, **settings) -> int:
    engine = scripted(b"x" * 200)
    step = engine.step

    def slow():
        time.sleep(pace)
        return step()

    engine.step = slow

    def open_model() -> Model:
        time.sleep(loading)
        return Model("scripted", engine, intake_for(engine))

    bounds = Bounds(**settings.pop("bounds", {}))
    service = GenerationService(open_model, bounds)
    server = Server(
        ServedModels.single(service), Settings(port=0, bounds=bounds, **settings), [TinyDialect()]
    )
    start = server.start

    async def announced() -> None:
        await start()
        print(server.url, flush=True)  # noqa: T201

    server.start = announced
    return (await server.run())[0]


if __name__ == "__main__":
    log.set_up(as_json=True)
    with asyncio.Runner(loop_factory=AwakeLoop) as runner:
        sys.exit(runner.run(main(**json.loads(sys.argv[1]))))
