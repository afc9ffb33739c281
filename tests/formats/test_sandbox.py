"""Hostile templates end soon, in little memory, and reach nothing."""

import time
import tracemalloc

import pytest

from jaxllama.errors import BadTokenizer, TemplateError
from jaxllama.formats import Message, ModelText
from jaxllama_formats import meter, sandbox
from jaxllama_formats.template import Template

HELLO = (Message("user", "hello"),)
NESTED = (
    "{% set ns = namespace(x=(1,), y=(1,)) %}{% for i in range(60) %}"
    "{% set ns.x = (ns.x, ns.x) %}{% set ns.y = (ns.y, ns.y) %}{% endfor %}"
)
BIG = "{% set big = 'x' * 1000000 %}"


def run(source: str, messages=HELLO, **model: str) -> str:
    return Template.for_model(ModelText(template=source, **model)).render(messages)


def doubled(step: str) -> str:
    """Sixty times `x` becomes twice as long."""
    return "{% set x = 'xxxxxxxx' %}" + step * 60 + "{{ x | length }}"


ENDLESS = {
    "range": "{% for i in range(1000000000) %}{% endfor %}",
    "nested ranges": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "branching": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "recursive loop": "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "lazy chains": "{% for i in range(9999) %}{{ range(9999) | map('string') | list }}{% endfor %}",
    "search": BIG + "{% for i in range(99999) %}{% if 'y' in big %}{% endif %}{% endfor %}",
    "count": BIG + "{% for i in range(99999) %}{% set n = big.count('y') %}{% endfor %}",
    "equality": NESTED + "{{ ns.x == ns.y }}",
    "membership": NESTED + "{{ ns.x in {} }}",
    "print": NESTED + "{{ ns.x }}",
    "text": NESTED + "{{ ns.x | string | length }}",
    "trim": NESTED + "{{ ns.x | trim }}",
    "joined": NESTED + "{{ ns.x | join }}",
    "mapped": NESTED + "{{ [ns.x] | map('string') | list }}",
    "sorted": NESTED + "{{ [ns.x, ns.y] | sort }}",
    "concatenated": NESTED + "{{ ns.x ~ 'a' }}",
    "json": NESTED + "{{ ns.x | tojson }}",
    "key": NESTED + "{{ {ns.x: 1} }}",
    "item": NESTED + "{{ {}[ns.x] }}",
    "get": NESTED + "{{ {}.get(ns.x) }}",
    "index": NESTED + "{{ [ns.x].index(ns.y) }}",
    "test": NESTED + "{{ ns.x is eq(ns.y) }}",
    "changed": NESTED
    + "{% for i in [1,2] %}{{ loop.changed(ns.x if i == 1 else ns.y) }}{% endfor %}",
    "excuse": NESTED + "{{ raise_exception(ns.x) }}",
}

HUGE = {
    "product": "{{ 'x' * 10000000000 }}",
    "list": "{{ [1] * 10000000000 }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "number": "{% set ns = namespace(n=3) %}"
    "{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "ljust": "{{ 'x'.ljust(1000000000) }}",
    "to_bytes": "{{ (1).to_bytes(10000000000) }}",
    "indent": "{{ 'a' | indent(1000000000) }}",
    "json indent": "{{ messages | tojson(indent=1000000000) }}",
    "date": "{{ strftime_now('%Y' * 100000) }}",
    "autoescape": "{% autoescape 'x' * 10000000000 %}{% endautoescape %}",
    "plus": doubled("{% set x = x + x %}"),
    "tilde": doubled("{% set x = x ~ x %}"),
    "block": doubled("{% set x %}{{ x }}{{ x }}{% endset %}"),
    "join": doubled("{% set x = [x, x] | join %}"),
    "str.join": doubled("{% set x = ''.join([x, x]) %}"),
    "replace": doubled("{% set x = x | replace('x', 'xx') %}"),
    "str.replace": doubled("{% set x = x.replace('x', 'xx') %}"),
    "empty replace": doubled("{% set x = x.replace('', 'xx') %}"),
    "lists": "{% set x = [1] %}" + "{% set x = x + x %}" * 60,
    "output": BIG + "{% for i in range(99999) %}{{ big }}{% endfor %}",
    "printed list": BIG + "{{ [big] * 99999 }}",
    "slices": BIG
    + "{% set ns = namespace(l=[]) %}"
    + "{% for i in range(999) %}{% set ns.l = ns.l + [big[1:]] %}{% endfor %}",
    "splits": "{% set s = 'ab ' * 500000 %}"
    "{% for i in range(99) %}{{ s.split() | length }}{% endfor %}",
    "macro": BIG
    + "{% macro m() %}{% for i in range(999) %}{{ big }}{% endfor %}{% endmacro %}{{ m() }}",
    "filter block": BIG
    + "{% filter upper %}{% for i in range(999) %}{{ big }}{% endfor %}{% endfilter %}",
}

