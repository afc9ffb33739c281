"""`python docs/site/assemble.py FOLDER`: the Markdown of the site, all in one folder.

Copies the project's documents, makes the reference from the code, and turns links between documents
into links between pages. A link to another file of the project becomes its path, as the site has no
copy of it; a link to nothing is an error. `make docs` builds HTML from the folder.
"""

import os
import re
import shutil
import sys
from pathlib import Path

from reference import pages

SITE = Path(__file__).parent
ROOT = SITE.parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
CONTENTS: dict[str, dict[str, str]] = {  # section -> page of the site -> its file in the project
    "Tutorial": {"tutorial": "docs/tutorial.md", "plugins": "plugins/README.md"},
    "How to": {
        "how-to": "docs/how-to.md",
        "moving-here": "docs/moving-here.md",
        "expressions": "docs/expressions.md",
        "models": "docs/models.md",
        "hosts": "docs/hosts.md",
        "deploy": "docs/deploy.md",
        "kv-events": "docs/kv-events.md",
        "packaging": "packaging/README.md",
        "contributing": "CONTRIBUTING.md",
    },
    "Reference": {},  # pages made from the code
    "Explanation": {
        "overview": "README.md",
        "architecture": "ARCHITECTURE.md",
        "threat-model": "docs/threat-model.md",
        "security": "SECURITY.md",
        "scaling": "docs/scaling.md",
        "benchmarks": "docs/benchmarks.md",
        "benchmarking": "bench/README.md",
        "accelerators": "docs/accelerators.md",
        "changelog": "CHANGELOG.md",
    },
}

TITLES = {"overview": "The README", "benchmarking": "How the benchmarks measure"}


def main() -> None:
    """Read the command line and write the folder anew."""
    (folder,) = sys.argv[1:]
    assemble(Path(folder))


def assemble(folder: Path) -> None:
    """Write all pages, their pictures and the settings of Sphinx."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = placed()
    for path, name in names.items():
        text = (ROOT / path).read_text()
        (folder / f"{name}.md").write_text(with_links(text, Path(path), names))
    for name, text in pages().items():
        (folder / name).write_text(text + "\n")
    shutil.copytree(ROOT / "docs/images", folder / "images")
    shutil.copy(SITE / "conf.py", folder)
    (folder / "index.md").write_text(index())


def placed() -> dict[str, str]:
    """Return the documents of the site: path in the project -> name of the page.

    Every document in docs/ has a page, also one that `CONTENTS` does not name.
    """
    named = {path: name for section in CONTENTS.values() for name, path in section.items()}
    others = {f"docs/{path.name}": path.stem for path in sorted((ROOT / "docs").glob("*.md"))}
    return others | named


def index() -> str:
    """Return the first page: the sections with their pages."""
    named = {name for section in CONTENTS.values() for name in section}
    lines = ["# jaxllama", (SITE / "first.md").read_text()]
    for section, found in CONTENTS.items():
        listed = list(found)
        if section == "Reference":
            listed = [name.removesuffix(".md") for name in pages()]
        if section == "Explanation":
            listed += [name for name in placed().values() if name not in named]
        entries = (f"{TITLES[name]} <{name}>" if name in TITLES else name for name in listed)
        lines += ["```{toctree}", f":caption: {section}", ":maxdepth: 1", "", *entries, "```"]
    return "\n".join(lines) + "\n"


def with_links(text: str, path: Path, names: dict[str, str]) -> str:
    """Return a document with the links of its page; `path` is the document's in the project."""

    def moved(found: re.Match[str]) -> str:
        picture, shown, target, anchor = found.groups(default="")
        if re.match(r"[a-z]+:", target) or not target:
            return found[0]
        there = os.path.normpath(path.parent / target)
        if not (ROOT / there).exists():
            raise SystemExit(f"{path}: a link leads to {target!r}, which does not exist")
        if picture:
            return f"![{shown}]({Path(there).relative_to('docs')})"
        page = names.get(there) or names.get(f"{there}/README.md")
        if page is None:
            return shown if there in shown else f"{shown} (`{there}`)"
        return f"[{shown}]({page}.md{anchor})"

    parts = re.split(r"(^```.*?^```$|`[^`\n]+`)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("`") else LINK.sub(moved, part) for part in parts)


if __name__ == "__main__":
    main()
