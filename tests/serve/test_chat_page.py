"""What the chat page has beside messages: branches, thoughts, tools, what-if, search, files."""

import json
import re
from pathlib import Path

import pytest

from tests.serve.browsing import HOSTILE, Site, act, done, say, tab_to, texts, visit

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

from playwright.sync_api import Page, expect

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
EDIT = "Text of this message"


def edit(page: Page, index: int, text: str, button: str) -> None:
    act(page, index, "Edit")
    page.get_by_label(EDIT).fill(text)
    page.get_by_role("button", name=button, exact=True).click()
    done(page)


def versions(page: Page, index: int) -> str:
    """The count of a message's versions, "" for a single one."""
    found = page.locator(".message").nth(index).locator(".versions")
    return found.inner_text().strip() if found.is_visible() else ""


def settings(page: Page) -> None:
    page.get_by_role("button", name="Settings", exact=True).click()


def with_template(page: Page) -> None:
    """Use the prompt format of a model that thinks and calls tools."""
    settings(page)
    page.get_by_label("Prompt format").select_option("template")


def test_an_edit_keeps_what_follows_in_both_versions(page: Page):
    say(page, "first")
    say(page, "second")
    before = texts(page)
    edit(page, 1, "Mended.", "Save")
    assert texts(page) == [before[0], "Mended.", *before[2:]]
    assert versions(page, 1) == "2 of 2"
    say(page, "third")
    assert len(texts(page)) == 6
    act(page, 1, "Version before")
    assert texts(page) == before
    act(page, 1, "Next version")
    assert len(texts(page)) == 6


def test_the_focus_stays_where_the_reader_acts(page: Page):
    say(page, "first")
    for label, key in (("Regenerate", "Enter"), ("Version before", "Space")):
        page.locator(".message").nth(1).get_by_role("button", name=label).focus()
        page.keyboard.press(key)
        expect(page.get_by_role("button", name=label)).to_be_focused()
        done(page)
    page.locator(".message").nth(0).get_by_role("button", name="Edit").focus()
    page.keyboard.press("Enter")
    page.keyboard.type(" more")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("button", name="Answer again")).to_be_focused()
    done(page)
    page.locator(".message").nth(1).get_by_role("button", name="Edit").focus()
    page.keyboard.press("Enter")
    page.keyboard.type(" more")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".message").nth(1).get_by_role("button", name="Edit")).to_be_focused()
    assert texts(page)[1].endswith(". more")


def test_an_edit_that_cannot_be_answered_yet_is_kept(page: Page, site: Site):
    say(page, "first")
    settings(page)
    page.locator("summary", has_text=re.compile(r"^Top p")).click()
    page.get_by_label("Top p", exact=True).fill("1.5")
    edit(page, 0, "second", "Save and answer")
    expect(page.get_by_label("Top p", exact=True)).to_be_focused()
    assert texts(page) == ["second"]
    page.get_by_label("Top p", exact=True).fill("0.5")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator(".message")).to_have_count(2)
    done(page)
    assert site.requests[-1]["messages"][-1]["content"] == "second"


def test_branches_have_branches_of_their_own(page: Page, site: Site):
    say(page, "first")
    say(page, "second")
    edit(page, 2, "another", "Save and answer")
    edit(page, 2, "third", "Save and answer")
    assert versions(page, 2) == "3 of 3"
    act(page, 3, "Regenerate")
    expect(page.locator(".versions").nth(3)).to_contain_text("2 of 2")
    done(page)
    edit(page, 0, "start", "Save and answer")
    assert len(texts(page)) == 2
    act(page, 0, "Version before")
    assert versions(page, 2) == "3 of 3"
    assert versions(page, 3) == "2 of 2"
    act(page, 2, "Version before")
    assert texts(page)[2] == "another"
    say(page, "on")
    said = [turn["content"] for turn in site.requests[-1]["messages"] if turn["role"] == "user"]
    assert said == ["first", "another", "on"]


