"""The chat page in a real browser, on the scripted engine."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxllama.registry import PRESETS, SAMPLERS, load_plugins
from jaxllama.sampling import Preset, Sampler, knobs_of
from tests.serve.browsing import HOSTILE, RICH, Site, act, done, say, tab_to, texts, visit

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

from playwright.sync_api import Page, expect


def open_settings(page: Page) -> None:
    page.get_by_role("button", name="Settings", exact=True).click()


def test_an_answer_appears_as_it_is_written(page: Page, site: Site):
    with site.holding("Once upon a", " time.") as release:
        page.get_by_label("Message", exact=True).fill("hold")
        page.keyboard.press("Enter")
        expect(page.locator(".message .body").nth(1)).to_contain_text("Once upon")
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        release()
        done(page)
    assert texts(page) == ["hold", "Once upon a time."]
    assert "tokens" in page.locator(".stats").last.inner_text()


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stopping_keeps_what_came_and_ends_the_request(page: Page, site: Site, how: str):
    with site.holding("Once upon a", " time." * 50) as release:
        page.get_by_label("Message", exact=True).fill("hold")
        page.keyboard.press("Enter")
        expect(page.locator(".message .body").nth(1)).to_contain_text("Once upon")
        with page.expect_event("requestfailed"):
            if how == "button":
                page.get_by_role("button", name="Stop").click()
            else:
                page.keyboard.press("Escape")
        done(page)
        release()
    assert texts(page)[1].startswith("Once upon")
    assert "time. time." not in texts(page)[1]
    assert "stopped" in page.locator(".stats").last.inner_text()
    say(page, "again")
    assert texts(page)[3].startswith("Answer")


def test_an_edited_question_is_answered_anew_and_the_old_line_is_kept(page: Page, site: Site):
    say(page, "first")
    say(page, "second")
    act(page, 0, "Edit")
    page.get_by_label("Text of this message").fill("changed")
    page.get_by_role("button", name="Save and answer").click()
    done(page)
    assert site.requests[-1]["messages"] == [{"role": "user", "content": "changed"}]
    shown = texts(page)
    assert shown[0] == "changed"
    assert shown[1].endswith("to changed.")
    assert len(shown) == 2
    act(page, 0, "Version before")
    assert texts(page)[0] == "first"
    assert texts(page)[2] == "second"


def test_an_edit_can_be_kept_or_dropped_without_an_answer(page: Page, site: Site):
    say(page, "first")
    act(page, 1, "Edit")
    page.get_by_label("Text of this message").fill("Something else")
    page.keyboard.press("Escape")
    assert texts(page)[1].startswith("Answer")
    act(page, 1, "Edit")
    page.get_by_label("Text of this message").fill("Something else")
    page.keyboard.press("Control+Enter")
    assert texts(page) == ["first", "Something else"]
    assert len(site.requests) == 1


def test_an_answer_is_regenerated_and_the_old_one_stays(page: Page):
    say(page, "first")
    old = texts(page)[1]
    act(page, 1, "Regenerate")
    versions = page.locator(".message").nth(1).locator(".versions")
    expect(versions).to_contain_text("2 of 2")
    done(page)
    new = texts(page)[1]
    assert new != old
    assert new.endswith("to first.")
    act(page, 1, "Version before")
    assert texts(page) == ["first", old]
    expect(versions).to_contain_text("1 of 2")
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert texts(page) == ["first", old]
    act(page, 1, "Next version")
    assert texts(page) == ["first", new]


def test_any_message_can_be_deleted_and_brought_back(page: Page, site: Site):
    say(page, "first")
    say(page, "second")
    before = texts(page)
    act(page, 1, "Delete")
    assert texts(page) == [before[0], *before[2:]]
    page.get_by_role("button", name="Undo").click()
    assert texts(page) == before
    act(page, 2, "Delete")
    say(page, "third")
    roles = [turn["role"] for turn in site.requests[-1]["messages"]]
    assert roles == ["user", "assistant", "assistant", "user"]


def test_the_last_answer_is_continued(page: Page, site: Site):
    say(page, "first")
    old = texts(page)[1]
    act(page, 1, "Continue")
    page.wait_for_function(
        "n => document.querySelectorAll('.body')[1].innerText.length > n", arg=len(old)
    )
    done(page)
    request = site.requests[-1]
    assert request["continue_final_message"] is True
    assert request["add_generation_prompt"] is False
    assert request["messages"][-1] == {"role": "assistant", "content": old}
    assert texts(page)[1].startswith(old)


def test_a_changed_knob_is_in_the_request_and_no_other(page: Page, site: Site):
    open_settings(page)
    page.get_by_label("Temperature", exact=True).fill("0.5")
    page.locator("summary", has_text=re.compile(r"^Top k")).click()
    page.get_by_label("Top k", exact=True).fill("7")
    page.locator("summary", has_text=re.compile(r"^Logit bias")).click()
    page.get_by_label("Logit bias", exact=True).fill("65 = -3\n66: 2.5")
    page.get_by_label("Stop", exact=True).fill("END\\n\nstop\\\\n")
    page.locator("summary", has_text="Form of the answer").click()
    page.get_by_label("Regex", exact=True).fill("A\\n?.*")
    page.get_by_label("System prompt").fill("Be brief.")
    say(page, "first")
    request = site.requests[-1]
    own = {"model", "messages", "stream", "stream_options", "logprobs", "top_logprobs"}
    own.add("context_overflow")
    changed = {name: value for name, value in request.items() if name not in own}
    assert changed == {
        "temperature": 0.5,
        "top_k": 7,
        "logit_bias": {"65": -3, "66": 2.5},
        "stop": ["END\n", "stop\\n"],
        "regex": "A\\n?.*",
    }
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}

    page.get_by_label("Top k", exact=True).fill("0")
    page.get_by_role("button", name="Reset Temperature").click()
    page.get_by_label("Logit bias", exact=True).fill("")
    page.get_by_label("Stop", exact=True).fill("")
    page.get_by_label("Regex", exact=True).fill("")
    say(page, "second")
    assert set(site.requests[-1]) == own


@pytest.fixture
def advised(page: Page, site: Site) -> Iterator[Page]:
    """The page where the model's maker recommends some sampling."""
    site.defaults |= {"temperature": 0.2, "top_p": 0.9}
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    open_settings(page)
    yield page
    site.defaults.clear()


