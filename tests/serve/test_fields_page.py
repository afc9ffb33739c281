"""The page of JSON fields in a real browser, on the scripted engine."""

import json

import pytest

from tests.serve.browsing import Site, tab_to, visit

pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

from playwright.sync_api import Page, expect

SAMPLE = '{"name": "x", "age": 1, "tags": ["a"], "home": {"town": "y", "warm": true}}'


@pytest.fixture
def fields(page: Page, site: Site) -> Page:
    """The page of JSON fields."""
    visit(page, f"{site.url}/page/fields")
    return page


def fill(page: Page, message: str, schema: str) -> None:
    """Fill in the form and let the model write."""
    page.get_by_label("Message of the user").fill(message)
    page.get_by_label("Schema, or a sample object").fill(schema)
    page.get_by_role("button", name="Fill the fields").click()
    written(page)


def written(page: Page) -> None:
    """Wait until no field is being written."""
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator("#start")).to_be_enabled()
    page.evaluate("new Promise(requestAnimationFrame)")


def value(page: Page) -> dict:
    return json.loads(page.locator("#json").text_content())


def test_a_sample_becomes_a_schema_and_every_field_gets_a_row(fields: Page, site: Site):
    page = fields
    fill(page, "object", SAMPLE)
    schema = json.loads(site.requests[-1]["json_schema"])
    assert schema["properties"]["home"]["properties"]["warm"] == {"type": "boolean"}
    assert schema["required"] == ["name", "age", "tags", "home"]
    found = value(page)
    assert list(found) == ["name", "age", "tags", "home"]
    assert page.get_by_label("name", exact=True).input_value() == found["name"] == "Ada"
    assert page.get_by_label("age", exact=True).input_value() == str(found["age"])
    chosen = page.get_by_label("warm", exact=True).evaluate(
        "field => field.selectedOptions[0].text"
    )
    assert chosen == json.dumps(found["home"]["warm"])


def test_after_a_change_the_model_goes_on_from_there(fields: Page, site: Site):
    page = fields
    fill(page, "object", SAMPLE)
    before = value(page)
    page.get_by_label("age", exact=True).fill("41")
    page.get_by_role("button", name="Go on from age").click()
    written(page)
    pinned = json.loads(site.requests[-1]["json_schema"])["properties"]
    assert pinned["name"] == {"const": before["name"]}
    assert pinned["age"] == {"const": 41}
    assert pinned["tags"]["type"] == "array"
    assert value(page)["name"] == before["name"]
    assert value(page)["age"] == 41
    page.get_by_label("town", exact=True).fill("<b>P</b>")
    page.get_by_label("town", exact=True).press("Enter")
    written(page)
    pinned = json.loads(site.requests[-1]["json_schema"])["properties"]
    assert pinned["tags"] == {"const": value(page)["tags"]}
    assert pinned["home"]["properties"]["town"] == {"const": "<b>P</b>"}
    assert value(page)["home"]["town"] == "<b>P</b>"
    assert page.locator("#fields b").count() == 0
    page.get_by_label("age", exact=True).fill("old")
    page.get_by_label("age", exact=True).press("Enter")
    expect(page.locator("#fields")).to_contain_text("“old” is no JSON value")