def test_branches_outlast_a_reload_and_go_through_a_file(page: Page, tmp_path: Path):
    say(page, "first")
    old = texts(page)
    edit(page, 0, "second", "Save and answer")
    with page.expect_download() as kept:
        page.get_by_role("button", name="Export all").click()
    path = tmp_path / "kept.json"
    kept.value.save_as(path)
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert versions(page, 0) == "2 of 2"
    page.set_input_files("#file", path)
    expect(page.locator(".notice").last).to_contain_text("Imported 1 conversation")
    act(page, 0, "Version before")
    assert texts(page) == old


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_deleted_version_comes_back_as_it_was(page: Page, place: int):
    say(page, "first")
    say(page, "second")
    edit(page, 2, "third", "Save and answer")
    act(page, 3, "Regenerate")
    expect(page.locator(".versions").nth(3)).to_contain_text("2 of 2")
    done(page)
    before = texts(page)
    act(page, place, "Delete")
    assert before[place] not in texts(page)
    if place == 2:  # what follows it stays, beside the other version
        assert versions(page, 2) == "3 of 3"
    page.get_by_role("button", name="Undo").click()
    assert texts(page) == before
    assert (versions(page, 2), versions(page, 3)) == ("2 of 2", "2 of 2")


def test_an_answer_that_fails_leaves_the_version_before_it(page: Page):
    say(page, "first")
    act(page, 1, "Regenerate")
    expect(page.locator(".versions").nth(1)).to_contain_text("2 of 2")
    done(page)
    act(page, 1, "Version before")
    before = texts(page)
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=500, json={}))
    act(page, 1, "Regenerate")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    assert texts(page) == before
    assert versions(page, 1) == "1 of 2"


@pytest.mark.parametrize(
    ("fork", "said"),
    [
        ({"shown": 3, "others": [[]]}, "has a fork that is none"),
        ({"shown": 0, "others": [[]]}, "has a branch that is none"),
        ({"shown": 0, "others": [[{"id": "m", "role": "user", "content": ""}]]}, "the same id"),
    ],
)
def test_a_file_with_a_broken_branch_is_refused(page: Page, tmp_path: Path, fork: dict, said: str):
    message = {"id": "m", "role": "user", "content": "x", "fork": fork}
    conversation = {"id": "a", "updated": 1, "messages": [message]}
    kept = {"format": "jaxllama conversations", "version": 1, "conversations": [conversation]}
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(kept))
    page.set_input_files("#file", path)
    expect(page.locator(".notice")).to_contain_text(said)


def test_thoughts_are_folded_away_and_sent_back(page: Page, site: Site):
    with_template(page)
    say(page, "think")
    body = page.locator(".message .body").nth(1)
    expect(body.locator("summary")).to_have_text("Thoughts")
    assert body.locator("details").get_attribute("open") is None
    assert "Four." in body.inner_text()
    assert "Two" not in body.inner_text()
    body.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(body.locator("details .prose")).to_contain_text("Two <b>and</b> two.")
    assert body.locator("details b").count() == 0
    say(page, "again")
    answer = site.requests[-1]["messages"][1]
    assert answer == {
        "role": "assistant",
        "content": "Four.",
        "reasoning_content": "Two <b>and</b> two.",
    }


def test_thoughts_can_be_read_while_they_are_written(page: Page, site: Site):
    with_template(page)
    with site.holding("<think>\nLet me see", " now.\n</think>\n\nYes.") as release:
        page.get_by_label("Message", exact=True).fill("hold")
        page.keyboard.press("Enter")
        summary = page.locator(".thoughts summary")
        expect(summary).to_have_text("Thinking…")
        summary.click()
        expect(page.locator(".thoughts .prose")).to_contain_text("Let me")
        release()
        done(page)
    expect(summary).to_have_text("Thoughts")
    expect(page.locator(".message .body").nth(1)).to_contain_text("Yes.")


