"""`jaxllama version`: print the installed versions, for problem reports."""

import platform
from importlib.metadata import version

import click

PARTS = ("jax", "jaxlib")


@click.command("version")
def command() -> None:
    """Print the versions of jaxllama, JAX and Python."""
    parts = [f"{name} {version(name)}" for name in PARTS]
    click.echo(f"jaxllama {version('jaxllama')} ({', '.join(parts)}, {python()})")


def python() -> str:
    """Return the version of Python, the operating system and the machine as text."""
    return f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
