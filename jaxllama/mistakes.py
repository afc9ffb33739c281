"""Mistakes: explains the mistakes of plugin authors, with source line and remedy.

Called by the registry, the engine and `jaxllama check` with a plugin's class or with an error that
the plugin raised. Standard library only: errors of JAX are recognised by the names of their types.
"""

import ast
import dataclasses
import difflib
import inspect
import linecache
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType, TracebackType

from jaxllama.errors import BrokenPlugin

DEPENDENCIES = (
    *("jax", "jaxlib", "jaxtyping", "numpy", "flax", "einops", "ml_dtypes", "scipy", "tokenizers"),
    *("safetensors", "gguf", "jinja2", "click", "rich", "aiohttp", "msgspec", "llguidance"),
)
SUBCLASS = "subclass Adjuster, Filter or Shaper of jaxllama.sampling"
REPLACE = (
    "in __call__ use a local variable; a number for the next token is a field state(start=...), "
    "and observe() returns dataclasses.replace(self, field=value)"
)
UNDECIDED = (
    "Python's {word} asks whether an array is true, but its numbers are unknown while the step is "
    "compiled"
)
CHOOSE = (
    "choose with jnp.where(condition, a, b), combine masks with & | ~, and take jnp.minimum, "
    "jnp.maximum, jnp.any or jnp.all"
)
COMPARE = "a shape cannot depend on numbers: keep all places and choose with jnp.where or a mask"

# Explanations of errors: (name of the type, words of its message, sentence, hint).
MEANINGS = (
    ("TracerBoolConversionError", "", UNDECIDED, CHOOSE),
    ("ValueError", "truth value of an array", UNDECIDED, CHOOSE),
    (
        "TracerArrayConversionError",
        "",
        "{word} is a NumPy function and cannot take an array of the compiled step",
        "call {jax}",
    ),
    ("NonConcreteBooleanIndexError", "", "an array is indexed with a mask", COMPARE),
    ("IndexError", "static integers", "a slice begins or ends at an array", COMPARE),
    ("TypeError", "concrete values", "a shape is made of an array", COMPARE),
    (
        "ConcretizationTypeError",
        "",
        "{word} needs the number in an array, which is unknown while the step is compiled",
        "keep it an array: use {jax}",
    ),
    (
        "TypeError",
        "scalar index",
        "an array is used where Python needs a whole number, as in range() or as a list's index",
        "use a mask instead of a loop: jnp.arange(size) < number",
    ),
    (
        "TracerIntegerConversionError",
        "",
        "an array is used where Python needs a whole number, as in range() or as a list's index",
        "use a mask instead of a loop: jnp.arange(size) < number",
    ),
    (
        "UnexpectedTracerError",
        "",
        "an array of one compiled step was kept for a later one",
        "declare state(start=...) and update it in observe()",
    ),
    ("FrozenInstanceError", "", "a field of the sampler is assigned; samplers are frozen", REPLACE),
    (
        "TypeError",
        "item assignment",
        "an array is changed in place; arrays of JAX cannot be",
        "make a changed copy: logits = logits.at[ids].set(value), or .add(value)",
    ),
    (
        "TypeError",
        "no type annotation",
        "a field has no type",
        "declare it with one: strength: Knob = knob(off=0.0, help=...)",
    ),
    (
        "UserWarning",
        "float64",
        "float64 is asked for, but the engine computes in float32",
        "write jnp.float32, or leave the dtype out",
    ),
)
GROUPS = {
    "Sampler": "jaxllama.samplers",
    "Preset": "jaxllama.presets",
    "PromptFormat": "jaxllama.formats",
    "Checkpoint": "jaxllama.weights",
}
RANDOM_WORDS = ("random", "secrets")
MODULES = {"jnp": "import jax.numpy as jnp", "np": "import numpy as np", "jax": "import jax"}
FUNCTIONS = {"float", "int", "bool", "range", "list", "tuple", "round", "item", "tolist"}
WORD = re.compile(r"\b(if|while|and|or|not|min|max|sorted|any|all|assert|in)\b")
NUMPY_CALL = re.compile(r"\b(?:np|numpy|math)\.(\w+)")


def explain(what: str, error: BaseException, module: str) -> BrokenPlugin:
    """Convert an error that a plugin raised to a BrokenPlugin with place, explanation and hint.

    `what` names the plugin and its current action; `module` is the module of the plugin.
    """
    where = place_of(error, module)
    line = source_line(where)
    kind = type(error).__name__
    for name, words, sentence, hint in MEANINGS:
        if name == kind and words in str(error):
            facts = named_in(line)
            return BrokenPlugin(
                f"{what}: {sentence.format_map(facts)}", where=where, hint=hint.format_map(facts)
            )
    first = str(error).partition("\n")[0]
    return BrokenPlugin(f"{what}: {kind}: {first}", where=where, hint=hint_for(error))