REACHING = (
    "{{ messages.__class__.__mro__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ messages | map(attribute='__class__') | first }}x{{ 1 / 0 }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends '/etc/passwd' %}",
    "{% set _ = messages.append(1) %}",
    "{% set _ = messages[0].update({'a': 1}) %}",
    "{{ lipsum() }}",
)

UNCOMPILABLE = {
    "syntax": "{% for %}",
    "unclosed": "{% if x %}",
    "unknown filter": "{{ x | attr('y') }}",
    "parentheses": "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
    "chain": "{{ 1" + " + 1" * 9000 + " }}",
    "loops": "{% for i in [1] %}" * 50 + "{% endfor %}" * 50,
    "conditions": "{% if 1 %}" * 900 + "{% endif %}" * 900,
    "number": "{{ " + "9" * 40_000 + " }}",
    "length": "x" * (sandbox.MAX_SOURCE + 1),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_endless_work_is_refused_in_time(case, monkeypatch):
    monkeypatch.setattr(meter, "MAX_SECONDS", 0.1)
    start = time.process_time()
    with pytest.raises(TemplateError, match=r"expected it to end|makes more|counts to|fails"):
        run(ENDLESS[case])
    assert time.process_time() - start < 0.6


@pytest.mark.parametrize("case", HUGE)
def test_huge_values_are_refused_before_they_are_made(case):
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError):
            run(HUGE[case])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20
    assert time.process_time() - start < 3  # tracing slows it down


@pytest.mark.parametrize("source", REACHING)
def test_a_template_reaches_nothing_but_its_variables(source):
    with pytest.raises(TemplateError):
        run(source)


@pytest.mark.parametrize("case", UNCOMPILABLE)
def test_a_template_that_does_not_compile_is_a_bad_tokenizer(case):
    start = time.process_time()
    with pytest.raises(BadTokenizer, match="chat template"):
        Template.for_model(ModelText(template=UNCOMPILABLE[case]))
    assert time.process_time() - start < 2


def test_the_limits_refuse_nothing_ordinary():
    source = (
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' + m.content | trim + '\n' }}{% endfor %}"
    )
    many = [Message("user", f" turn {turn} ") for turn in range(2048)]
    assert run(source, many).count("<|user|>") == 2048
    long = [Message("user", "é" * 1_000_000)] * 3
    assert len(run(source, long)) > 3_000_000


def test_after_a_refusal_the_template_works_again():
    template = Template.for_model(
        ModelText(template="{% if messages|length > 1 %}{{ 'x' * 10**9 }}{% endif %}ok")
    )
    with pytest.raises(TemplateError):
        template.render(HELLO * 2)
    assert template.render(HELLO) == "ok"


