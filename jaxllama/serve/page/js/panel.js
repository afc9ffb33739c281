/**
 * The settings of the open conversation: system prompt, prompt format, preset, and every knob of
 * every sampler of the server. Used by chat.js; knows controls, not requests.
 */

import { coreGroups, presetKnobs, presetOf, stagesOf } from "./catalogue.js";
import { Control, labelOf } from "./controls.js";
import { byId, h } from "./dom.js";
import { readChoices, keepChoices } from "./store.js";

/** @typedef {import("./api.js").Plugins} Plugins */
/** @typedef {import("./api.js").Knob} Knob */
/** @typedef {import("./conversation.js").Conversation} Conversation */

const ALTERNATIVES = 5;

/** Controls the settings panel. */
export class Panel {
  /** @param {() => void} onChange called when a setting of the conversation changed */
  constructor(onChange) {
    this.onChange = onChange;
    /** @type {Conversation | null} */
    this.conversation = null;
    /** @type {Map<string, Control>} */
    this.controls = new Map();
    /** @type {Map<string, HTMLElement>} */
    this.summaries = new Map();
    /** @type {Plugins} */
    this.plugins = { samplers: [], formats: [], presets: [], core: [] };
    this.system = byId("system");
    this.format = byId("format");
    this.preset = byId("preset");
    this.alternatives = byId("alternatives");
    this.alternatives.value = String(readChoices().alternatives ?? ALTERNATIVES);
    this.system.addEventListener("input", () => this.change({ system: this.system.value }));
    this.format.addEventListener("change", () => this.change({ format: this.format.value }));
    this.preset.addEventListener("change", () => this.usePreset());
    this.alternatives.addEventListener("change", () => {
      keepChoices({ alternatives: this.alternatives.value });
    });
    byId("reset-knobs").addEventListener("click", () => this.change({ knobs: {} }, true));
  }

  /**
   * Build the controls from the server's plugins.
   * @param {Plugins} plugins
   */
  build(plugins) {
    this.plugins = plugins;
    this.controls.clear();
    this.summaries.clear();
    const { usual, rare, form } = coreGroups(plugins.core);
    byId("core").replaceChildren(...usual.map((knob) => this.control(knob).element));
    byId("stages").replaceChildren(
      this.group("More", "", rare),
      form.length > 0 ? this.group("Form of the answer", "The form that the answer must have.", form) : "",
      ...stagesOf(plugins.samplers).flatMap(({ title, samplers }) => [
        h("h3", {}, title),
        ...samplers.map(({ name, doc, knobs }) => this.group(labelOf(name), doc, knobs)),
      ]),
    );
    const own = plugins.formats.find((format) => format.chosen)?.name;
    this.format.replaceChildren(
      h("option", { value: "" }, own ? `The model's own (${own})` : "The model's own"),
      ...plugins.formats.map(({ name }) => h("option", { value: name }, name)),
    );
    this.preset.replaceChildren(
      h("option", { value: "" }, "None"),
      ...plugins.presets.map(({ name }) => h("option", { value: name }, labelOf(name))),
    );
    byId("preset-row").hidden = plugins.presets.length === 0;
    if (this.conversation) this.show(this.conversation);
  }

  /** @param {Knob} knob */
  control(knob) {
    const control = new Control(knob, (name, value) => {
      const knobs = { ...this.conversation?.knobs };
      if (value === undefined) delete knobs[name];
      else knobs[name] = value;
      this.change({ knobs });
    });
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
   * Show a conversation's settings.
   * @param {Conversation} conversation
   */
  show(conversation) {
    this.conversation = conversation;
    const { system, format, knobs } = conversation;
    if (this.system.value !== system) this.system.value = system;
    this.format.value = format;
    if (this.format.value !== format) {
      this.format.append(h("option", { value: format }, `${format} (not installed)`));
      this.format.value = format;
    }
    for (const [name, control] of this.controls) control.set(knobs[name]);
    this.showSums();
  }

  /** Update the summaries of groups, the selected preset, and the list of unknown knobs. */
  showSums() {
    const { knobs } = /** @type {Conversation} */ (this.conversation);
    for (const summary of this.summaries.values()) summary.textContent = "";
    for (const [name, summary] of this.summaries) {
      const value = this.shortValue(name, knobs);
      summary.textContent = [summary.textContent, value].filter(Boolean).join(", ");
    }
    const same = presetOf(this.plugins, knobs);
    this.preset.value = same?.name ?? "";
    byId("preset-doc").textContent = same?.doc ?? "";
    byId("reset-knobs").hidden = Object.keys(knobs).length === 0;
    const unknown = this.controls.size === 0 ? [] : this.unknown();
    byId("unknown").textContent =
      unknown.length === 0
        ? ""
        : `Not sent, because no sampler of this server has it: ${unknown.join(", ")}.`;
  }

  /**
   * Return a knob's value as short text: "" if it is not set and no value is recommended.
   * @param {string} name
   * @param {Record<string, unknown>} knobs
   */
  shortValue(name, knobs) {
    if (name in knobs) return typeof knobs[name] === "object" ? "set" : String(knobs[name]);
    const recommended = this.controls.get(name)?.knob.recommended ?? null;
    return recommended === null ? "" : `${recommended} (model)`;
  }

  unknown() {
    return Object.keys(this.conversation?.knobs ?? {}).filter((name) => !this.controls.has(name));
  }

  /** Replace the knobs that presets set by those of the selected preset. */
  usePreset() {
    const preset = this.plugins.presets.find(({ name }) => name === this.preset.value);
    const knobs = { ...this.conversation?.knobs };
    for (const name of Object.keys(presetKnobs(this.plugins, knobs))) delete knobs[name];
    this.change({ knobs: { ...knobs, ...structuredClone(preset?.knobs ?? {}) } }, true);
  }

  /**
   * @param {Partial<Conversation>} changed
   * @param {boolean} [everywhere] whether to update the controls, too
   */
  change(changed, everywhere = false) {
    const conversation = /** @type {Conversation} */ (this.conversation);
    Object.assign(conversation, changed);
    if (everywhere) this.show(conversation);
    else this.showSums();
    this.onChange();
  }

  /**
   * Return the fields of a request for the changed settings.
   * @param {Conversation} conversation
   * @returns {Record<string, unknown>}
   */
  request({ format, knobs }) {
    const known = Object.entries(knobs).filter(([name]) => this.controls.has(name));
    const others = Number(this.alternatives.value);
    return {
      ...Object.fromEntries(known),
      ...(format && { format }),
      ...(others >= 0 && { logprobs: true, top_logprobs: others }),
    };
  }

  /** Return the first control with an invalid entry. */
  get wrong() {
    return [...this.controls.values()].find((control) => control.isWrong) ?? null;
  }

  /**
   * Unfold a control and put the focus there.
   * @param {string} name
   */
  reveal(name) {
    const control = this.controls.get(name);
    const group = control?.element.closest("details");
    if (group) group.open = true;
    control?.field.focus();
  }

  /** Focus the field of the API key. */
  revealKey() {
    byId("access").open = true;
    byId("key").focus();
  }
}
