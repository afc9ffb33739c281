/**
 * The settings of the open conversation: what the model is told, prompt format, preset, and every
 * knob of every sampler that the server has. Used by chat.js; knows controls, not requests.
 */

import { Control, labelOf } from "./controls.js";
import { byId, h } from "./dom.js";
import { readChoices, keepChoices } from "./store.js";

/** @typedef {import("./api.js").Plugins} Plugins */
/** @typedef {import("./api.js").Knob} Knob */
/** @typedef {import("./conversation.js").Conversation} Conversation */

/** Kinds of samplers, in the order in which they work. */
const STAGES = [
  { kind: "adjuster", title: "Before temperature" },
  { kind: "filter", title: "After temperature" },
];
/** Of the core, what the page asks for itself. */
const OWN = new Set(["logprobs", "preset"]);
/** Of the core, what holds an answer to a form. */
const FORM = new Set(["json_schema", "json_object", "regex", "choices", "grammar"]);
const ALTERNATIVES = 5;

/** The settings panel. */
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
   * Build the controls from what the server has.
   * @param {Plugins} plugins
   */
  build(plugins) {
    this.plugins = plugins;
    this.controls.clear();
    this.summaries.clear();
    const all = plugins.core.filter(({ name }) => !OWN.has(name)).map(coreKnob);
    const core = all.filter(({ name }) => !FORM.has(name));
    const rare = (/** @type {Knob} */ { type, width }) =>
      type === "bool" || (type === "int" && width !== null);
    byId("core").replaceChildren(
      ...core.filter((knob) => !rare(knob)).map((knob) => this.control(knob).element),
    );
    const form = all.filter(({ name }) => FORM.has(name));
    byId("stages").replaceChildren(
      this.group("More", "", core.filter(rare)),
      form.length > 0 ? this.group("Form of the answer", "What it must look like.", form) : "",
      ...stagesOf(plugins).flatMap(({ kind, title }) => {
        const samplers = plugins.samplers.filter((sampler) => sampler.kind === kind);
        samplers.sort((one, other) => one.order - other.order || (one.name < other.name ? -1 : 1));
        const groups = samplers.filter(({ knobs }) => knobs.length > 0);
        if (groups.length === 0) return [];
        return [
          h("h3", {}, title),
          ...groups.map(({ name, doc, knobs }) => this.group(labelOf(name), doc, knobs)),
        ];
      }),
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
   * One sampler: its name and, folded away, its knobs.
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

  /** What a folded group has set, the preset that this is, and knobs nobody knows. */
  showSums() {
    const { knobs } = /** @type {Conversation} */ (this.conversation);
    for (const summary of this.summaries.values()) summary.textContent = "";
    for (const [name, summary] of this.summaries) {
      if (!(name in knobs)) continue;
      const value = typeof knobs[name] === "object" ? "set" : String(knobs[name]);
      summary.textContent = [summary.textContent, value].filter(Boolean).join(", ");
    }
    const set = this.withoutOthers(knobs);
    const same = this.plugins.presets.find((preset) => sameKnobs(preset.knobs, set));
    this.preset.value = same?.name ?? "";
    byId("preset-doc").textContent = same?.doc ?? "";
    byId("reset-knobs").hidden = Object.keys(knobs).length === 0;
    const unknown = this.controls.size === 0 ? [] : this.unknown();
    byId("unknown").textContent =
      unknown.length === 0
        ? ""
        : `Not sent, because no sampler of this server knows it: ${unknown.join(", ")}.`;
  }

  unknown() {
    return Object.keys(this.conversation?.knobs ?? {}).filter((name) => !this.controls.has(name));
  }

  /** Take a preset's knobs in the place of those that presets are about. */
  usePreset() {
    const preset = this.plugins.presets.find(({ name }) => name === this.preset.value);
    const knobs = { ...this.conversation?.knobs };
    for (const name of Object.keys(this.withoutOthers(knobs))) delete knobs[name];
    this.change({ knobs: { ...knobs, ...structuredClone(preset?.knobs ?? {}) } }, true);
  }

  /**
   * Knobs that presets are about: those of samplers, and of the core what any preset sets.
   * @param {Record<string, unknown>} knobs
   */
  withoutOthers(knobs) {
    const { core, presets } = this.plugins;
    const others = new Set(core.map(({ name }) => name));
    for (const preset of presets) for (const name of Object.keys(preset.knobs)) others.delete(name);
    return Object.fromEntries(Object.entries(knobs).filter(([name]) => !others.has(name)));
  }

  /**
   * @param {Partial<Conversation>} changed
   * @param {boolean} [everywhere] whether controls must follow
   */
  change(changed, everywhere = false) {
    const conversation = /** @type {Conversation} */ (this.conversation);
    Object.assign(conversation, changed);
    if (everywhere) this.show(conversation);
    else this.showSums();
    this.onChange();
  }

  /**
   * The fields of a request that the settings make: only what was changed.
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

  /** The first control that holds something its knob does not take. */
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

  /** Put the focus where the API key is entered. */
  revealKey() {
    byId("access").open = true;
    byId("key").focus();
  }
}

/**
 * The stages there are; a kind that this page does not know yet is one of its own.
 * @param {Plugins} plugins
 */
function stagesOf({ samplers }) {
  const known = new Set(STAGES.map(({ kind }) => kind));
  const others = new Set(samplers.map(({ kind }) => kind).filter((kind) => !known.has(kind)));
  return [...STAGES, ...[...others].map((kind) => ({ kind, title: labelOf(kind) }))];
}

/**
 * A row of the server's core limits as a knob.
 * @param {any} row
 * @returns {Knob}
 */
function coreKnob(row) {
  const { name, type, low = null, high = null, help = "", many = false, most = null, longest } = row;
  const off = many ? null : (row.default ?? null);
  const width = many ? most : null;
  return { name, type, off, low, high, width, by_token: false, longest, help };
}

/**
 * @param {Record<string, unknown>} one
 * @param {Record<string, unknown>} other
 */
function sameKnobs(one, other) {
  const names = new Set([...Object.keys(one), ...Object.keys(other)]);
  return [...names].every((name) => JSON.stringify(one[name]) === JSON.stringify(other[name]));
}
