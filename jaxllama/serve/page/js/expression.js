/**
 * Fields for expressions: knobs that are texts with words of their own. Shows where a text is wrong,
 * and inserts words. Used by the bench; knows the server's description of its knobs.
 */

import { h } from "./dom.js";
import { labelOf } from "./controls.js";

/** @typedef {import("./api.js").Knob & {words?: Record<string, string>, examples?: string[]}} TextKnob */

const PLACE = /\bcharacter (\d+): /;

/** A field for one knob. */
export class ExpressionField {
  /**
   * @param {TextKnob} knob
   * @param {(name: string, value: string | undefined) => void} onChange
   */
  constructor(knob, onChange) {
    this.knob = knob;
    const id = `one-line-${knob.name}`;
    this.field = h("textarea", {
      id,
      class: "grows",
      rows: 1,
      spellcheck: "false",
      maxlength: knob.longest,
      placeholder: knob.examples?.[0] ?? "",
      "aria-describedby": `${id}-wrong ${id}-meaning`,
      oninput: () => {
        this.showError("");
        onChange(knob.name, this.field.value.trim() === "" ? undefined : this.field.value);
      },
    });
    this.wrong = h("p", { class: "wrong", id: `${id}-wrong`, role: "alert" });
    this.place = h("p", { class: "place", "aria-hidden": "true", hidden: true });
    this.meaning = h("p", { class: "hint meaning", id: `${id}-meaning` }, helpOf(knob));
    const words = Object.entries(knob.words ?? {}).map(([word, meaning]) => {
      const tell = () => (this.meaning.textContent = `${word}: ${meaning}`);
      return h(
        "button",
        { type: "button", class: "word", title: meaning, onclick: () => this.insert(word), onfocus: tell, onpointerenter: tell },
        word,
      );
    });
    this.element = h(
      "div",
      { class: "expression", onpointerleave: () => (this.meaning.textContent = helpOf(knob)) },
      h("label", { for: id }, labelOf(knob.name)),
      this.field,
      this.place,
      this.wrong,
      h("div", { class: "words", role: "group", "aria-label": `Words of ${labelOf(knob.name)}` }, ...words),
      this.meaning,
    );
  }

  /** @param {unknown} value */
  show(value) {
    const text = typeof value === "string" ? value : "";
    if (this.field.value !== text) this.field.value = text;
    this.showError("");
  }

  /** @param {string} word inserted in place of the selection */
  insert(word) {
    const { field } = this;
    field.setRangeText(word, field.selectionStart, field.selectionEnd, "end");
    field.focus();
    field.dispatchEvent(new Event("input"));
  }

  /** @param {string} message of the server; "" if the text is right */
  showError(message) {
    this.wrong.textContent = message;
    this.field.setAttribute("aria-invalid", String(message !== ""));
    const found = PLACE.exec(message);
    this.place.hidden = found === null;
    if (!found) return;
    const at = Number(found[1]) - 1;
    const characters = [...this.field.value];
    const end = Math.max(at + 1, at + (/^\w+/.exec(characters.slice(at).join(""))?.[0].length ?? 1));
    this.place.replaceChildren(
      characters.slice(0, at).join(""),
      h("mark", {}, characters.slice(at, end).join("") || "␣"),
      characters.slice(end).join(""),
    );
  }
}

/** @param {TextKnob} knob */
function helpOf({ help }) {
  return help.charAt(0).toUpperCase() + help.slice(1);
}
