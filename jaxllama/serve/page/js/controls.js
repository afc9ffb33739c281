/**
 * Controls made from the server's description of its knobs: bounds, help, the value that means off.
 * Used by knobs.js. A control reports only values that the knob accepts; for other entries it shows
 * the error and keeps the text.
 */

import { h, icon } from "./dom.js";
import { readEntry, startOf, writeEntry } from "./values.js";

/** @typedef {import("./api.js").Knob} Knob */

const LONGEST_LINE = 256; // characters; a knob that accepts more gets a larger field
const WIDEST_SLIDER = 10;
const USUAL_SPAN = 2; // range of a slider for a knob whose bounds are far apart

/** The control of one knob. */
export class Control {
  /**
   * @param {Knob} knob
   * @param {(name: string, value: unknown) => void} onChange receives undefined for "not set"
   * @param {string} [prefix] of the ids of its elements, different for each panel of a page
   */
  constructor(knob, onChange, prefix = "knob") {
    this.knob = knob;
    this.onChange = onChange;
    const id = `${prefix}-${knob.name}`;
    this.field = makeField(knob);
    this.slider = makeSlider(knob);
    this.problem = h("p", { class: "wrong", id: `${id}-problem`, role: "alert" });
    this.reset = h(
      "button",
      { type: "button", class: "quiet", "aria-label": `Reset ${labelOf(knob.name)}`, title: "Reset" },
      icon("undo"),
    );
    this.field.id = id;
    this.field.setAttribute("aria-describedby", `${id}-help ${id}-problem`);
    const isSwitch = knob.type === "bool";
    this.element = h(
      "div",
      { class: isSwitch ? "knob switch" : "knob" },
      h("label", { for: id, title: knob.name }, labelOf(knob.name)),
      this.reset,
      this.slider ? h("div", { class: "pair" }, this.slider, this.field) : this.field,
      h("p", { class: "hint", id: `${id}-help` }, helpOf(knob)),
      this.problem,
    );
    this.listen();
  }

  listen() {
    const event = this.field instanceof HTMLSelectElement ? "change" : "input";
    this.field.addEventListener(event, () => this.typed());
    this.reset.addEventListener("click", () => {
      this.set(undefined);
      this.onChange(this.knob.name, undefined);
      this.field.focus();
    });
    this.slider?.addEventListener("input", () => {
      /** @type {HTMLInputElement} */ (this.field).value = this.slider?.value ?? "";
      this.typed();
    });
  }

  /** Report the entry if it is valid, else show the error. */
  typed() {
    const { value, wrong } = readEntry(this.knob, this.field);
    this.showError(wrong);
    if (wrong) {
      this.reset.hidden = false;
      return;
    }
    this.mark(value);
    this.onChange(this.knob.name, value);
  }

  /**
   * Show a value; undefined shows the value that a request without the knob gets.
   * @param {unknown} value
   */
  set(value) {
    writeEntry(this.knob, this.field, value);
    this.mark(value);
    this.showError(readEntry(this.knob, this.field).wrong);
  }

  /** @param {unknown} value */
  mark(value) {
    this.element.toggleAttribute("data-changed", value !== undefined);
    this.reset.hidden = value === undefined;
    if (this.slider) this.slider.value = String(value ?? startOf(this.knob) ?? this.slider.min);
  }

  /** @param {string} wrong what is wrong with the entry, or "" */
  showError(wrong) {
    this.problem.textContent = wrong;
    this.field.setAttribute("aria-invalid", String(wrong !== ""));
  }

  get isWrong() {
    return this.problem.textContent !== "";
  }
}

/**
 * Return a knob's name for display.
 * @param {string} name
 */
export function labelOf(name) {
  const words = name.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/**
 * @param {Knob} knob
 * @returns {HTMLInputElement | HTMLTextAreaElement}
 */
function makeField(knob) {
  const { name, type, low, high, width, longest = 0 } = knob;
  if (type === "bool") return h("input", { type: "checkbox", role: "switch", name });
  if (width !== null) {
    return h("textarea", { name, class: "grows", rows: 2, placeholder: `${lineOf(knob)}, one a line` });
  }
  if (type === "str" && longest > LONGEST_LINE) {
    return h("textarea", { name, class: "grows", rows: 2, spellcheck: "false" });
  }
  if (type === "str") return h("input", { type: "text", name });
  const step = type === "int" ? 1 : stepOf(low, high);
  const placeholder = startOf(knob) ?? "auto";
  return h("input", { type: "number", name, min: low, max: high, step, placeholder });
}

/**
 * Describe what a line of a list field means.
 * @param {Knob} knob
 */
function lineOf({ type, by_token, tokens, phrases }) {
  if (by_token) return "token id = number";
  if (tokens) return "token id";
  return type === "str" || phrases ? "text" : "number";
}

/**
 * Make a slider beside the field, if the bounds make one useful. A knob with far bounds gets a
 * slider over the usual values; the field accepts all. The Tab key skips it, since it repeats the
 * field.
 * @param {Knob} knob
 */
function makeSlider({ type, off, low, high, width, by_token }) {
  if (type !== "float" || width !== null || by_token || low === null || off === null) return null;
  const near = high !== null && high - low <= WIDEST_SLIDER;
  if (!near && !(off >= low && off < USUAL_SPAN && low >= 0)) return null;
  const most = near ? high : USUAL_SPAN;
  const range = { min: low, max: most, step: stepOf(low, most) };
  return h("input", { type: "range", tabindex: -1, "aria-hidden": "true", ...range });
}

/**
 * @param {number | null} low
 * @param {number | null} high
 */
function stepOf(low, high) {
  return low !== null && high !== null && high - low <= 1 ? 0.01 : 0.05;
}

/**
 * Return the help of a knob: its effect, its bounds and the model maker's recommendation.
 * @param {Knob} knob
 */
function helpOf(knob) {
  const { recommended = null } = knob;
  return recommended === null
    ? explained(knob)
    : `${explained(knob)}. Recommended for this model: ${recommended}`;
}

/** @param {Knob} knob */
function explained({ help, low, high, width, type, phrases }) {
  const sentence = help.charAt(0).toUpperCase() + help.slice(1);
  if (width !== null && (type === "str" || phrases)) return `${sentence}; \\n is a line break`;
  if (low !== null && high !== null && high < 1e6) return `${sentence} (${low} to ${high})`;
  return sentence;
}
