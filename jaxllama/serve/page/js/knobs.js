/**
 * The knobs of every sampler of the server, with presets and a search. Used by every page that
 * generates; makes its own elements. Knows the server's description of its knobs, not requests.
 */

import { coreGroups, presetKnobs, presetOf, stagesOf } from "./catalogue.js";
import { Control, labelOf } from "./controls.js";
import { h } from "./dom.js";

/** @typedef {import("./api.js").Plugins} Plugins */
/** @typedef {import("./api.js").Knob} Knob */
/** @typedef {Record<string, unknown>} Knobs */

/** A panel of knobs: `show(knobs)` fills it, `onChange(knobs)` reports what the reader changed. */
export class KnobPanel {
  /**
   * @param {object} options
   * @param {(knobs: Knobs) => void} options.onChange receives only the knobs that are set
   * @param {string} [options.prefix] of the ids of its elements, different for each panel of a page
   * @param {string[]} [options.except] core fields that the page sets itself
   */
  constructor({ onChange, prefix = "knob", except = [] }) {
    this.onChange = onChange;
    this.prefix = prefix;
    this.except = new Set(except);
    /** @type {Knobs} */
    this.knobs = {};
    /** @type {Map<string, Control>} */
    this.controls = new Map();
    /** @type {Map<string, HTMLElement>} */
    this.summaries = new Map();
    /** @type {Plugins} */
    this.plugins = { samplers: [], formats: [], presets: [], core: [] };
    this.preset = h("select", {
      id: `${prefix}s-preset`,
      "aria-describedby": `${prefix}s-preset-doc`,
      onchange: () => this.usePreset(),
    });
    this.presetDoc = h("p", { class: "hint", id: `${prefix}s-preset-doc` });
    this.presetRow = h(
      "div",
      { class: "knob" },
      h("label", { for: this.preset.id }, "Preset"),
      this.preset,
      this.presetDoc,
    );
    this.reset = h(
      "button",
      { type: "button", class: "plain", onclick: () => this.change({}, true) },
      "Reset all",
    );
    this.search = h("input", {
      type: "search",
      class: "search",
      "aria-label": "Find a setting",
      placeholder: "Find a setting",
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => this.find(),
    });
    this.advice = h("p", { class: "hint" });
    this.nothing = h("p", { class: "hint", role: "status" });
    this.unknown = h("p", { class: "hint" });
    this.core = h("div");
    this.stages = h("div");
    this.element = h(
      "div",
      { class: "knob-panel" },
      this.presetRow,
      h("div", { class: "heading" }, h("h3", {}, "Sampling"), this.reset),
      this.advice,
      this.search,
      this.nothing,
      this.unknown,
      this.core,
      this.stages,
    );
    // Enter in a field must not send a form around the panel.
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Enter") event.preventDefault();
      if (event.key !== "Escape" || this.search.value === "") return;
      event.preventDefault();
      event.stopPropagation();
      this.search.value = "";
      this.find();
    });
  }

  /**
   * Build the controls from the server's plugins.
   * @param {Plugins} plugins
   */
  build(plugins) {
    this.plugins = plugins;
    this.controls.clear();
    this.summaries.clear();
    const core = plugins.core.filter(({ name }) => !this.except.has(name));
    const { usual, rare, form } = coreGroups(core);
    this.core.replaceChildren(...usual.map((knob) => this.control(knob).element));
    this.stages.replaceChildren(
      rare.length > 0 ? this.group("More", "", rare) : "",
      form.length > 0 ? this.group("Form of the answer", "The form that the answer must have.", form) : "",
      ...stagesOf(plugins.samplers).map(({ title, samplers }) =>
        h(
          "section",
          {},
          h("h3", {}, title),
          ...samplers.map(({ name, doc, knobs }) => this.group(labelOf(name), doc, knobs)),
        ),
      ),
    );
    this.preset.replaceChildren(
      h("option", { value: "" }, "None"),
      ...plugins.presets.map(({ name }) => h("option", { value: name }, labelOf(name))),
    );
    const advised = [...this.controls.values()].map(({ knob }) => knob).filter(({ recommended }) => (recommended ?? null) !== null);
    this.advice.hidden = advised.length === 0;
    this.advice.textContent = `The model's maker recommends ${advised.map(({ name, recommended }) => `${name} ${recommended}`).join(", ")}. A request gets these values unless you change them.`;
    this.presetRow.hidden = plugins.presets.length === 0;
    this.show(this.knobs);
    this.find();
  }

  /** @param {Knob} knob */
  control(knob) {
    const control = new Control(
      knob,
      (name, value) => {
        const knobs = { ...this.knobs };
        if (value === undefined) delete knobs[name];
        else knobs[name] = value;
        this.change(knobs);
      },
      this.prefix,
    );
    this.controls.set(knob.name, control);
    return control;
  }

  /**
   * Make the group of a sampler: its name and, folded, its knobs.
   * @param {string} title
   * @param {string} doc
   * @param {Knob[]} knobs
   */
  group(title, doc, knobs) {
    const summary = h("span", { class: "value" });
    for (const { name } of knobs) this.summaries.set(name, summary);
    return h(
      "details",
      { class: "group" },
      h("summary", {}, h("span", {}, title), summary),
      doc && h("p", { class: "doc" }, doc.split("\n\n")[0]),
      ...knobs.map((knob) => this.control(knob).element),
    );
  }

  /**
   * Show these knobs; the others get the value that a request without them gets.
   * @param {Knobs} knobs
   */
  show(knobs) {
    this.knobs = knobs;
    for (const [name, control] of this.controls) control.set(knobs[name]);
    this.showSums();
  }

  /** Update the summaries of groups, the selected preset, and the list of unknown knobs. */
  showSums() {
    const { knobs } = this;
    for (const summary of this.summaries.values()) summary.textContent = "";
    for (const [name, summary] of this.summaries) {
      const value = this.shortValue(name);
      summary.textContent = [summary.textContent, value].filter(Boolean).join(", ");
    }
    const same = presetOf(this.plugins, knobs);
    this.preset.value = same?.name ?? "";
    this.presetDoc.textContent = same?.doc ?? "";
    this.reset.hidden = Object.keys(knobs).length === 0;
    const unknown =
      this.controls.size === 0
        ? []
        : Object.keys(knobs).filter((name) => !this.controls.has(name) && !this.except.has(name));
    this.unknown.textContent =
      unknown.length === 0
        ? ""
        : `Not sent, because no sampler of this server has it: ${unknown.join(", ")}.`;
  }

  /**
   * Return a knob's value as short text: "" if it is not set and no value is recommended.
   * @param {string} name
   */
  shortValue(name) {
    const { knobs } = this;
    if (name in knobs) return typeof knobs[name] === "object" ? "set" : String(knobs[name]);
    const recommended = this.controls.get(name)?.knob.recommended ?? null;
    return recommended === null ? "" : `${recommended} (model)`;
  }

  /** Replace the knobs that presets set by those of the selected preset. */
  usePreset() {
    const preset = this.plugins.presets.find(({ name }) => name === this.preset.value);
    const knobs = { ...this.knobs };
    for (const name of Object.keys(presetKnobs(this.plugins, knobs))) delete knobs[name];
    this.change({ ...knobs, ...structuredClone(preset?.knobs ?? {}) }, true);
  }

  /**
   * @param {Knobs} knobs
   * @param {boolean} [everywhere] whether to update the controls, too
   */
  change(knobs, everywhere = false) {
    this.knobs = knobs;
    if (everywhere) this.show(knobs);
    else this.showSums();
    this.onChange(knobs);
  }

  /**
   * Return the knobs that are set, as fields of a request.
   * @returns {Knobs}
   */
  request() {
    return Object.fromEntries(Object.entries(this.knobs).filter(([name]) => this.controls.has(name)));
  }

  /** Show only the settings whose name, help or sampler has every word of the search. */
  find() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    /** @param {string | null} text */
    const matches = (text) => words.every((word) => (text ?? "").toLowerCase().includes(word));
    let found = 0;
    for (const { element, knob } of this.controls.values()) {
      const group = element.closest("details");
      const about = group ? `${group.querySelector("summary")?.textContent} ${group.querySelector(".doc")?.textContent}` : "";
      element.hidden = !matches(`${knob.name} ${element.textContent} ${about}`);
      found += Number(!element.hidden);
    }
    for (const part of this.stages.querySelectorAll("details, section")) {
      const hidden = part.querySelector(".knob:not([hidden])") === null;
      /** @type {HTMLElement} */ (part).hidden = hidden;
      if (part instanceof HTMLDetailsElement && (words.length > 0 || part.hasAttribute("data-found"))) {
        part.open = words.length > 0 && !hidden;
        part.toggleAttribute("data-found", words.length > 0);
      }
    }
    this.nothing.textContent = words.length > 0 && found === 0 ? "No setting is like this." : "";
  }

  /** Return the first control with an invalid entry. */
  get wrong() {
    return [...this.controls.values()].find((control) => control.isWrong) ?? null;
  }

  /**
   * Unfold the groups of these knobs.
   * @param {string[]} names
   */
  unfold(names) {
    for (const name of names) {
      const group = this.controls.get(name)?.element.closest("details");
      if (group) group.open = true;
    }
  }

  /**
   * Unfold a control and put the focus there.
   * @param {string} name
   */
  reveal(name) {
    const control = this.controls.get(name);
    if (!control) return;
    if (this.search.value !== "") {
      this.search.value = "";
      this.find();
    }
    this.unfold([name]);
    control.field.focus();
  }
}
