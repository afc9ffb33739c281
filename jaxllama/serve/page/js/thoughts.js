/**
 * The thoughts of a model before its answer, folded away. Used by message.js; knows only text.
 */

import { h } from "./dom.js";
import { MarkdownView } from "./markdown.js";

/** Shows thoughts once the reader unfolds them. */
export class ThoughtsView {
  constructor() {
    this.text = "";
    this.prose = new MarkdownView();
    this.label = h("span", {}, "Thoughts");
    this.dots = h("span", { class: "dots" }, "…");
    this.element = h(
      "details",
      { class: "thoughts", ontoggle: () => this.draw() },
      h("summary", {}, this.label, this.dots),
      this.prose.element,
    );
  }

  /**
   * @param {string} text the thoughts so far
   * @param {boolean} isThinking
   */
  show(text, isThinking) {
    this.text = text;
    const label = isThinking ? "Thinking" : "Thoughts";
    if (this.label.textContent !== label) this.label.textContent = label;
    this.dots.textContent = isThinking ? "…" : "";
    this.draw();
  }

  draw() {
    if (this.element.open) this.prose.show(this.text);
  }
}
