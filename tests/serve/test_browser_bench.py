"""The sampler bench in a real browser: settings side by side, stages of a token, and what-if."""

from typing import TYPE_CHECKING

import pytest

from tests.serve.browsing import HOSTILE, PATIENCE, Site, visit

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import Page


# Replays run hundreds of operations a few times each.
pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture
def bench(page: "Page", site: Site) -> "Page":
    visit(page, f"{site.url}/page/bench")
    return page


def test_settings_answer_side_by_side_and_a_token_is_explained_stage_by_stage(
    bench: "Page", site: Site
):
    settings = bench.locator(".setting")
    expect(settings).to_have_count(3)
    bench.locator("#prompt").fill("tell")
    bench.locator("#tokens").fill("6")
    bench.keyboard.press("Control+Enter")
    for place in range(3):
        expect(settings.nth(place).locator(".token")).to_have_count(6)
        expect(settings.nth(place).locator(".setting-foot")).to_contain_text("6 tokens")
    sent = [each for each in site.requests if each.get("stream")]
    assert len(sent) == 3 and {each["seed"] for each in sent} == {1}
    assert sent[2]["expression"] == "p > 0.1 * p_max and rank < 40"
    # By the keyboard alone: to the third token of the second setting.
    settings.nth(1).locator(".token").first.focus()
    bench.keyboard.press("ArrowRight")
    bench.keyboard.press("ArrowRight")
    bench.keyboard.press("Enter")
    stages = bench.locator(".stage-name b")
    expect(stages).to_have_text(["Model", "Temperature", "Top p"], timeout=6 * PATIENCE)
    expect(bench.locator(".stage i.drawn")).to_have_count(3)
    expect(bench.locator(".shares tbody tr").first).to_contain_text("%")
    asked = len([each for each in site.requests if each.get("stream")])
    # A change is drawn again from the recording: the model does not run.
    settings.nth(1).locator(".setting-knobs").click()
    bench.locator("#knob-top_p").fill("0.5")
    expect(bench.locator(".what-if")).to_contain_text(
        "What if top_p 0.5: 1 candidates", timeout=6 * PATIENCE
    )
    replays = [each for each in site.requests if "what_if" in each]
    assert replays[-1]["what_if"] == {"top_p": 0.5} and replays[-1]["position"] == 2
    assert len([each for each in site.requests if each.get("stream")]) == asked


def test_a_wrong_expression_is_marked_at_its_place(bench: "Page"):
    field = bench.locator("#one-line-expression")
    field.fill("p > 0.1 and rnk < 4")
    wrong = bench.locator(".expression .wrong", has_text="unknown name 'rnk'")
    expect(wrong).to_contain_text("did you mean 'rank'?")
    expect(bench.locator(".place mark")).to_have_text("rnk")
    expect(field).to_have_attribute("aria-invalid", "true")
    field.fill("p > 0.1 and rank < 4")
    expect(bench.locator(".place mark")).not_to_be_visible()
    bench.get_by_role("button", name="entropy", exact=True).last.click()
    expect(field).to_have_value("p > 0.1 and rank < 4entropy")


def test_settings_are_added_renamed_removed_and_kept(bench: "Page", site: Site):
    settings = bench.locator(".setting")
    for _ in range(3):
        bench.locator("#add").click()
    expect(settings).to_have_count(6)
    expect(bench.locator("#add")).to_be_disabled()
    settings.nth(5).get_by_label("Name of the setting").fill("<img src=x onerror='hacked=1'>")
    settings.nth(0).get_by_label("Remove this setting").click()
    expect(settings).to_have_count(5)
    bench.get_by_role("button", name="Undo").click()
    expect(settings).to_have_count(6)
    visit(bench, f"{site.url}/page/bench")
    expect(settings).to_have_count(6)
    name = settings.nth(5).get_by_label("Name of the setting")
    expect(name).to_have_value("<img src=x onerror='hacked=1'>")
    bench.evaluate("localStorage['jaxllama.bench'] = '{\"settings\": [3, {\"name\": 1}]}'")
    bench.goto("about:blank")
    visit(bench, f"{site.url}/page/bench")
    expect(settings).to_have_count(3)


def test_a_hostile_answer_stays_text(bench: "Page"):
    bench.locator("#prompt").fill("hostile")
    bench.locator("#mode").select_option("chat")
    bench.locator("#tokens").fill("64")
    bench.locator("#run").click()
    tokens = bench.locator(".setting").first.locator(".token")
    expect(tokens).to_have_count(64)
    shown = "".join(tokens.all_inner_texts()).replace("·", " ")
    assert shown.strip() == HOSTILE[:64].strip()
    assert bench.evaluate("typeof hacked") == "undefined"