def test_recommended_sampling_is_where_the_controls_start(advised: Page, site: Site):
    page, heat = advised, advised.get_by_label("Temperature", exact=True)
    assert heat.input_value() == "0.2"
    assert (
        heat.evaluate("field => field.parentElement.querySelector('[type=range]').value") == "0.2"
    )
    expect(page.locator("#knob-temperature-help")).to_contain_text(
        "Recommended for this model: 0.2"
    )
    group = page.locator("summary", has_text=re.compile(r"^Top p"))
    expect(group.locator(".value")).to_have_text("0.9 (model)")
    say(page, "first")
    assert not {"temperature", "top_p"} & set(site.requests[-1])


def test_a_recommendation_can_be_switched_off_and_taken_back(advised: Page, site: Site):
    page = advised
    group = page.locator("summary", has_text=re.compile(r"^Top p"))
    group.click()
    page.get_by_label("Top p", exact=True).fill("1")
    say(page, "first")
    assert site.requests[-1]["top_p"] == 1
    assert "temperature" not in site.requests[-1]
    expect(group.locator(".value")).to_have_text("1")
    page.get_by_role("button", name="Reset Top p", exact=True).click()
    assert page.get_by_label("Top p", exact=True).input_value() == "0.9"
    say(page, "second")
    assert "top_p" not in site.requests[-1]
    page.get_by_label("Temperature", exact=True).fill("0.7")
    page.get_by_label("Temperature", exact=True).fill("0.2")
    say(page, "third")
    assert "temperature" not in site.requests[-1]


def test_every_knob_of_every_installed_sampler_has_a_control(page: Page):
    open_settings(page)
    for sampler in load_plugins(SAMPLERS, Sampler).loaded.values():
        for name, spec in knobs_of(sampler).items():
            control = page.locator(f'#knobs [name="{name}"]')
            assert control.count() == 1, name
            described = control.get_attribute("aria-describedby").split()[0]
            assert spec.help.lower() in page.locator(f"#{described}").text_content().lower()
    offered = page.locator("#format option").evaluate_all("all => all.map(each => each.value)")
    assert set(offered) == {"", "chatml", "plain", "template"}


