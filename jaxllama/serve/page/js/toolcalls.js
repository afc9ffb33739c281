/**
 * The tool calls of an answer: the name and the arguments of each, and a form for what the tools
 * return. Used by message.js; calls no tool itself.
 */

import { CodeView } from "./code.js";
import { arrange, h, onSubmit } from "./dom.js";

/** @typedef {import("./conversation.js").ToolCall} ToolCall */

/** Shows the calls of one answer. */
export class ToolCallsView {
  /** @param {(results: string[]) => void} onResults receives what each tool returned */
  constructor(onResults) {
    /** @type {{name: HTMLElement, code: CodeView, element: HTMLElement}[]} */
    this.views = [];
    this.list = h("div", { class: "tool-calls" });
    this.onResults = onResults;
    /** @type {HTMLFormElement | null} */
    this.form = null;
    this.element = h("div", { class: "prose" }, this.list);
  }

  /**
   * @param {ToolCall[]} calls
   * @param {boolean} isOpen whether the results can be given now
   */
  show(calls, isOpen) {
    while (this.views.length < calls.length) {
      const [name, code] = [h("b"), new CodeView({ text: "", lang: "json" })];
      this.views.push({ name, code, element: h("div", { class: "tool-call" }, h("p", {}, "Calls ", name), code.element) });
    }
    this.views.length = calls.length;
    for (const [place, { name, code }] of this.views.entries()) {
      const text = pretty(calls[place].arguments);
      if (name.textContent !== calls[place].name) name.textContent = calls[place].name;
      if (code.text !== text) code.show(text);
    }
    arrange(this.list, this.views.map(({ element }) => element));
    if (isOpen) this.offer(calls);
    else this.close();
  }

  /** @param {ToolCall[]} calls */
  offer(calls) {
    if (this.form) return;
    const fields = calls.map(() => h("textarea", { class: "grows", rows: 1 }));
    this.form = h(
      "form",
      { class: "tool-results", autocomplete: "off" },
      ...calls.map(({ name }, place) => h("label", {}, `What ${name} returns`, fields[place])),
      h("div", { class: "row" }, h("button", { type: "submit", class: "primary" }, "Send the results")),
    );
    onSubmit(this.form, () => this.onResults(fields.map(({ value }) => value)));
    this.element.append(this.form);
  }

  close() {
    this.form?.remove();
    this.form = null;
  }
}

/**
 * Return JSON with line breaks; text that is no JSON, or not all of it yet, as it is.
 * @param {string} text
 */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
