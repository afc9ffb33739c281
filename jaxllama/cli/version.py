"""`jaxllama version`: what is installed, for reports of problems."""

import platform
from importlib.metadata import version

import click

PARTS = ("jax", "jaxlib", "flax")


@click.command("version")
def command() -> None:
    """Print the versions of jaxllama, JAX and Python."""
    parts = [f"{name} {version(name)}" for name in PARTS]
    click.echo(f"jaxllama {version('jaxllama')} ({', '.join(parts)}, {python()})")


def python() -> str:
    """The interpreter and the machine."""
    return f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