def test_a_preset_sets_its_knobs_and_names_itself_while_they_are_so(page: Page, site: Site):
    name, preset = next(iter(load_plugins(PRESETS, Preset).loaded.items()))
    open_settings(page)
    choice = page.get_by_label("Preset")
    page.get_by_label("Max tokens", exact=True).fill("20")
    choice.select_option(name)
    say(page, "first")
    sent = site.requests[-1]
    assert {knob: sent[knob] for knob in preset.knobs} == dict(preset.knobs)
    assert sent["max_tokens"] == 20
    assert choice.input_value() == name
    page.get_by_label("Temperature", exact=True).fill("1.23")
    assert choice.input_value() == ""
    page.get_by_role("button", name="Reset all").click()
    say(page, "second")
    assert not set(site.requests[-1]) & set(preset.knobs)


def test_a_value_out_of_bounds_is_explained_and_not_sent(page: Page, site: Site):
    open_settings(page)
    page.locator("summary", has_text=re.compile(r"^Top p")).click()
    page.get_by_label("Top p", exact=True).fill("1.5")
    expect(page.locator("#knob-top_p-problem")).to_have_text("1.5 is too high: at most 1")
    page.get_by_label("Message", exact=True).fill("first")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Top p", exact=True)).to_be_focused()
    assert site.requests == []
    assert page.get_by_label("Message", exact=True).input_value() == "first"


def test_another_prompt_format_is_asked_for(page: Page, site: Site):
    open_settings(page)
    page.get_by_label("System prompt").fill("Be brief. ")
    say(page, "hello")
    assert site.script.prompt == "system\nBe brief. \nuser\nhello\nassistant\n"
    page.get_by_role("button", name="New chat").click()
    page.get_by_label("Prompt format").select_option("plain")
    say(page, "hello")
    assert site.script.prompt == "Be brief. hello"


def test_a_reload_keeps_conversation_and_settings(page: Page):
    open_settings(page)
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature", exact=True).fill("0.5")
    say(page, "first")
    before = texts(page)
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert texts(page) == before
    assert page.get_by_label("System prompt").input_value() == "Be brief."
    assert page.get_by_label("Temperature", exact=True).input_value() == "0.5"


def test_a_reload_keeps_settings_before_anything_is_said(page: Page):
    open_settings(page)
    page.get_by_label("Temperature", exact=True).fill("0.5")
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.get_by_label("Temperature", exact=True).input_value() == "0.5"
    assert page.locator("#conversations button").count() == 0


def test_a_page_opened_while_the_model_loads_waits_for_it(page: Page, site: Site):
    loading = {"error": {"message": "the model is still loading"}}
    page.route("**/v1/models", lambda route: route.fulfill(status=503, json=loading), times=1)
    visit(page, site.url)
    expect(page.locator("#model")).to_have_text("The model is loading…")
    expect(page.locator("#model")).to_have_text("scripted")
    say(page, "first")
    assert len(texts(page)) == 2


def test_hostile_answers_stay_text(page: Page):
    say(page, "hostile")
    for _ in range(2):
        body = page.locator(".message .body").nth(1)
        assert "<script>hacked = 1</script>" in body.text_content()
        assert "<img src=x onerror='hacked = 1'>" in body.text_content()
        assert "[click](javascript:hacked=1)" in body.text_content()
        assert body.locator("script, img, svg, iframe").count() == 0
        for link in body.locator("a").all():
            assert link.get_attribute("href") == "https://evil.test/x.png"
            assert link.get_attribute("rel") == "noopener noreferrer nofollow"
        assert page.evaluate("window.hacked") is None
        page.get_by_role("button", name="Show tokens").click()
    say(page, "<img src=x onerror='hacked = 1'>")
    assert page.locator("#messages img").count() == 0
    assert page.evaluate("window.hacked") is None


def test_a_little_markdown_is_shown(page: Page):
    say(page, "markdown")
    body = page.locator(".message .body").nth(1)
    assert body.locator("strong").inner_text() == "bold"
    assert body.locator("em").inner_text() == "soft"
    assert body.locator("li").all_inner_texts() == ["one", "two code"]
    assert body.locator("pre").inner_text() == "x = 1"
    assert body.locator("p").last.inner_text() == "2 * 3 * 4"