def test_alternatives_come_by_likelihood_and_can_be_taken(fields: Page, site: Site):
    page = fields
    fill(page, "object", SAMPLE)
    page.get_by_role("button", name="Alternatives of home warm").click()
    list_ = page.get_by_role("region", name="Alternatives of home warm")
    expect(list_.locator(".bar-name")).to_have_count(2)
    prefix = page.locator("#json").text_content().rpartition(":")[0]
    assert [each.startswith(prefix) for each in site.requests[-1]["continuations"]] == [True, True]
    shares = [float(each.split()[-2]) for each in list_.locator(".bar-value").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    page.get_by_role("button", name="Alternatives of name").click()
    list_ = page.get_by_role("region", name="Alternatives of name")
    expect(list_.locator(".bar-name").first).to_be_visible()
    sent = site.requests[-1]
    assert sent["n"] == 8
    assert list(json.loads(sent["json_schema"])["properties"]) == ["name"]
    name = list_.locator("button").first.inner_text()
    list_.locator("button").first.click()
    written(page)
    assert value(page)["name"] == name


def test_hostile_values_and_names_stay_text(fields: Page):
    page = fields
    name = "<img src=x onerror='hacked = 1'>"
    schema = {
        "type": "object",
        "properties": {name: {"const": "<script>hacked = 1</script>"}, "b": {"enum": [name, 2]}},
        "required": [name, "b"],
    }
    fill(page, "object", json.dumps(schema))
    page.get_by_role("button", name=f"Alternatives of {name}").click()
    expect(page.get_by_role("region", name=f"Alternatives of {name}")).to_contain_text("<script>")
    assert page.locator("main :is(img, script)").count() == 0
    assert page.evaluate("window.hacked") is None


def test_a_schema_that_is_none_is_explained_by_its_line(fields: Page, site: Site):
    page = fields
    page.get_by_label("Schema, or a sample object").fill('{\n"a": 1,\n}')
    page.get_by_role("button", name="Fill the fields").click()
    expect(page.locator("#schema-wrong")).to_have_text(
        "Line 3: expected a name in quotes, found “}”."
    )
    expect(page.get_by_label("Schema, or a sample object")).to_be_focused()
    assert site.requests == []
    page.get_by_label("Schema, or a sample object").fill('{"type": "object", "required": 7}')
    page.get_by_role("button", name="Fill the fields").click()
    expect(page.get_by_role("alert").filter(has_text="Try again")).to_contain_text("schema")


def test_arrays_and_references_are_pinned_item_by_item(page: Page):
    schema = {
        "$defs": {"pet": {"type": "object", "properties": {"name": {"type": "string"}, "age": {}}}},
        "type": "object",
        "properties": {
            "pets": {"type": "array", "items": {"$ref": "#/$defs/pet"}, "minItems": 2},
            "end": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"x": {}}}]},
        },
        "required": ["pets"],
    }
    document = {"pets": [{"name": "a", "age": 1}, {"name": "b", "age": 2}], "end": {"x": 1}}
    found = page.evaluate(
        """async ([schema, document]) => {
          const { pinned } = await import("/page/js/schema.js");
          return [
            pinned(schema, document, ["pets", 1, "name"], { value: "c" }),
            pinned(schema, document, ["pets", 1, "name"], { isLast: true }),
            pinned(schema, document, ["end", "x"], { value: 3 }),
          ];
        }""",
        [schema, document],
    )
    on, last, end = found
    pets = on["properties"]["pets"]
    assert pets["prefixItems"][0] == {"const": {"name": "a", "age": 1}}
    assert pets["prefixItems"][1]["properties"] == {"name": {"const": "c"}, "age": {}}
    assert pets["items"] == {"$ref": "#/$defs/pet"}
    assert pets["minItems"] == 2
    assert list(on["properties"]) == ["pets", "end"]
    assert on["$defs"] == schema["$defs"]
    assert list(last["properties"]) == ["pets"]
    assert last["properties"]["pets"]["maxItems"] == 2
    assert list(last["properties"]["pets"]["prefixItems"][1]["properties"]) == ["name"]
    assert end["properties"]["pets"] == {"const": document["pets"]}
    assert end["properties"]["end"]["properties"] == {"x": {"const": 3}}


def test_the_keyboard_is_enough(fields: Page):
    page = fields
    tab_to(page, "Message of the user")
    page.keyboard.type("object")
    tab_to(page, "Schema, or a sample object")
    page.keyboard.insert_text(SAMPLE)
    page.keyboard.press("Control+Enter")
    written(page)
    tab_to(page, "name")
    page.keyboard.press("Control+a")
    page.keyboard.type("Ada")
    page.keyboard.press("Enter")
    written(page)
    assert value(page)["name"] == "Ada"
    tab_to(page, "Alternatives of home warm")
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="Alternatives of home warm")).to_be_visible()