def test_an_answer_with_thoughts_is_continued_and_changed_at_a_token(page: Page, site: Site):
    with_template(page)
    say(page, "think")
    act(page, 1, "Continue")
    page.wait_for_function("() => document.querySelectorAll('.body')[1].innerText.length > 20")
    done(page)
    assert site.requests[-1]["messages"][-1] == {
        "role": "assistant",
        "content": "Four.",
        "reasoning_content": "Two <b>and</b> two.",
    }
    assert page.get_by_role("button", name="Try again").count() == 0
    page.get_by_role("button", name="Show tokens").click()
    tokens = page.locator(".tokens").get_by_role("option")
    tokens.nth(3).click()  # in the thoughts
    expect(page.locator("#token-card")).not_to_contain_text("take another")
    assert page.locator("#token-card button").count() == 0
    place = "".join(tokens.all_inner_texts()).replace("↵", "").index("Four.")
    tokens.nth(place + 1).click()
    page.keyboard.press("Enter")
    expect(page.locator(".versions").nth(1)).to_contain_text("2 of 2")
    expect(page.get_by_role("button", name="Version before")).to_be_focused()
    done(page)
    sent = site.requests[-1]["messages"][-1]
    assert sent["content"] == "Fp"  # the likeliest other token
    assert sent["reasoning_content"] == "Two <b>and</b> two."


def test_a_tool_call_is_shown_and_what_the_tool_returns_is_sent(page: Page, site: Site):
    with_template(page)
    page.locator("#tools-group summary").click()
    field = page.get_by_label("Functions that the model may call")
    field.fill("[1")
    say(page, "call")
    expect(field).to_be_focused()
    expect(page.locator("#tools-wrong")).to_contain_text("Expected a JSON list")
    assert site.requests == []
    field.fill(json.dumps(TOOLS))
    page.get_by_label("Message", exact=True).focus()
    page.keyboard.press("Enter")
    done(page)
    assert site.requests[-1]["tools"] == TOOLS
    call = page.locator(".tool-call")
    expect(call).to_contain_text("Calls look")
    written = {"word": "<b>", "deep": {"a": [1, 2]}}
    assert call.locator("code").text_content() == json.dumps(written, indent=2)
    assert call.locator("pre b").count() == 0
    page.get_by_label("What look returns").fill("a <i>word</i>")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".message")).to_have_count(4)
    done(page)
    messages = site.requests[-1]["messages"]
    [sent] = messages[1]["tool_calls"]
    assert sent["function"]["name"] == "look"
    assert messages[2] == {
        "role": "tool",
        "content": "a <i>word</i>",
        "tool_call_id": sent["id"],
    }
    assert texts(page)[2] == "a <i>word</i>"
    assert page.locator(".message").nth(1).get_by_label("What look returns").count() == 0


def test_another_token_is_taken_and_the_answer_goes_on_from_there(page: Page, site: Site):
    say(page, "first")
    old = texts(page)[1]
    page.get_by_role("button", name="Show tokens").click()
    token = page.locator(".tokens").get_by_role("option").nth(2)
    token.hover()
    expect(page.locator("#token-card")).to_contain_text("take another one instead")
    token.click()
    choice = page.locator("#token-card").get_by_role("button").first
    taken = choice.inner_text()
    assert page.locator("#token-card > *").count() == 3  # the token, its figures, the others
    assert page.locator("#token-card").evaluate("card => card.lastChild.nodeName") == "TABLE"
    choice.click()
    expect(page.locator(".versions").nth(1)).to_contain_text("2 of 2")
    done(page)
    request = site.requests[-1]
    assert request["continue_final_message"] is True
    assert request["messages"][-1] == {"role": "assistant", "content": old[:2] + taken}
    shown = page.locator(".tokens").get_by_role("option").all_inner_texts()
    assert "".join(shown).startswith(old[:2] + taken)
    assert len(shown) > 3
    act(page, 1, "Version before")
    page.get_by_role("button", name="Show tokens").click()
    assert texts(page)[1] == old