def hint_for(error: BaseException) -> str:
    """Return a hint for a missing import or a wrong attribute of a dataclass; "" otherwise."""
    if isinstance(error, NameError) and error.name in MODULES:
        return f"add `{MODULES[error.name]}`"
    if isinstance(error, AttributeError) and dataclasses.is_dataclass(error.obj):
        there = sorted(name for name in dir(error.obj) if not name.startswith("_"))
        return f"{type(error.obj).__name__} has {', '.join(there)}"
    return ""


def named_in(line: str) -> Mapping[str, str]:
    """Return the word in a source line that JAX cannot compile, and its replacement.

    The key `word` has the Python word or NumPy function in `line`, or "this line" if none is found;
    `jax` has what to call instead.
    """
    called = NUMPY_CALL.search(line)
    if called is not None:
        return {"word": f"`{called[0]}`", "jax": f"jnp.{called[1]}"}
    words = [each for each in re.findall(r"\b(\w+)\(", line) if each in FUNCTIONS]
    word = WORD.search(line)
    found = word[0] if word else f"{words[0]}()" if words else ""
    return {"word": f"`{found}`" if found else "this line", "jax": "a function of jax.numpy"}


def place_of(error: BaseException, module: str) -> str:
    """Return "file:line" of the innermost place in the plugin's package where an error arose.

    "" if there is none. `module` is the dotted name of the plugin's module.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    own = module.partition(".")[0]
    places = [
        f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        for trace in traces(error.__traceback__)
        if str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == own
        and not trace.tb_frame.f_code.co_filename.startswith("<")  # made by dataclasses
    ]
    return places[-1] if places else ""


def traces(trace: TracebackType | None) -> Iterator[TracebackType]:
    """Yield every entry of a traceback, the innermost last."""
    while trace is not None:
        yield trace
        trace = trace.tb_next


def source_line(where: str) -> str:
    """Return the source line at "file:line"; "" if it cannot be read."""
    path, _, number = where.rpartition(":")
    return linecache.getline(path, int(number)).strip() if path else ""


def line_of(kind: type, method: str | None = None) -> str:
    """Return "file:line" of the method `method` of the class `kind`, or of the class itself.

    The class itself is used if `method` is None or not defined there. "" if the place is unknown.
    """
    function = vars(kind).get(method) if method else None
    if isinstance(function, FunctionType):
        return f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}"
    try:
        return f"{inspect.getsourcefile(kind)}:{inspect.getsourcelines(kind)[1]}"
    except (OSError, TypeError):  # no source: exec, a binary
        defined = [each for each in vars(kind).values() if isinstance(each, FunctionType)]
        authored = [each for each in defined if each.__module__ == kind.__module__]
        return f"{authored[0].__code__.co_filename}:1" if authored else ""


# Random numbers that a plugin draws by itself.


def own_random_number(kind: type) -> tuple[str, str] | None:
    """Find a call in a plugin's class that draws random numbers without the request's seed.

    Returns "file:line" and the called name, or None. Allows generators that are made with a seed,
    because they return the same numbers every time.
    """
    try:
        source = inspect.getsourcefile(kind) or ""
        text = "".join(linecache.getlines(source))
        if not any(word in text for word in RANDOM_WORDS):
            return None  # parsing every sampler would slow each start
        tree = ast.parse(text)
    except (OSError, TypeError, SyntaxError):
        return None
    names = imported(tree)
    for function in reached(tree, kind.__name__):
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and draws(dotted(node.func, names), node):
                return f"{source}:{node.lineno}", ast.unparse(node.func)
    return None


def draws(name: str, call: ast.Call) -> bool:
    """Say whether a call draws random numbers without the request's seed.

    `name` is the full dotted name of the called function.
    """
    if name.startswith(("numpy.random.", "random.")):
        makes = name.endswith((".default_rng", ".RandomState", ".Random", ".SeedSequence"))
        return not (makes and call.args) and not name.endswith(".Generator")
    if name in ("jax.random.key", "jax.random.PRNGKey"):
        return all(isinstance(each, ast.Constant) for each in call.args)
    return name.startswith("secrets.") or name == "os.urandom"


def imported(tree: ast.Module) -> dict[str, str]:
    """Map each imported name of a module to its full dotted name."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.expr, names: Mapping[str, str]) -> str:
    """Return the full dotted name that an expression refers to; "" if it is no imported name.

    `names` maps each imported name of the module to its full dotted name.
    """
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute):
        before = dotted(node.value, names)
        return f"{before}.{node.attr}" if before else ""
    return ""


