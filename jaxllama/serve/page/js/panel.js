/**
 * The settings of the open conversation: system prompt, prompt format, the knobs of all samplers,
 * and how many alternatives to record. Used by chat.js; knows controls, not requests.
 */

import { byId } from "./dom.js";
import { chooseFormat, offerFormats } from "./formats.js";
import { KnobPanel } from "./knobs.js";
import { readChoices, keepChoices } from "./store.js";

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
    this.format = byId("format");
    this.alternatives = byId("alternatives");
    this.alternatives.value = String(readChoices().alternatives ?? ALTERNATIVES);
    this.system.addEventListener("input", () => this.change({ system: this.system.value }));
    this.format.addEventListener("change", () => this.change({ format: this.format.value }));
    this.alternatives.addEventListener("change", () => {
      keepChoices({ alternatives: this.alternatives.value });
    });
  }

  /**
   * Build the controls from the server's plugins.
   * @param {Plugins} plugins
   */
  build(plugins) {
    this.knobs.build(plugins);
    offerFormats(this.format, plugins);
    if (this.conversation) this.show(this.conversation);
  }

  /**
   * Show a conversation's settings.
   * @param {Conversation} conversation
   */
  show(conversation) {
    this.conversation = conversation;
    const { system, format, knobs } = conversation;
    if (this.system.value !== system) this.system.value = system;
    chooseFormat(this.format, format);
    this.knobs.show(knobs);
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
  request({ format, knobs }) {
    const known = Object.entries(knobs).filter(([name]) => this.knobs.controls.has(name));
    const others = Number(this.alternatives.value);
    return {
      ...Object.fromEntries(known),
      ...(format && { format }),
      ...(others >= 0 && { logprobs: true, top_logprobs: others }),
    };
  }

  /** Return the first control with an invalid entry. */
  get wrong() {
    return this.knobs.wrong;
  }}
