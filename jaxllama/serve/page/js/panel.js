/**
 * The settings of the open conversation: system prompt, model, prompt format, tools, the knobs of
 * all samplers, and how many alternatives to record. Used by chat.js; knows controls, not requests.
 */

import { byId } from "./dom.js";
import { choose, offerFormats, offerModels } from "./choices.js";
import { KnobPanel } from "./knobs.js";
import { keepChoices, readChoices } from "./preferences.js";

/** @typedef {import("./api.js").Plugins} Plugins */
/** @typedef {import("./conversation.js").Conversation} Conversation */

const ALTERNATIVES = 5;

/** Controls the settings panel. */
export class Panel {
  /** @param {() => void} onChange called when a setting of the conversation changed */
  constructor(onChange) {
    this.onChange = onChange;
    /** @type {Conversation | null} */
    this.conversation = null;
    this.knobs = new KnobPanel({ onChange: (knobs) => this.change({ knobs }) });
    byId("knob-panel").replaceChildren(this.knobs.element);
    this.system = byId("system");
    this.model = byId("model-choice");
    this.format = byId("format");
    this.tools = byId("tools");
    this.alternatives = byId("alternatives");
    this.alternatives.value = String(readChoices().alternatives ?? ALTERNATIVES);
    this.system.addEventListener("input", () => this.change({ system: this.system.value }));
    this.format.addEventListener("change", () => this.change({ format: this.format.value }));
    this.model.addEventListener("change", () => {
      this.change({ model: this.model.value });
      this.showModel();
    });
    this.tools.addEventListener("input", () => {
      this.change({ tools: this.tools.value });
      this.checkTools();
    });
    this.alternatives.addEventListener("change", () => {
      keepChoices({ alternatives: this.alternatives.value });
    });
  }

  /**
   * Build the controls from the server's plugins and the names of its models.
   * @param {Plugins} plugins
   * @param {import("./api.js").ModelName[]} models
   */
  build(plugins, models) {
    this.knobs.build(plugins);
    offerFormats(this.format, plugins);
    offerModels(this.model, models);
    if (this.conversation) this.show(this.conversation);
  }

  /**
   * Show a conversation's settings.
   * @param {Conversation} conversation
   */
  show(conversation) {
    this.conversation = conversation;
    const { system, format, model, tools, knobs } = conversation;
    if (this.system.value !== system) this.system.value = system;
    if (this.tools.value !== tools) this.tools.value = tools;
    choose(this.format, format);
    if (this.model.options.length > 0) choose(this.model, model);
    this.knobs.show(knobs);
    this.showModel();
    this.checkTools();
  }

  /** Show the chosen model's name above the messages, and the choice where there is one. */
  showModel() {
    const { options, selectedIndex } = this.model;
    byId("model-row").hidden = options.length < 2;
    if (options.length > 0) byId("model").textContent = this.model.value || options[Math.max(0, selectedIndex)].text;
  }

  /** Say what is wrong with the tools. */
  checkTools() {
    const wrong = readTools(this.tools.value) === null;
    byId("tools-wrong").textContent = wrong ? "Expected a JSON list of tools, each with type and function." : "";
    this.tools.setAttribute("aria-invalid", String(wrong));
  }

  /** Unfold the field of the tools and focus it. */
  revealTools() {
    byId("tools-group").open = true;
    this.tools.focus();
  }

  get areToolsWrong() {
    return readTools(this.tools.value) === null;
  }

  /** @param {Partial<Conversation>} changed */
  change(changed) {
    Object.assign(/** @type {Conversation} */ (this.conversation), changed);
    this.onChange();
  }

  /**
   * Return the fields of a request for the changed settings.
   * @param {Conversation} conversation
   * @returns {Record<string, unknown>}
   */
  request({ format, tools, knobs }) {
    const offered = readTools(tools) ?? [];
    const known = Object.entries(knobs).filter(([name]) => this.knobs.controls.has(name));
    const others = Number(this.alternatives.value);
    return {
      ...Object.fromEntries(known),
      ...(format && { format }),
      ...(offered.length > 0 && { tools: offered }),
      ...(others >= 0 && { logprobs: true, top_logprobs: others }),
    };
  }

  /** Return the first control with an invalid entry. */
  get wrong() {
    return this.knobs.wrong;
  }}

/**
 * Read a list of tools.
 * @param {string} text
 * @returns {object[] | null} null if it is none
 */
function readTools(text) {
  if (text.trim() === "") return [];
  try {
    const tools = JSON.parse(text);
    const areTools = Array.isArray(tools) && tools.every((each) => typeof each === "object" && each !== null);
    return areTools ? tools : null;
  } catch {
    return null;
  }
}