def reached(tree: ast.Module, name: str) -> Iterator[ast.AST]:
    """Yield the methods of the class `name`, and the module's functions that these call."""
    defined = {each.name: each for each in tree.body if isinstance(each, ast.FunctionDef)}
    waiting: list[ast.AST] = [
        method
        for each in ast.walk(tree)
        if isinstance(each, ast.ClassDef) and each.name == name
        for method in each.body
        if isinstance(method, ast.FunctionDef)
    ]
    while waiting:
        function = waiting.pop(0)
        yield function
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id in defined:
                waiting.append(defined.pop(node.id))


# Modules and entry points.


def is_taken(name: str) -> bool:
    """Say whether Python or a package that jaxllama needs has a module of this name."""
    return name in sys.stdlib_module_names or name in DEPENDENCIES


def hiding_file(folder: Path | None = None) -> Path | None:
    """Return a file in `folder` that hides a module of Python or of a package that jaxllama needs.

    The default folder is the first one that Python imports from.
    """
    folder = Path(sys.path[0] if sys.path else "") if folder is None else folder
    if folder == Path(linecache.__file__).parent or folder.name == "site-packages":
        return None
    try:
        there = sorted([*folder.glob("*.py"), *folder.glob("*/__init__.py")])
    except OSError:
        return None
    names = [(each.parent.name if each.name == "__init__.py" else each.stem) for each in there]
    return next((path for path, name in zip(there, names, strict=True) if is_taken(name)), None)


def hiding(error: BaseException) -> BrokenPlugin | None:
    """Return the error to show if a file that hides a module caused `error`; else None."""
    of_module = isinstance(error, AttributeError) and isinstance(error.obj, ModuleType)
    path = hiding_file() if isinstance(error, ImportError) or of_module else None
    if path is None:
        return None
    return BrokenPlugin(hidden_by(path), where=f"{path.resolve()}:1", hint="rename the file")


def hidden_by(path: Path) -> str:
    """Return a sentence that says which module a file hides."""
    name = path.parent.name if path.name == "__init__.py" else path.stem
    return f"{path.name} hides the module {name} of {owner_of(name)}"


def owner_of(name: str) -> str:
    """Return in words who provides the module of this name: Python itself, or a package."""
    return "Python itself" if name in sys.stdlib_module_names else f"the package {name}"


def missing_class(what: str, module: ModuleType, attribute: str) -> BrokenPlugin:
    """Build the error for a plugin whose module lacks the class that its entry point names.

    `what` names the plugin at the beginning of the message; `attribute` is the name of the missing
    class.
    """
    name = module.__name__.partition(".")[0]
    where = f"{getattr(module, '__file__', None) or 'built in'}"
    if is_taken(name):
        return BrokenPlugin(
            f"{what}: {name} is the module of {owner_of(name)} ({where}), which your module of "
            f"that name cannot replace",
            hint="rename your module, also in pyproject.toml, and install the package again",
        )
    own = [
        each
        for each, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    near = difflib.get_close_matches(attribute, own, n=1) or own
    named = f"it defines {', '.join(own)}" if own else "it defines no class"
    mended = near[0] if near else "ClassName"
    return BrokenPlugin(
        f"{what}: the module has no {attribute}; {named}",
        where=f"{where}:1",
        hint=f'write "{module.__name__}:{mended}" in pyproject.toml and install the package again',
    )


def wrong_class(what: str, found: object, base: type) -> BrokenPlugin:
    """Build the error for a plugin `found` that is not a subclass of `base`.

    `what` names the plugin in the message; `base` is the base class of such plugins.
    """
    wanted = f"{base.__module__}.{base.__qualname__}"
    if isinstance(found, ModuleType):
        return BrokenPlugin(
            f"{what} is a whole module; expected a subclass of {wanted}",
            where=f"{getattr(found, '__file__', '')}:1",
            hint=f'name the class, too: "{found.__name__}:ClassName"',
        )
    if not isinstance(found, type):
        return BrokenPlugin(
            f"{what} is {found!r}; expected a subclass of {wanted}", hint="name a class"
        )
    hint = SUBCLASS if base.__name__ == "Sampler" else f"subclass {wanted}"
    for each in found.__mro__:
        if each.__name__ in GROUPS:
            hint = f"register it in the group {GROUPS[each.__name__]}"
    return BrokenPlugin(
        f"{what} is the class {found.__qualname__}, which is no subclass of {wanted}",
        where=line_of(found),
        hint=hint,
    )
