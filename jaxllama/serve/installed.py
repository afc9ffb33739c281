"""Installed dialects: those of the entry points that the operator chose, with their options.

Used by the command line, which hands them to the server. Knows no dialect by name, but ours first.
"""

from collections.abc import Sequence

import msgspec

from jaxllama.errors import ConfigError
from jaxllama.registry import DIALECTS, load_plugins
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.settings import Settings

FIRST = ("openai", "native")  # they own paths that others are like, such as /v1/unknown


def open_dialects(settings: Settings) -> list[Dialect]:
    """Make the dialects that the operator chose, or all installed ones if none is chosen.

    A dialect is an HTTP API. The dialects openai and native come first, then the others by name.
    Raises ConfigError for an unknown name or a wrong option.
    """
    plugins = load_plugins(DIALECTS, Dialect)  # type: ignore[type-abstract]
    names = settings.dialects or tuple(sorted(plugins.loaded))
    ordered = sorted(dict.fromkeys(names), key=lambda name: (name not in FIRST, name))
    kinds = {name: plugins.one(name) for name in ordered}
    options = read_options(settings.dialect_options, kinds)
    if settings.root_dialect is not None and settings.root_dialect not in kinds:
        raise ConfigError(
            f"root dialect {settings.root_dialect!r} is not served; expected one of "
            f"{', '.join(ordered)}"
        )
    return [make_dialect(name, kind, options.get(name, {})) for name, kind in kinds.items()]


def read_options(
    texts: Sequence[str], kinds: dict[str, type[Dialect]]
) -> dict[str, dict[str, str]]:
    """Parse options such as `rllama.path=/x` to a dict: dialect -> option -> value.

    A dialect is an HTTP API; `kinds` maps the names of the served dialects to their classes. Raises
    ConfigError for an unknown dialect or option.
    """
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        dialect, dot, name = key.partition(".")
        if not (equals and dot):
            raise ConfigError(
                f"dialect option {text[:100]!r} is not understood; expected DIALECT.OPTION=VALUE, "
                f"such as rllama.path=/v1/infer"
            )
        if dialect not in kinds:
            raise ConfigError(
                f"dialect option {text[:100]!r} is for a dialect that is not served; served: "
                f"{', '.join(kinds)}"
            )
        own = kinds[dialect].options_type.__struct_fields__
        if name not in own:
            raise ConfigError(
                f"dialect {dialect} has no option {name[:100]!r}; it has {', '.join(own) or 'none'}"
            )
        found.setdefault(dialect, {})[name] = value
    return found


def make_dialect(name: str, kind: type[Dialect], options: dict[str, str]) -> Dialect:
    """Make an object of the dialect class `kind`; raise ConfigError if an option is wrong.

    A dialect is an HTTP API; `name` is its name, which the class must have, too. `options` maps the
    operator's options for this dialect to their text values.
    """
    if getattr(kind, "name", None) != name:
        raise ConfigError(
            f"dialect {name!r} ({kind.__module__}:{kind.__name__}) calls itself "
            f"{getattr(kind, 'name', None)!r}; its `name` must be that of its entry point"
        )
    try:
        return kind(msgspec.convert(options, kind.options_type, strict=False))
    except msgspec.ValidationError as error:
        raise ConfigError(f"options of dialect {name} are wrong: {error}") from error
