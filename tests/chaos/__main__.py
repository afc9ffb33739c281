"""`python -m tests.chaos`: attack a server of this checkout or of another one."""

import asyncio
import sys
from pathlib import Path

import click

from tests.chaos import disconnects, fairness, hostile, rolling, terminations
from tests.chaos.asking import Waits
from tests.chaos.report import Report
from tests.chaos.soak import soak
from tests.chaos.target import package_of, target

PARTS = ("fairness", "disconnects", "hostile", "terminations", "rolling")
SCENARIOS = [scenario.__name__.replace("_", "-") for scenario in fairness.SCENARIOS]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--python",
    default=sys.executable,
    help="Python whose jaxllama is attacked, for example of an older checkout [default: this one].",
)
@click.option("--quick", is_flag=True, help="Far fewer requests: about two minutes.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="[default: all]")
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    type=click.Choice(SCENARIOS),
    help="Of fairness [default: all].",
)
@click.option("--disconnects", "leaving", type=click.IntRange(min=1), help="[default: 6000]")
@click.option("--requests", type=click.IntRange(min=1), help="Hostile ones [default: 20000].")
@click.option(
    "--terminations", "ended", type=click.IntRange(min=1), help="Of servers [default: 200]."
)
@click.option("--seed", default=0, show_default=True, help="Of everything that is random.")
@click.option("--soak", "minutes", type=click.FloatRange(min=0.1), help="Soak this long instead.")
@click.option("--keep-log", type=click.Path(path_type=Path), help="Folder for the server's logs.")
def main(
    *,
    python: str,
    quick: bool,
    parts: tuple[str, ...],
    scenarios: tuple[str, ...],
    leaving: int | None,
    requests: int | None,
    ended: int | None,
    seed: int,
    minutes: float | None,
    keep_log: Path | None,
) -> None:
    """Attack a server that this command starts, and print a line of JSON for each figure.

    Fails if a promise is broken: a canary changes, an answer is a 500, the log has a traceback, or
    memory, file descriptors or threads do not come back.
    """
    report = Report()
    python = str(Path(python).absolute())  # not resolved: a link into an environment is its Python
    report.figure("attacked", python=python, **package_of(python), quick=quick, seed=seed)
    chosen = parts or (("fairness",) if scenarios else PARTS)
    counts = {
        "disconnects": leaving or (200 if quick else 6000),
        "hostile": requests or (600 if quick else 20_000),
    }

    async def run() -> None:
        if minutes is not None:
            await soak(python, report, minutes=minutes, seed=seed)
            return
        if "fairness" in chosen:
            await be_unfair(python, report, quick=quick, names=scenarios)
        for name, attack in (("disconnects", disconnects.attack), ("hostile", hostile.attack)):
            if name in chosen:
                async with target(python) as server:
                    await attack(server, report, count=counts[name], seed=seed)
                    keep(server.log, keep_log, name)
        if "terminations" in chosen:
            count = ended or (5 if quick else 200)
            await terminations.attack(python, report, count=count, seed=seed)
        if "rolling" in chosen:
            await rolling.attack(python, report, rounds=1 if quick else 10, seed=seed)

    asyncio.run(run())
    if report.broken:
        raise click.ClickException(f"broken promises: {'; '.join(report.broken)}")


async def be_unfair(python: str, report: Report, *, quick: bool, names: tuple[str, ...]) -> None:
    """Run the scenarios of fairness; each starts on a server without open requests."""
    sizes = fairness.QUICK if quick else fairness.Sizes()
    left = [
        scenario
        for scenario in fairness.SCENARIOS
        if not names or scenario.__name__.replace("_", "-") in names
    ]
    while left:
        async with target(python) as server, fairness.stage(server, report, sizes) as at:
            while left:
                scenario = left.pop(0)
                await scenario(at)
                if not (server.is_alive and await server.settle(30.0)):
                    break  # the next one gets a new server
                await at.light.first_token(Waits())  # waits until the engine has finished its work


def keep(log: Path, folder: Path | None, name: str) -> None:
    """Copy the server's log to a folder, if one is given."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.log").write_bytes(log.read_bytes())


if __name__ == "__main__":
    main()