def test_all_of_markdown_is_shown(page: Page):
    say(page, "rich")
    body = page.locator(".message .body").nth(1)
    expect(body.locator("math")).to_have_count(2)
    expect(body.locator(".hl-keyword").first).to_have_text("def")
    assert body.locator("h3").inner_text() == "Heading"
    links = body.locator("a").evaluate_all("all => all.map(each => [each.innerText, each.href])")
    assert links == [
        ["link", "https://example.com/a?b=c"],
        ["mail", "mailto:a@b.test"],
        ["defined", "https://example.com/defined"],
    ]
    text = body.inner_text()
    assert "[file](file:///etc/passwd)" in text
    assert "[here](/v1/models), a price of $5 or $10, gone, 1 < 2" in text
    cells = body.locator("td").evaluate_all("all => all.map(each => each.innerText)")
    assert cells == ["one", "<b>1</b>", "two", "2"]
    right = "getComputedStyle(document.querySelectorAll('.prose td')[1]).textAlign"
    assert page.evaluate(right) == "right"
    assert body.locator("blockquote blockquote").inner_text() == "twice"
    tasks = body.locator(".tasks [type=checkbox]")
    assert tasks.evaluate_all("all => all.map(each => each.checked)") == [True, False]
    assert body.locator("ol > li").count() == 2
    assert "javascript:hacked=1" in text  # a formula that Temml refuses stays text
    assert "$$\\class{x}{$$" in text
    assert body.locator("pre").all_inner_texts() == [
        'def f(x):\n    return "<b>"  # comment',
        "x",
    ]
    assert page.evaluate("window.hacked") is None


def test_code_is_copied_by_its_button(page: Page, site: Site):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=site.url)
    say(page, "rich")
    page.get_by_role("button", name="Copy code").first.click()
    expect(page.locator(".copy").first).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == 'def f(x):\n    return "<b>"  # comment'


def test_a_growing_text_is_shown_as_if_it_were_read_at_once(page: Page):
    differing = page.evaluate(
        """async (text) => {
          const { MarkdownView } = await import("/page/js/markdown.js");
          const { BlockReader } = await import("/page/js/blocks.js");
          const whole = (part) => {
            const view = new MarkdownView();
            view.show(part);
            return view.element.textContent;
          };
          whole("x");
          await new Promise((resolve) => setTimeout(resolve, 200));
          const [growing, reader] = [new MarkdownView(), new BlockReader()];
          const differing = [];
          let kept = 0;
          for (let length = 1; length <= text.length; length += 3) {
            const part = text.slice(0, length);
            const before = reader.blocks[0];
            growing.show(part);
            kept += Number(reader.read(part)[0] === before);
            if (growing.element.textContent !== whole(part)) differing.push(part);
          }
          return [differing, kept * 3 > text.length / 2];
        }""",
        RICH.partition("[defined]: ")[0] + HOSTILE,
    )
    assert differing == [[], True]


def test_a_token_shows_its_probability_and_the_alternatives(page: Page):
    say(page, "first")
    page.get_by_role("button", name="Show tokens").click()
    tokens = page.locator(".tokens").get_by_role("option")
    assert tokens.first.inner_text() == "A"
    card = page.locator("#token-card")
    tokens.first.hover()
    expect(card).to_contain_text("50.0 %")
    rows = card.locator("tbody tr")
    assert rows.first.inner_text().split("\t")[:2] == ["A", "50.0 %"]
    assert rows.nth(1).inner_text().split("\t")[:2] == ["B", "25.0 %"]
    expect(card).to_contain_text("As sampled")
    page.mouse.move(0, 0)
    expect(card).to_be_hidden()


def test_the_keyboard_is_enough(page: Page, site: Site):
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.type("first")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line")
    page.keyboard.press("Enter")
    done(page)
    assert site.requests[-1]["messages"][-1]["content"] == "first\nline"
    tab_to(page, "Regenerate", back=True)
    page.keyboard.press("Enter")
    expect(page.locator(".message").nth(1).locator(".versions")).to_contain_text("2 of 2")
    done(page)
    tab_to(page, "Version before", back=True)
    page.keyboard.press("Enter")
    expect(page.locator(".message").nth(1).locator(".versions")).to_contain_text("1 of 2")
    expect(page.get_by_role("button", name="Version before")).to_be_focused()
    expect(page.locator(".message").nth(1)).to_contain_text("Answer")
    tab_to(page, "Show tokens", back=True)
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.getAttribute('role')") != "option":
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#token-card")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#token-card")).to_be_hidden()
    tab_to(page, "Settings", back=True)
    page.keyboard.press("Enter")
    tab_to(page, "System prompt")
    page.keyboard.type("Be brief.")
    tab_to(page, "Conversations", back=True, until="New chat")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    assert texts(page) == []