def test_another_token_is_taken_with_keys_alone(page: Page, site: Site):
    say(page, "first")
    old = texts(page)[1]
    page.get_by_role("button", name="Show tokens").click()
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.getAttribute('role')") != "option":
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    card = page.get_by_role("dialog", name="Other tokens in place of")
    expect(card.get_by_role("button").first).to_be_focused()
    page.keyboard.press("Escape")
    expect(card).to_have_count(0)
    expect(page.locator(".tokens").get_by_role("option").nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.locator(".versions").nth(1)).to_contain_text("2 of 2")
    done(page)
    assert site.requests[-1]["messages"][-1]["content"][:1] == old[:1]
    assert site.requests[-1]["messages"][-1]["content"][1:] != old[1:2]


def test_what_if_starts_where_the_text_of_an_answer_does(page: Page):
    found = page.evaluate(
        """async () => {
          const { startWith } = await import("/page/js/whatif.js");
          const tokens = [{ text: "<think>" }, { text: "a" }, { text: "</think>" }, { text: " B" },
            { text: "⟨c3⟩", bytes: [0xc3] }, { text: "⟨a9⟩", bytes: [0xa9] }, { text: "d" },
            { text: "<end>" }];
          const message = { content: "Béd", tokens };
          const other = (text, more = {}) => ({ text, logprob: -1, ...more });
          return [
            startWith(message, 1, other("x")),
            startWith(message, 3, other(" X"))?.content,
            startWith(message, 3, other("X"))?.content,
            startWith(message, 4, other("x"))?.content,
            startWith(message, 4, other("⟨c4⟩", { bytes: [0xc4] })),
            startWith(message, 5, other("⟨a8⟩", { bytes: [0xa8] }))?.content,
            startWith(message, 5, other("x")),
            startWith(message, 6, other("e"))?.content,
            startWith(message, 6, other("<end>", { isControl: true })),
            startWith(message, 7, other("x")),
            startWith({ content: "edited", tokens }, 6, other("e")),
          ];
        }"""
    )
    assert found == [None, "X", "X", "Bx", None, "Bè", None, "Bée", None, None, None]


def test_conversations_are_searched_by_title_and_text_of_every_branch(page: Page):
    say(page, "apples <b>red</b>")
    edit(page, 0, "pears", "Save and answer")
    page.get_by_role("button", name="New chat").click()
    say(page, "plums")
    rows = page.locator("#conversations button")
    page.keyboard.press("Escape")
    page.locator("#scroller").focus()
    page.keyboard.press("/")
    search = page.get_by_label("Search the conversations")
    expect(search).to_be_focused()
    page.keyboard.type("PLUM")
    assert rows.all_inner_texts() == ["plums"]
    search.fill("<b>RED")
    assert rows.all_inner_texts() == ["pears\napples <b>red</b>"]
    search.fill("no such thing")
    expect(page.locator("#search-nothing")).to_have_text("No conversation has this text.")
    assert rows.count() == 0
    page.keyboard.press("Escape")
    assert rows.count() == 2
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_a_model_is_chosen_where_there_are_several(page: Page, site: Site):
    settings(page)
    assert page.locator("#model-row").is_hidden()
    cards = [{"id": "scripted"}, {"id": "poet", "parent": "scripted"}]
    cards.append({"id": "vectors", "dimensions": 8})
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": cards}))
    visit(page, site.url)
    choice = page.get_by_role("combobox", name="Model", exact=True)
    assert choice.locator("option").all_inner_texts() == ["scripted", "poet (adapter)"]
    say(page, "first")
    assert site.requests[-1]["model"] == "scripted"
    choice.select_option("poet")
    expect(page.locator("#model")).to_have_text("poet")
    say(page, "second")
    assert site.requests[-1]["model"] == "poet"
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert choice.input_value() == "poet"
    page.unroute("**/v1/models")
    visit(page, site.url)
    assert choice.locator("option").all_inner_texts() == ["scripted", "poet (not on this server)"]


