"""`make sbom`: what is installed with jaxllama, as a CycloneDX document and as a list of licences.

Reads the metadata of the installed packages that jaxllama needs, directly or not; nothing else.
Writes sbom.json and licences.md into the folder that is its argument.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = "jaxllama"
CLASSIFIER = "License :: OSI Approved :: "


def main() -> None:
    """Read the command line and write both files."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(needed(ROOT).values(), key=name_of)
    document = json.dumps(cyclonedx(found), indent=2)
    (folder / "sbom.json").write_text(document + "\n", encoding="utf-8")
    (folder / "licences.md").write_text(licences(found), encoding="utf-8")
    sys.stdout.write(f"{len(found)} packages: {folder}/sbom.json, {folder}/licences.md\n")


def needed(root: str) -> dict[str, Distribution]:
    """Return the installed packages that a package needs, with itself, by their plain names."""
    found: dict[str, Distribution] = {}
    left = [root]
    while left:
        name = left.pop()
        if plain(name) in found:
            continue
        try:
            found[plain(name)] = distribution(name)
        except PackageNotFoundError:
            continue  # of another platform
        left += requirements(found[plain(name)])
    return found


def requirements(package: Distribution) -> Iterator[str]:
    """Yield the names of the packages that a package needs on this machine, without extras."""
    for text in package.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def plain(name: str) -> str:
    """Return the one spelling of a package's name that the index uses."""
    return re.sub(r"[-_.]+", "-", name).lower()


def name_of(package: Distribution) -> str:
    """Return the plain name of a package."""
    return plain(package.metadata["Name"])


def licence(package: Distribution) -> str:
    """Return the licence of a package as its metadata states it, as one line."""
    meta = package.metadata
    told = meta.get("License-Expression") or ""
    classifiers = [
        each.removeprefix(CLASSIFIER)
        for each in meta.get_all("Classifier") or ()
        if each.startswith(CLASSIFIER)
    ]
    lines = (meta.get("License") or "").strip().splitlines()
    return told or " and ".join(classifiers) or (lines[0].strip() if lines else "not stated")


def cyclonedx(packages: Sequence[Distribution]) -> dict[str, Any]:
    """Return the packages as a CycloneDX document; the first component is what they are for."""
    parts = [component(each) for each in packages]
    own = next(each for each in parts if each["name"] == ROOT)
    names = {name_of(each) for each in packages}
    links = [
        {
            "ref": purl(each),
            "dependsOn": sorted(
                purl(distribution(name)) for name in requirements(each) if plain(name) in names
            ),
        }
        for each in packages
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {**own, "type": "application"}},
        "components": [each for each in parts if each["name"] != ROOT],
        "dependencies": links,
    }


def component(package: Distribution) -> dict[str, Any]:
    """Return a package as a component of the document."""
    return {
        "type": "library",
        "bom-ref": purl(package),
        "name": name_of(package),
        "version": package.version,
        "purl": purl(package),
        "licenses": [{"license": {"name": licence(package)}}],
    }


def purl(package: Distribution) -> str:
    """Return the package URL of a package."""
    return f"pkg:pypi/{name_of(package)}@{package.version}"


def licences(packages: Sequence[Distribution]) -> str:
    """Return the list of licences, as Markdown."""
    lines = ["# Licences", "", "| package | version | licence |", "|---|---|---|"]
    lines += [f"| {name_of(each)} | {each.version} | {licence(each)} |" for each in packages]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