def test_conversations_are_listed_renamed_and_deleted(page: Page):
    say(page, "first")
    page.get_by_role("button", name="New chat").click()
    say(page, "second")
    rows = page.locator("#conversations button")
    assert rows.all_inner_texts() == ["second", "first"]
    page.get_by_role("button", name="More").click()
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("Title").fill("<b>Mine</b>")
    page.keyboard.press("Enter")
    assert rows.all_inner_texts() == ["<b>Mine</b>", "first"]
    rows.nth(1).click()
    assert texts(page)[0] == "first"
    page.get_by_role("button", name="More").click()
    page.locator("#menu").get_by_role("button", name="Delete").click()
    assert rows.all_inner_texts() == ["<b>Mine</b>"]
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".message .body").first).to_have_text("first")


def test_an_answer_goes_on_in_its_conversation_while_another_is_open(page: Page, site: Site):
    with site.holding("Once upon a", " time.") as release:
        page.get_by_label("Message", exact=True).fill("hold")
        page.keyboard.press("Enter")
        expect(page.locator(".message .body").nth(1)).to_contain_text("Once upon")
        page.get_by_role("button", name="New chat").click()
        assert texts(page) == []
        release()
        say(page, "other")
    page.locator("#conversations button", has_text="hold").click()
    done(page)
    expect(page.locator(".message .body").nth(1)).to_have_text("Once upon a time.")


def test_conversations_go_through_a_file_and_back(page: Page, tmp_path: Path):
    say(page, "first")
    before = texts(page)
    with page.expect_download() as kept:
        page.get_by_role("button", name="Export all").click()
    path = tmp_path / "kept.json"
    kept.value.save_as(path)
    page.get_by_role("button", name="More").click()
    page.locator("#menu").get_by_role("button", name="Delete").click()
    assert texts(page) == []
    page.set_input_files("#file", path)
    expect(page.locator(".notice").last).to_contain_text("Imported 1 conversation")
    assert texts(page) == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds no conversations"),
        ('{"format": "jaxllama conversations", "version": 9, "conversations": []}', "version 9"),
        (
            '{"format": "jaxllama conversations", "version": 1, "conversations": [{"id": "a", '
            '"updated": 1, "messages": [{"id": "m", "role": "root", "content": "x"}]}]}',
            "message 0 has an unknown role",
        ),
    ],
)
def test_a_file_that_is_none_is_refused_whole(page: Page, tmp_path: Path, content: str, said: str):
    path = tmp_path / "bad.json"
    path.write_text(content)
    page.set_input_files("#file", path)
    expect(page.locator(".notice")).to_contain_text(said)
    assert page.locator("#conversations button").count() == 0


def test_full_storage_is_told_and_the_conversation_goes_on(page: Page):
    page.evaluate(
        """() => {
          IDBObjectStore.prototype.put = () => { throw new DOMException("", "QuotaExceededError") };
        }"""
    )
    say(page, "first")
    say(page, "second")
    assert len(texts(page)) == 4
    expect(page.locator(".notice")).to_contain_text("storage is full")
    assert page.locator(".notice").count() == 1


def test_damaged_storage_costs_only_what_is_damaged(page: Page):
    say(page, "first")
    page.evaluate(
        """() => new Promise((resolve) => {
          localStorage.setItem("jaxllama.choices", "{");
          indexedDB.open("jaxllama").onsuccess = ({ target }) => {
            const put = target.result.transaction("conversations", "readwrite");
            put.objectStore("conversations").put({ id: "x", messages: 7 });
            put.oncomplete = resolve;
          };
        })"""
    )
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    expect(page.locator(".notice")).to_contain_text(
        "1 of the conversations kept here cannot be read"
    )
    assert page.locator("#conversations button").all_inner_texts() == ["first"]