def test_an_error_tells_its_kind_and_is_short():
    with pytest.raises(TemplateError, match="fails: ZeroDivisionError") as caught:
        run("{{ 1 / 0 }}")
    assert len(str(caught.value)) < 400
    with pytest.raises(TemplateError, match="refuses these messages: xxx") as caught:
        run("{{ raise_exception('x' * 10000) }}")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{{ messages[-1]['content'][:2] ~ messages[0].role.upper() }}", "heUSER"),
        ("{{ {'a': [1, none, true], 'ü': '<'} | tojson }}", '{"a": [1, null, true], "ü": "<"}'),
        ("{{ [1, 2] | tojson(indent=2) }}", "[\n  1,\n  2\n]"),
        ("{% for i in range(9) %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% generation %}a{% endgeneration %}b", "ab"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        (
            "{% set ns = namespace(n=0) %}{% for m in 'abc' %}{% set ns.n = ns.n + 1 %}{% endfor %}"
            "{{ ns.n }}",
            "3",
        ),
        ("{{ tools is none }} {{ nothing is defined }} {{ strftime_now('%%') }}", "True False %"),
        ("{% macro m(a, b='z') %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}", "1z"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ 'a-b'.split('-') | join('+') }} {{ ' x '.strip() }}", "a+b x"),
        ("{{ 'ab' | replace('b', 'c') }} {{ 'ab'.replace('b', 'c') }}", "ac ac"),
        ("{{ dict(a=1).items() | list }} {{ '<' | e }} {{ '<' | safe }}", "[('a', 1)] &lt; <"),
        ("{{ 7 % 4 }} {{ -3 * 2 }} {{ 'x' * 3 }} {{ [1] + [2] }}", "3 -6 xxx [1, 2]"),
    ],
)  # fmt: skip
def test_what_published_templates_use_works(source, expected):
    assert run(source, begin="<s>", end="</s>") == expected


def test_without_metering_the_loops_would_not_be_seen():
    """The rewriting of the tree is what charges for loops."""
    spent = meter.Meter()
    code = sandbox.compile_template("{% for i in range(1000) %}{% endfor %}")
    environment = sandbox.Sandbox(spent)
    template = environment.template_class.from_code(environment, code, dict(environment.globals))
    template.render()
    assert spent.steps < meter.MAX_STEPS - 1000
    bare = sandbox.Sandbox(meter.Meter())
    bare.from_string("{% for i in range(1000) %}{% endfor %}").render()
    assert bare.meter.steps > meter.MAX_STEPS - 100


def test_a_model_without_a_template_cannot_use_it():
    with pytest.raises(BadTokenizer, match="brings no chat template"):
        Template.for_model(ModelText())


def own(source: str, messages=HELLO) -> str:
    """What a template file of the user's own renders."""
    return Template.for_model(ModelText(template=source, is_users_template=True)).render(messages)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("{{ nothere }}", "nothere"),
        ("{% if nothere %}a{% endif %}", "nothere"),
        ("{% for m in mesages %}{{ m.content }}{% endfor %}", "mesages"),
    ],
)
def test_a_name_that_nobody_defines_is_an_error_in_a_template_of_ones_own(source, name):
    with pytest.raises(BadTokenizer, match=f"uses '{name}', which is not defined; it may use mess"):
        own(source)


def test_printing_a_field_that_is_not_there_is_an_error_in_a_template_of_ones_own():
    with pytest.raises(TemplateError, match="prints 'contnt', which is not defined"):
        own("{% for m in messages %}{{ m.contnt }}{% endfor %}")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% if not date is defined %}{% set date = 'today' %}{% endif %}{{ date }}", "today"),
        ("{{ system | default('none') }}", "none"),
        ("{% if custom is defined and custom %}x{% endif %}y", "y"),
        (
            "{% for m in messages %}{% if m.tool_calls %}x{% endif %}{{ m.content }}{% endfor %}",
            "hello",
        ),
        ("{% if tools %}x{% endif %}{{ messages[0]['content'] }}", "hello"),
        ("{% macro say(m) %}{{ m.content }}{% endmacro %}{{ say(messages[0]) }}", "hello"),
    ],
)
def test_names_that_may_be_missing_are_no_error_in_a_template_of_ones_own(source, text):
    assert own(source) == text


def test_templates_of_models_may_use_names_that_nobody_defines():
    assert run("a{{ nothere }}b{{ messages[0].nothere }}") == "ab"
