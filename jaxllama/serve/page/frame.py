"""The frame of the pages: navigation, API key, appearance, notices and icons around each page.

A page is a file NAME.html with blocks that begin with a comment: `<!-- main -->` (required, the
element `<main>`), `<!-- sidebar -->`, `<!-- foot -->` and `<!-- settings -->` (the form in the
column of settings.html; a page without this block has no such column). The frame is frame.html,
whose words in braces stand for these blocks. Knows files and text, no HTTP.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources.abc import Traversable

BLOCK = re.compile(r"^<!-- (main|sidebar|foot|settings) -->\n", re.MULTILINE)
SLOT = re.compile(r"\{(title|head|skip_to|home|links|main|sidebar|foot|settings|settings_title)\}")


@dataclass(frozen=True)
class Entry:
    """A page: its file is NAME.html, its address /page/NAME, its first script js/NAME.js."""

    name: str
    title: str
    icon: str  # of the navigation: a symbol icon-NAME of frame.html
    scripts: tuple[str, ...] = ()  # other first scripts than js/NAME.js
    styles: tuple[str, ...] = ()  # NAME.css, beside style.css
    skip_to: str = "main"  # id of the element that the skip link leads to
    path: str | None = None  # another address, beside /page/NAME
    settings_title: str = "Settings"  # of the column of settings

    @property
    def head(self) -> str:
        """The HTML lines that load the page's styles and scripts."""
        styles = [
            f'<link rel="stylesheet" href="/page/{each}.css">\n' for each in ("style", *self.styles)
        ]
        scripts = [
            f'<script type="module" src="/page/js/{each}.js"></script>\n'
            for each in self.scripts or (self.name,)
        ]
        return "".join(styles + scripts)


class Frame:
    """Makes the HTML document of each page."""

    def __init__(self, folder: Traversable, pages: Sequence[Entry], *, has_root: bool) -> None:
        """Read the HTML template of all pages from `folder`; `pages` are the pages, in order.

        `has_root`: the address of the first page is `/`.
        """
        self._folder, self._pages, self._has_root = folder, pages, has_root
        self._text = self._read("frame")

    def document(self, entry: Entry) -> str:
        """Return the whole HTML document of a page."""
        _, *parts = BLOCK.split(self._read(entry.name))
        blocks = dict(zip(parts[::2], parts[1::2], strict=True))
        values = {
            "title": escape(entry.title),
            "head": entry.head,
            "skip_to": entry.skip_to,
            "home": self._path(self._pages[0]),
            "links": self.links(entry),
            "main": blocks["main"],
            "settings": self._column(entry, blocks.get("settings")),
            "sidebar": blocks.get("sidebar", '  <div class="fill"></div>\n'),
            "foot": blocks.get("foot", ""),
        }
        return filled(self._text, values)

    def _column(self, entry: Entry, form: str | None) -> str:
        """Return the HTML of a page's settings column, with the HTML `form` in it.

        `form` is None for a page without such a column; then the result is "".
        """
        if form is None:
            return ""
        values = {"settings_title": escape(entry.settings_title), "settings": form}
        return "\n" + filled(self._read("settings"), values)

    def _read(self, name: str) -> str:
        return (self._folder / f"{name}.html").read_text(encoding="utf-8")

    def links(self, current: Entry | None) -> str:
        """Return the HTML list items of the navigation, one link for each page.

        The link of the page `current` is marked as the page that is shown; None: no link is.
        """
        return "".join(
            link(self._path(each), each.icon, each.title, is_current=each == current)
            for each in self._pages
        )

    def _path(self, entry: Entry) -> str:
        if entry == self._pages[0] and self._has_root:
            return "/"
        return entry.path or f"/page/{entry.name}"


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return the HTML template `text` with its words in braces, such as {title}, replaced.

    `values` maps each word to the HTML that replaces it.
    """
    return SLOT.sub(lambda slot: values[slot[1]], text)


def link(path: str, icon: str, title: str, *, is_current: bool) -> str:
    """Return the HTML of one link in the navigation, with the text `title`.

    `path` is the address that the link leads to, `icon` the name of its icon. `is_current`: the
    link leads to the page that is shown, and is marked so.
    """
    current = ' aria-current="page"' if is_current else ""
    return (
        f'      <li><a href="{path}"{current}><svg class="icon" aria-hidden="true">'
        f'<use href="#icon-{icon}"/></svg>{escape(title)}</a></li>\n'
    )