def test_the_recommended_sampling_is_told(page: Page, site: Site):
    advice = page.locator("#knob-panel .hint", has_text="recommends")
    expect(advice).to_be_hidden()
    site.defaults |= {"temperature": 0.2, "top_p": 0.9}
    try:
        visit(page, site.url)
        settings(page)
        expect(advice).to_contain_text("recommends temperature 0.2, top_p 0.9.")
    finally:
        site.defaults.clear()


DROP = """([selector, name, type, bytes, event]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
  const options = { bubbles: true, cancelable: true };
  const target = document.querySelector(selector);
  if (event === "drop") {
    target.dispatchEvent(new DragEvent("dragover", { ...options, dataTransfer: transfer }));
    target.dispatchEvent(new DragEvent("drop", { ...options, dataTransfer: transfer }));
  } else {
    target.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
  }
}"""


def drop(page: Page, name: str, type_: str, content: bytes, event: str = "drop") -> None:
    page.evaluate(DROP, ["#text", name, type_, list(content), event])


@pytest.mark.parametrize("event", ["drop", "paste"])
@pytest.mark.parametrize(
    ("type_", "content", "said"),
    [
        ("image/png", b"\x89PNG", "this model reads text only, so it cannot see it"),
        ("audio/wav", b"RIFF", "this model reads text only, so it cannot hear it"),
        ("", b"\xff\xfe\x00", "it is not a text file"),
        ("application/pdf", b"%PDF\0", "it is not a text file"),
        ("text/plain", b"x" * 300_000, "larger than 256 KiB"),
    ],
)
def test_a_file_that_the_model_cannot_see_is_told(
    page: Page, event: str, type_: str, content: bytes, said: str
):
    name = "<img src=x onerror='hacked = 1'>.png"
    drop(page, name, type_, content, event)
    expect(page.locator(".notice")).to_contain_text(f"“{name}” was not added")
    expect(page.locator(".notice")).to_contain_text(said)
    assert page.locator("#notices img").count() == 0
    assert page.get_by_label("Message", exact=True).input_value() == ""


def test_a_text_file_becomes_part_of_the_message(page: Page, tmp_path: Path):
    path = tmp_path / "hostile.txt"
    path.write_text(HOSTILE)
    page.on("filechooser", lambda chooser: chooser.set_files(path))
    field = page.get_by_label("Message", exact=True)
    field.fill("Read this:")
    drop(page, "a.md", "text/markdown", b"# A\n```\nx\n```\n")
    expect(field).to_have_value("Read this:\na.md:\n\n````\n# A\n```\nx\n```\n````\n")
    field.fill("")
    tab_to(page, "Insert a text file")
    page.keyboard.press("Enter")
    expect(field).to_have_value(re.compile("hacked"))
    expect(field).to_be_focused()
    page.keyboard.press("Enter")
    done(page)
    assert page.locator("#messages script, #messages img").count() == 0
    assert page.evaluate("window.hacked") is None


def test_a_dropped_file_of_conversations_is_imported(page: Page, tmp_path: Path):
    say(page, "first")
    with page.expect_download() as kept:
        page.get_by_role("button", name="Export all").click()
    path = tmp_path / "kept.json"
    kept.value.save_as(path)
    drop(page, "kept.json", "application/json", path.read_bytes())
    expect(page.locator(".notice").last).to_contain_text("Imported 1 conversation")
    assert page.locator("#conversations button").count() == 2


@pytest.mark.parametrize("how", ["?", "Control+/", "button"])
def test_the_shortcuts_are_listed(page: Page, how: str):
    dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
    if how == "?":
        page.keyboard.press("?")  # in the message field, it is a text
        assert page.get_by_label("Message", exact=True).input_value() == "?"
        assert dialog.count() == 0
        page.locator("#scroller").focus()
    if how == "button":
        page.get_by_role("button", name="Keyboard shortcuts").click()
    else:
        page.keyboard.press(how)
    expect(dialog).to_be_visible()
    expect(dialog).to_contain_text("Send the message")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