def test_a_browser_without_storage_still_chats(page: Page, site: Site):
    page.add_init_script("delete window.indexedDB; delete window.localStorage")
    page.add_init_script(
        "for (const name of ['indexedDB', 'localStorage', 'sessionStorage']) "
        "Object.defineProperty(window, name, { get() { throw new DOMException('no') } })"
    )
    visit(page, site.url)
    expect(page.locator(".notice")).to_contain_text("keeps no data")
    say(page, "first")
    assert len(texts(page)) == 2


def test_what_another_tab_says_appears_here(page: Page, site: Site):
    say(page, "first")
    other = page.context.new_page()
    visit(other, site.url)
    # What a tab keeps reaches the others a moment later.
    expect(other.locator(".message .body")).to_have_text(texts(page))
    say(other, "second")
    expect(page.locator(".message")).to_have_count(4)
    expect(page.locator(".message .body")).to_have_text(texts(other))


def test_a_refusal_is_shown_in_words_with_a_way_on(page: Page, site: Site):
    open_settings(page)
    page.locator("summary", has_text=re.compile(r"^Logit bias")).click()
    bias = page.get_by_label("Logit bias", exact=True)
    bias.fill("999999 = 1")
    say(page, "first")
    problem = page.get_by_role("alert").filter(has=page.get_by_role("button", name="Try again"))
    expect(problem).to_contain_text("999999")
    assert texts(page) == ["first"]
    problem.get_by_role("button", name="Show the setting").click()
    expect(bias).to_be_focused()
    bias.fill("65 = 1")
    problem.get_by_role("button", name="Try again").click()
    expect(page.locator(".message")).to_have_count(2)
    done(page)
    expect(problem).to_have_count(0)
    assert site.requests[-1]["logit_bias"] == {"65": 1}


def test_an_answer_without_a_word_is_told(page: Page):
    say(page, "nothing")
    expect(page.locator(".notice")).to_contain_text("ended its answer at once")
    assert texts(page) == ["nothing"]


def test_no_link_of_the_page_is_dead(page: Page, site: Site):
    links = page.locator("a").evaluate_all("all => all.map(each => each.href)")
    for link in links:
        assert link.startswith(site.url)
        assert page.request.get(link).status == 200, link


def test_the_address_submits_nothing(page: Page, site: Site):
    visit(page, f"{site.url}/?q=first&prompt=first&send=1#first")
    page.wait_for_load_state("networkidle")
    assert site.requests == []
    assert page.get_by_label("Message", exact=True).input_value() == ""


def test_light_and_dark_follow_the_system_and_the_switch(page: Page):
    ground = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    assert light != dark
    page.get_by_label("Appearance").select_option("light")
    assert page.evaluate(ground) == light
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.evaluate(ground) == light


def test_a_phone_shows_everything_within_its_width(page: Page):
    page.set_viewport_size({"width": 360, "height": 640})
    say(page, "long")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    menu = page.get_by_role("button", name="Conversations", exact=True)
    menu.click()
    expect(page.get_by_role("button", name="New chat")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#sidebar")).to_be_hidden()
    expect(menu).to_be_focused()
    open_settings(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.get_by_label("Temperature", exact=True).fill("0.5")
    page.get_by_role("button", name="Close settings").click()
    expect(page.get_by_role("button", name="Settings", exact=True)).to_be_focused()


def test_reading_back_is_not_disturbed_by_an_answer(page: Page, site: Site):
    say(page, "long")
    say(page, "long")
    with site.holding("line\n\n" * 20, "line\n\n" * 20) as release:
        page.get_by_label("Message", exact=True).fill("hold")
        page.keyboard.press("Enter")
        expect(page.locator(".message .body").last).to_contain_text("line")
        page.evaluate("document.getElementById('scroller').scrollTop = 0")
        expect(page.get_by_role("button", name="Latest")).to_be_visible()
        release()
        done(page)
    assert page.evaluate("document.getElementById('scroller').scrollTop") == 0
    page.get_by_role("button", name="Latest").click()
    expect(page.get_by_role("button", name="Latest")).to_be_hidden()


def test_an_answer_is_read_out_by_sentences(page: Page):
    say(page, "first")
    assert re.fullmatch(r"Answer \d+ to first\.", page.locator("#spoken").inner_text())
