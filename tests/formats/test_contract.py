"""What every prompt format must do, and the check that says so."""

from pathlib import Path

import pytest

from jaxllama.errors import BrokenPlugin, TemplateError
from jaxllama.formats import Message, ModelText, PromptFormat, choose_format
from jaxllama.registry import FORMATS, load_plugins
from jaxllama.testing.formats import SAMPLE, check_format
from jaxllama_formats.chatml import ChatMl
from jaxllama_formats.plain import Plain
from jaxllama_formats.template import Template

INSTALLED = load_plugins(FORMATS, PromptFormat)
CHATML = frozenset({"<|im_start|>", "<|im_end|>"})


@pytest.mark.parametrize("name", sorted(INSTALLED.loaded))
def test_every_installed_format_keeps_the_contract(name):
    assert INSTALLED.loaded[name].name == name
    check_format(INSTALLED.loaded[name])


def test_no_installed_format_is_broken():
    assert INSTALLED.broken == {}
    assert {"chatml", "plain", "template"} <= INSTALLED.loaded.keys()


def test_every_installed_format_is_described():
    readme = (Path(__file__).parents[2] / "plugins/README.md").read_text()
    described = readme.partition("## The formats")[2]
    assert [name for name in INSTALLED.loaded if f"`{name}`" not in described] == []


class Good(PromptFormat):
    name = "good"

    def render(self, messages, *, answer=True):
        return "".join(f"{m.role}: {m.content}\n" for m in messages) + "assistant:" * answer


class Unnamed(Good):
    name = "Not A Word"


class StopIsText(Good):
    stop = "<|im_end|>"


class SuitsWithWords(Good):
    @classmethod
    def suits(cls, model):
        return model.template


class Bytes(Good):
    def render(self, messages, *, answer=True):
        return super().render(messages, answer=answer).encode()


class Forgetful(Good):
    def render(self, messages, *, answer=True):
        return super().render(messages[1:], answer=answer)


class Echoing(Good):
    def render(self, messages, *, answer=True):
        return super().render([*messages, *messages], answer=answer)


class Backwards(Good):
    def render(self, messages, *, answer=True):
        return super().render(messages[::-1], answer=answer)


class Trimming(Good):
    def render(self, messages, *, answer=True):
        return super().render(messages, answer=answer).replace("\n", " ")


class Counting(Good):
    turns = 0

    def render(self, messages, *, answer=True):
        type(self).turns += 1
        return f"{self.turns}{super().render(messages, answer=answer)}"


class Injectable(Good):
    """Puts users' text into a template instead of into its variables."""

    def render(self, messages, *, answer=True):
        source = super().render(messages, answer=answer).replace("{% tags %}", "")
        return Template.for_model(ModelText(template=source)).render((), answer=answer)


class AnswerElsewhere(Good):
    def render(self, messages, *, answer=True):
        return "answer:" * answer + super().render(messages, answer=False)


class Fragile(Good):
    def render(self, messages, *, answer=True):
        return {"user": "U", "assistant": "A", "system": "S"}[messages[-1].role] and super().render(
            messages, answer=answer
        )


PLANTED = {
    Unnamed: "is named 'Not A Word'",
    StopIsText: "stops at '<|im_end|>'",
    SuitsWithWords: "suits gives",
    Bytes: "renders a bytes",
    Forgetful: "0 times; expected once",
    Echoing: "2 times; expected once",
    Backwards: "before what was said earlier",
    Trimming: "0 times; expected once",
    Counting: "renders the same messages differently",
    Injectable: "0 times; expected once",
    AnswerElsewhere: "expected the second to continue the first",
    Fragile: "raises IndexError",
}


def test_the_check_accepts_a_good_format():
    check_format(Good)


@pytest.mark.parametrize("bad", PLANTED)
def test_the_check_finds_a_planted_fault(bad):
    with pytest.raises(AssertionError) as caught:
        check_format(bad)
    assert PLANTED[bad] in str(caught.value)
    assert bad.__name__ in str(caught.value)


def chosen(model: ModelText) -> type[PromptFormat]:
    return type(choose_format(INSTALLED.loaded, model))


def test_the_models_template_comes_first_then_its_tokens_then_nothing():
    assert chosen(SAMPLE) is Template
    assert chosen(ModelText(special=CHATML)) is ChatMl
    assert chosen(ModelText(special=frozenset({"<s>"}))) is Plain


def test_formats_of_last_resort_are_asked_last():
    class Picky(Good):
        name = "zealous"

        @classmethod
        def suits(cls, model):
            return model.name == "mine"

    formats = {"plain": Plain, "zealous": Picky}
    assert type(choose_format(formats, ModelText(name="mine"))) is Picky
    assert type(choose_format(formats, ModelText(name="other"))) is Plain


def test_no_suitable_format_is_said():
    with pytest.raises(BrokenPlugin, match="no prompt format suits this model; installed: good"):
        choose_format({"good": Good}, ModelText())


def test_a_refusing_template_is_within_the_contract():
    strict = ModelText(
        template="{% if messages|length == 1 and messages[0].role != 'user' %}"
        "{{ raise_exception('user first') }}{% endif %}" + (SAMPLE.template or "")
    )
    check_format(Template, strict)
    with pytest.raises(TemplateError, match="refuses these messages: user first"):
        Template.for_model(strict).render([Message("assistant", "hm")])
