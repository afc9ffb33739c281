"""What the folder `packaging` promises: versions agree, command lines exist, the unit is sound."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.test_readme import check_arguments

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
UNIT = ROOT / "packaging/jaxllama.service"
DOCKERFILE = (ROOT / "packaging/Dockerfile").read_text().replace("\\\n", " ")


def steps(keyword: str) -> list[str]:
    """The arguments of every step of the Dockerfile with this keyword."""
    return re.findall(rf"^{keyword} +(.*)$", DOCKERFILE, re.MULTILINE)


def test_the_version_is_that_of_the_changelog() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## (\S+)", changes, re.MULTILINE)
    assert newest
    assert newest[1] in (PROJECT["project"]["version"], "Unreleased")


def test_the_unit_starts_a_command_that_exists() -> None:
    (line,) = re.findall(r"^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)
    program, *words = shlex.split(line)
    assert Path(program).name == "jaxllama"
    check_arguments(words)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize(("more", "sound"), [("", True), ("PrivateTmp=perhaps", False)])
def test_systemd_accepts_the_unit(tmp_path: Path, more: str, sound: bool) -> None:
    text = UNIT.read_text().replace("/opt/jaxllama/bin/jaxllama", shutil.which("true") or "")
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("[Install]", f"{more}\n[Install]"))
    run = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    complaints = [line for line in run.stderr.splitlines() if UNIT.name in line]
    assert (complaints == []) is sound, run.stderr


def test_the_image_runs_a_command_that_exists_as_a_user_without_rights() -> None:
    assert steps("ENTRYPOINT") == ['["jaxllama"]']
    (words,) = (re.findall(r'"([^"]*)"', each) for each in steps("CMD"))
    check_arguments(words)
    (user,) = steps("USER")
    assert user.isdigit()
    assert int(user) > 0


def test_the_image_copies_what_the_wheel_is_made_of() -> None:
    lines = (ROOT / "packaging/Dockerfile.dockerignore").read_text().splitlines()
    copied = {line[1:] for line in lines if line.startswith("!")}
    tops = {each.split("/")[0] for each in PROJECT["tool"]["scikit-build"]["wheel"]["packages"]}
    files = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "pyproject.toml"}
    assert copied == tops | files


def test_the_bill_of_materials_has_every_package_that_is_needed(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, ROOT / "packaging/sbom.py", tmp_path], check=False)
    assert run.returncode == 0
    found = json.loads((tmp_path / "sbom.json").read_text())
    names = {each["name"] for each in found["components"]}
    assert found["metadata"]["component"]["name"] == "jaxllama"
    assert {"jax", "jaxlib", "numpy", "aiohttp", "gguf", "llguidance"} <= names
    assert not names & {"pytest", "ruff", "mypy"}  # of development only
    refs = {each["bom-ref"] for each in found["components"]}
    assert all(set(each["dependsOn"]) <= refs for each in found["dependencies"])
    licences = (tmp_path / "licences.md").read_text()
    assert all(f"| {name} |" in licences for name in names)
