"""`jaxllama export` on the command line."""

from pathlib import Path

from jaxllama.testing import random_params, tiny
from jaxllama.testing.models import flatten
from tests.weights.writers import gguf_vocabulary, write_gguf

CONFIG = tiny(layers=1, tied=True)


def test_export_prints_the_path_and_overwrites_only_with_force(run, tmp_path: Path):
    source, target = tmp_path / "a.gguf", tmp_path / "deep" / "b.gguf"
    metadata = gguf_vocabulary(CONFIG.vocab_size)
    write_gguf(source, CONFIG, flatten(random_params(CONFIG)), metadata=metadata)
    arguments = ("export", str(source), str(target), "--to", "gguf-q8_0")
    first = run(*arguments)
    assert (first.exit_code, first.stdout) == (0, f"{target}\n")
    again = run(*arguments)
    assert again.exit_code == 2 and "add --force" in again.stderr
    assert run(*arguments, "--force").exit_code == 0
    assert run("export", str(source), str(target), "--to", "onnx").exit_code == 2
