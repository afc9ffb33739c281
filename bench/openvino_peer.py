"""The peer OpenVINO GenAI, which reads the same GGUF file, in a Python environment of its own."""

import subprocess
from pathlib import Path

import click
from peer import PeerModel, WorkerProgram

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-openvino/bin/python"  # where `make openvino` puts it
START = "import openvino_worker; openvino_worker.main()"
INSTALLED = "import importlib.util, sys; sys.exit(not importlib.util.find_spec('openvino_genai'))"
SETTINGS: dict[str, dict[str, str]] = {
    "default settings": {},
    "f32": {"INFERENCE_PRECISION_HINT": "f32"},
}


class OpenvinoPeer(PeerModel):
    """One model of OpenVINO GenAI."""

    name = "OpenVINO GenAI"

    def __init__(
        self, path: Path, *, sequences: int, length: int, threads: int, python: Path | None = None
    ) -> None:
        program = WorkerProgram(START, str(checked(python or PYTHON)))
        settings = {name: {"properties": own} for name, own in SETTINGS.items()}
        sizes = {"sequences": sequences, "length": length, "threads": threads}
        super().__init__(program, settings, str(path), **sizes)


def checked(python: Path) -> Path:
    """Return the Python of an environment that has OpenVINO GenAI; raise UsageError for others.

    The path stays as it is: a link into an environment is its Python.
    """
    python = python.absolute()
    if not python.exists():
        wrong = "it does not exist"
    elif subprocess.run([python, "-c", INSTALLED], check=False).returncode:
        wrong = "openvino-genai is not installed there"
    else:
        return python
    raise click.UsageError(
        f"--peer openvino runs {python}, but {wrong}; `make openvino` makes .venv-openvino, or "
        f"name another environment's Python with --peer-python."
    )
