"""The sandbox: a Jinja environment that confines a hostile template and limits its work.

Used by `template.py`: `compile_template` once per model, `render` for every prompt. Must not know
messages or models.

A template can load nothing and call only the methods of a short list. Every operation whose cost
grows with its input is charged to a `Meter`: loops, calls, filters, tests, comparisons,
concatenations, slices, captured blocks and the output. Jinja generates code for some of these
operations, and an environment cannot intercept generated code; `Metering` therefore rewrites them
into filters before code is generated. A rendering runs in the calling thread and cannot be killed,
so no single operation may take long.
"""

import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from types import CodeType
from typing import Any

import jinja2
from jinja2 import Undefined, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from jaxllama.errors import BadTokenizer, TemplateError
from jaxllama_formats.filters import (
    JOIN,
    LOOP,
    MADE,
    WEIGH,
    Filters,
    check_product,
    check_text_call,
    weighing,
)
from jaxllama_formats.meter import Meter

MAX_SOURCE = 48 << 10  # characters of a template; compile time is proportional
MAX_RANGE = 100_000
MAX_DATE_FORMAT = 64
MAY_BE_MISSING = ("defined", "undefined", "default", "d")  # tests and filters for missing names
MAX_MESSAGE = 300  # characters of a template's own error message that are shown

TEXT_METHODS = (
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit "
    "islower isnumeric isspace istitle isupper join lower lstrip partition removeprefix "
    "removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines startswith "
    "strip swapcase title upper"
)
METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(TEXT_METHODS.split()),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    LoopContext: frozenset(name for name in dir(LoopContext) if not name.startswith("_")),
}


def compile_template(source: str) -> CodeType:
    """Compile a template; raises BadTokenizer if it is too long or does not compile."""
    if len(source) > MAX_SOURCE:
        raise BadTokenizer(
            f"the chat template has {len(source)} characters; expected at most {MAX_SOURCE}"
        )
    environment = Sandbox(Meter())
    try:
        tree = Metering().visit(environment.parse(source))
        return environment.compile(tree)
    except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError, ValueError) as error:
        raise BadTokenizer(f"the chat template does not compile: {described(error)}") from error


def undefined_names(source: str, variables: Iterable[str]) -> list[str]:
    """Return the sorted names that a template uses and neither it nor the caller defines.

    `variables` are the caller's names. Names that the template tests by `x is defined`, `x is
    undefined` or `x | default(...)` are left out.
    """
    environment = Sandbox(Meter())
    tree = environment.parse(source)
    known = {*variables, *environment.globals}
    tested = {
        node.node.name
        for node in tree.find_all((nodes.Test, nodes.Filter))
        if node.name in MAY_BE_MISSING and isinstance(node.node, nodes.Name)
    }
    return sorted(meta.find_undeclared_variables(tree) - known - tested)


def render(
    code: CodeType, variables: Mapping[str, Any], input_bytes: int, *, is_strict: bool = False
) -> str:
    """Run a compiled template and return its output; raises TemplateError for every failure.

    `variables` are the template's variables by name. `input_bytes` is their size: the more, the
    more memory the template may use. With `is_strict`, printing an undefined value, such as a
    misspelt field, is an error.
    """
    meter = Meter(input_bytes)
    environment = Sandbox(meter, is_strict=is_strict)
    template = environment.template_class.from_code(
        environment, code, environment.make_globals(None)
    )
    try:
        return template.render(variables)
    except TemplateError:
        raise
    except Exception as error:  # a template can raise any exception that its values raise
        raise TemplateError(f"the chat template fails: {described(error)}") from error


