"""The page of rooms in a real browser, on the scripted engine."""

from collections.abc import Iterator

import pytest

from tests.serve.browsing import HOSTILE, Site, visit

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

from playwright.sync_api import Locator, Page, expect


@pytest.fixture
def room(page: Page, site: Site) -> Iterator[Page]:
    """The page with one new room; all rooms are deleted afterwards."""
    visit(page, f"{site.url}/page/rooms")
    expect(page.locator("#title")).to_have_text("Untitled session")
    yield page
    names = page.request.get(f"{site.url}/v1/rooms").json()["rooms"]
    page.goto("about:blank")
    for name in names:
        page.request.delete(f"{site.url}/v1/rooms/{name}")


def text_at(page: Page, place: int) -> Locator:
    return page.locator("#texts > li").nth(place)


def press(page: Page, place: int, name: str) -> None:
    text_at(page, place).get_by_role("button", name=name, exact=True).click()


def say(page: Page, text: str, count: int) -> None:
    """Say something, and wait until so many texts are there and nobody speaks any more."""
    page.get_by_label("Text", exact=True).fill(text)
    page.keyboard.press("Enter")
    expect(page.locator("#texts > li")).to_have_count(count)
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def open_settings(page: Page) -> None:
    page.get_by_role("button", name="Settings", exact=True).click()


def chats(site: Site) -> list[dict]:
    return [each for each in site.requests if "stream" in each]


def bodies(page: Page) -> list[str]:
    return page.locator("#texts .body").all_inner_texts()


def test_others_answer_in_turn_with_their_own_prompts_and_sampling(room: Page, site: Site):
    open_settings(room)
    room.get_by_label("Fixed prompt").fill("A play.")
    room.get_by_role("button", name="Add", exact=True).click()
    expect(room.get_by_label("Name", exact=True)).to_be_focused()
    room.get_by_label("Name", exact=True).fill("Zoë")
    room.get_by_label("System prompt of this speaker").fill("You are {name}. Rhyme.")
    room.get_by_label("Temperature", exact=True).fill("0.5")
    room.get_by_label("Most tokens of a turn").fill("40")
    say(room, "Hello", 3)
    names = room.locator("#texts h2").all_inner_texts()
    assert names == ["User", "Chatbort", "Zoë"]
    first, second = chats(site)[-2:]
    assert "temperature" not in first and second["temperature"] == 0.5
    assert first["stop"] == second["stop"] == ["\n"]
    assert first["max_tokens"] == 40
    assert second["context_overflow"] == "drop_oldest"
    assert first["messages"][0] == {"role": "system", "content": "A play."}
    assert second["messages"][0]["content"] == "A play.\n\nYou are Zoë. Rhyme."
    assert second["messages"][1]["role"] == "user"
    assert second["messages"][1]["content"].startswith("User: Hello\nChatbort: Answer")
    assert text_at(room, 2).get_attribute("class") == "message voiced voice-2"
    room.reload()
    expect(room.locator("#texts > li")).to_have_count(3)
    room.locator("#choose-speaker").get_by_role("button", name="Zoë").click()
    expect(room.get_by_label("Temperature", exact=True)).to_have_value("0.5")


def test_a_fixed_prompt_that_need_not_stay_is_a_turn_and_turns_end_as_set(room: Page, site: Site):
    open_settings(room)
    room.get_by_label("Fixed prompt").fill("A play.")
    room.get_by_label("Keep it when the context is full").uncheck()
    room.get_by_label("End a turn at a new line").uncheck()
    say(room, "Hello", 2)
    request = chats(site)[-1]
    assert request["messages"] == [{"role": "user", "content": "A play.\nHello"}]
    assert request["stop"] == ["\nUser:", "\nChatbort:"]
    room.get_by_label("Prompt", exact=True).select_option("script")
    say(room, "Again", 4)
    assert site.script.prompt.startswith("A play.")
    assert site.script.prompt.endswith("\nUser: Again\nChatbort:")
    assert chats(site)[-1]["format"] == "plain"


def test_texts_are_edited_deleted_inserted_rewound_and_come_back(room: Page):
    say(room, "one", 2)
    say(room, "two", 4)
    before = bodies(room)
    press(room, 0, "Edit")
    text_at(room, 0).get_by_label("Text").fill("uno")
    room.keyboard.press("Control+Enter")
    expect(text_at(room, 0).locator(".body")).to_have_text("uno")
    press(room, 1, "Delete")
    expect(room.locator("#texts > li")).to_have_count(3)
    room.get_by_role("button", name="Undo").click()
    expect(room.locator("#texts .body")).to_have_text(["uno", *before[1:]])
    press(room, 0, "Insert below")
    text_at(room, 0).get_by_label("Author of the new text").select_option("")
    text_at(room, 0).get_by_label("New text", exact=True).fill("A door opens.")
    text_at(room, 0).get_by_role("button", name="Save").click()
    expect(text_at(room, 1).locator("h2")).to_have_text("Narration")
    press(room, 0, "Rewind to here")
    expect(room.locator("#texts > li")).to_have_count(1)
    room.get_by_role("button", name="Undo").last.click()
    expect(room.locator("#texts .body")).to_have_text(["uno", "A door opens.", *before[1:]])