class Sandbox(ImmutableSandboxedEnvironment):
    """The Jinja environment of one rendering; charges one meter."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, meter: Meter, *, is_strict: bool = False) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # or Jinja computes constant expressions uncharged
            extensions=[loopcontrols, GenerationBlock],
            finalize=print_value,
            cache_size=0,
        )
        self.meter, self.is_strict = meter, is_strict
        tests: dict[str, Any] = dict(TESTS)
        self.filters = Filters(meter).by_name()
        self.tests = {name: weighing(meter, test) for name, test in tests.items()}
        self.globals = {
            "range": bounded_range,
            "dict": dict,
            "namespace": Namespace,
            "raise_exception": raise_exception,
            "strftime_now": strftime_now,
        }

    def concat(self, parts: Iterable[str]) -> str:
        """Join the output parts of a template, a macro or a captured block."""
        return "".join([self.meter.made(part) for part in parts])

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Say whether a template may read attribute `attr` of `obj`; `value` is the attribute.

        Allowed are the methods in METHODS, and the public names of a Jinja namespace.
        """
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        return attr in METHODS.get(type(obj), ()) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Refuse `str.format`: the width of a field can request any amount of memory."""
        del value

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Evaluate `obj.attribute`; charges one step."""
        self.meter.step()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Evaluate `obj[argument]`; charges the argument, because hashing visits all its items."""
        self.meter.weigh(argument)
        return super().getitem(obj, argument)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call `obj`, a global, a macro, a recursive loop or an allowed method, for the template.

        The call, its arguments and its result are charged to the meter, which limits the template's
        steps and memory.
        """
        self.meter.step()
        owner = getattr(obj, "__self__", None)
        if isinstance(obj, LoopContext):
            args = (self.meter.take(args[0]), *args[1:])
        elif not isinstance(obj, Macro):
            self.meter.weigh(*args, *kwargs.values())
        if isinstance(owner, str):
            check_text_call(self.meter, owner, obj.__name__, args)
        result = self.meter.made(super().call(context, obj, *args, **kwargs))
        if isinstance(owner, str):
            self.meter.allocate(self.meter.weigh(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left OPERATOR right` for the operator `+`, `*` or `%`; refuse `**`.

        Raises TemplateError before the result gets too large, and for `%` if `left` is no number.
        """
        del context
        self.meter.step()
        if operator == "*":
            check_product(self.meter, left, right)
        elif operator == "+":
            self.meter.fits(sys.getsizeof(left) + sys.getsizeof(right))
        elif operator == "**" or not isinstance(left, int | float):
            raise TemplateError(
                f"the chat template uses {operator} on a {type(left).__name__}; this is refused, "
                f"because a few characters can make gigabytes"
            )
        return self.meter.made(self.binop_table[operator](left, right))


class Metering(NodeTransformer):
    """Rewrites operations that generated code computes itself into filters that charge."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja's names
        """Rewrite a loop so that every iteration is charged."""
        self.generic_visit(node)
        node.iter = filtered(LOOP, node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        """Rewrite the concatenation `a ~ b` so that it is charged."""
        self.generic_visit(node)
        return filtered(JOIN, nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        """Rewrite `a == b` and `a in b` so that all items of nested lists are charged."""
        self.generic_visit(node)
        node.expr = weighed(node.expr)
        for operand in node.ops:
            operand.expr = weighed(operand.expr)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        """Rewrite a pair of a dictionary so that its key, which is hashed, is charged."""
        self.generic_visit(node)
        node.key = weighed(node.key)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        """Rewrite a slice so that the copy which it makes is charged."""
        self.generic_visit(node)
        return filtered(MADE, node) if isinstance(node.arg, nodes.Slice) else node


def filtered(name: str, value: nodes.Node) -> nodes.Filter:
    """Build the Jinja syntax node of `value | name`."""
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


def weighed(value: nodes.Expr) -> nodes.Expr:
    """Wrap a value in the filter that charges for its items, unless it is a constant."""
    return value if isinstance(value, nodes.Const) else filtered(WEIGH, value)


class GenerationBlock(Extension):
    """Accepts `{% generation %}`, a mark for training, and renders its contents unchanged."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Parse `{% generation %}` and its end; return the statements between these tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@jinja2.pass_context
def print_value(context: Context, value: Any) -> str:
    """Return the text for `{{ value }}`; in a strict sandbox, refuse an undefined value."""
    environment = context.environment
    assert isinstance(environment, Sandbox)
    if environment.is_strict and isinstance(value, Undefined):
        raise TemplateError(
            f"the chat template prints {value._undefined_name!r}, which is not defined; correct "
            f"the name, or write `| default('')` where it may be missing"
        )
    return Filters(environment.meter).print(value)


def bounded_range(*bounds: int) -> range:
    """Return `range(*bounds)`; raises TemplateError above MAX_RANGE numbers."""
    numbers = range(*bounds)
    if len(numbers) > MAX_RANGE:
        raise TemplateError(
            f"the chat template counts to {len(numbers)}; expected at most {MAX_RANGE}"
        )
    return numbers


def raise_exception(message: object) -> None:
    """Raise TemplateError with a message from the template, which refuses a conversation."""
    raise TemplateError(f"the chat template refuses these messages: {str(message)[:MAX_MESSAGE]}")


def strftime_now(form: str) -> str:
    """Return the local date and time in the `strftime` format `form`."""
    if len(form) > MAX_DATE_FORMAT:
        raise TemplateError(f"the chat template's date format has {len(form)} characters")
    return datetime.now().strftime(form)


def described(error: BaseException) -> str:
    """Return the type of an error and the beginning of its message."""
    return f"{type(error).__name__}: {str(error)[:MAX_MESSAGE]}"