def test_any_speaker_goes_on_and_the_last_text_is_continued(room: Page, site: Site):
    open_settings(room)
    room.get_by_label("After what you say").select_option("none")
    say(room, "first", 1)
    assert chats(site) == []
    room.locator("#next").get_by_role("button", name="Chatbort").click()
    expect(room.locator("#texts > li")).to_have_count(2)
    expect(room.get_by_role("button", name="Send")).to_be_visible()
    old = bodies(room)[1]
    press(room, 1, "Continue")
    expect(text_at(room, 1).locator(".body")).not_to_have_text(old)
    expect(room.get_by_role("button", name="Send")).to_be_visible()
    request = chats(site)[-1]
    assert request["continue_final_message"] is True
    assert request["messages"][-1] == {"role": "assistant", "content": old}
    assert bodies(room)[1].startswith(old)
    room.locator("#next").get_by_role("button", name="User").click()
    expect(room.locator("#texts > li")).to_have_count(3)
    expect(room.get_by_role("button", name="Send")).to_be_visible()
    assert chats(site)[-1]["messages"][-1]["role"] == "user"


def test_two_tabs_show_the_same_room_while_a_text_grows(room: Page, site: Site):
    other = room.context.new_page()
    visit(other, f"{site.url}/page/rooms")
    with site.holding("Once upon a", " time. " + "And on. " * 20) as release:
        room.get_by_label("Text", exact=True).fill("hold")
        room.keyboard.press("Enter")
        expect(text_at(room, 1)).to_contain_text("Once upon")
        expect(text_at(other, 0).locator(".body")).to_have_text("hold")
        release()
        expect(room.get_by_role("button", name="Send")).to_be_visible()
    expect(other.locator("#texts .body")).to_have_text(bodies(room))
    assert bodies(room)[1].strip() == ("Once upon a time. " + "And on. " * 20).strip()
    press(other, 0, "Delete")
    expect(room.locator("#texts > li")).to_have_count(1)
    other.close()


def test_stopping_keeps_what_was_said(room: Page, site: Site):
    with site.holding("Once upon a", " time." * 50) as release:
        room.get_by_label("Text", exact=True).fill("hold")
        room.keyboard.press("Enter")
        expect(text_at(room, 1)).to_contain_text("Once upon")
        room.keyboard.press("Escape")
        expect(room.get_by_role("button", name="Send")).to_be_visible()
        release()
    room.reload()
    expect(text_at(room, 1).locator(".body")).to_contain_text("Once upon")
    assert "time. time." not in bodies(room)[1]


def test_rooms_are_made_renamed_and_deleted(room: Page):
    room.get_by_role("button", name="New room").click()
    expect(room.locator("#title")).to_have_text("Untitled session (2)")
    room.get_by_role("button", name="More").click()
    room.get_by_role("button", name="Rename").click()
    room.get_by_label("Name of the room").fill("A <b>play</b>")
    room.keyboard.press("Enter")
    rows = room.locator("#rooms button")
    expect(rows).to_have_text(["A bplayb", "Untitled session"])
    rows.nth(1).click()
    expect(room.locator("#title")).to_have_text("Untitled session")
    room.get_by_role("button", name="More").click()
    room.locator("#menu").get_by_role("button", name="Delete").click()
    expect(rows).to_have_text(["A bplayb"])
    expect(room.locator("#title")).to_have_text("A bplayb")


def test_hostile_texts_and_names_stay_text(room: Page):
    open_settings(room)
    room.locator("#choose-speaker").get_by_role("button", name="Chatbort").click()
    room.get_by_label("Name", exact=True).fill("<img src=x onerror='hacked = 1'>")
    room.keyboard.press("Tab")
    expect(room.locator("#next")).to_contain_text("<img src=x")
    say(room, "hostile", 2)
    assert "<script>hacked = 1</script>" in room.locator("#texts").inner_text()
    assert HOSTILE[:20] in bodies(room)[1]
    assert room.locator("#texts").locator("img, script, iframe").count() == 0
    assert room.evaluate("window.hacked") is None


def test_the_keyboard_is_enough_in_a_room(room: Page):
    expect(room.get_by_label("Text", exact=True)).to_be_focused()
    room.keyboard.type("first")
    room.keyboard.press("Enter")
    expect(room.locator("#texts > li")).to_have_count(2)
    expect(room.get_by_role("button", name="Send")).to_be_visible()
    room.keyboard.press("Shift+Tab")
    expect(room.get_by_label("Speak as")).to_be_focused()
    room.keyboard.press("Shift+Tab")
    assert room.evaluate("document.activeElement.innerText") == "Chatbort"
    room.keyboard.press("Enter")
    expect(room.locator("#texts > li")).to_have_count(3)


def test_a_room_fits_a_phone(room: Page):
    room.set_viewport_size({"width": 360, "height": 640})
    say(room, "long", 2)
    assert room.evaluate("document.documentElement.scrollWidth") == 360
    open_settings(room)
    assert room.evaluate("document.documentElement.scrollWidth") == 360
