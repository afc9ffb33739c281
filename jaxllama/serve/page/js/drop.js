/**
 * A field for a file: choose it, or drop it anywhere on an element. Reads it as UTF-8 text. Used by
 * every page that takes files; knows nothing of their content.
 */

import { h, icon } from "./dom.js";

const MIB = 2 ** 20;

/** Takes one file at a time. */
export class FileDrop {
  /**
   * @param {object} options
   * @param {string} options.label of the button
   * @param {string} options.accept endings of file names, such as ".csv,.jsonl"
   * @param {HTMLElement} [options.area] where files may be dropped, else on the field itself
   * @param {number} [options.mostMib] the largest file that is read
   * @param {(name: string, text: string) => void} options.onText called with a file's content
   * @param {(message: string) => void} options.onProblem called with why a file was not read
   */
  constructor({ label, accept, area, mostMib = 64, onText, onProblem }) {
    this.accept = accept;
    this.mostMib = mostMib;
    this.onText = onText;
    this.onProblem = onProblem;
    const input = h("input", { type: "file", accept, hidden: true });
    input.addEventListener("change", () => {
      const file = input.files?.[0];
      input.value = "";
      if (file) this.read(file);
    });
    this.button = h(
      "button",
      { type: "button", class: "plain", onclick: () => input.click() },
      icon("upload"),
      label,
    );
    const endings = accept.split(",").join(", ");
    this.element = h(
      "div",
      { class: "drop" },
      this.button,
      h("span", { class: "hint" }, `or drop a file here: ${endings}`),
      input,
    );
    this.listen(area ?? this.element);
  }

  /** @param {HTMLElement} area */
  listen(area) {
    const over = (/** @type {boolean} */ is) => this.element.toggleAttribute("data-over", is);
    area.addEventListener("dragover", (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      over(true);
    });
    area.addEventListener("dragleave", (event) => {
      if (!area.contains(/** @type {Node | null} */ (event.relatedTarget))) over(false);
    });
    area.addEventListener("drop", (event) => {
      const file = event.dataTransfer?.files[0];
      over(false);
      if (!file) return;
      event.preventDefault();
      this.read(file);
    });
  }

  /** @param {File} file */
  async read(file) {
    const { name } = file;
    if (!this.accept.split(",").some((ending) => name.toLowerCase().endsWith(ending))) {
      this.onProblem(`“${name}” was not read: expected a file that ends in ${this.accept}.`);
    } else if (file.size > this.mostMib * MIB) {
      this.onProblem(`“${name}” was not read: it is larger than ${this.mostMib} MiB.`);
    } else {
      let text;
      try {
        const decoder = new TextDecoder("utf-8", { fatal: true });
        text = decoder.decode(await file.arrayBuffer());
      } catch {
        this.onProblem(`“${name}” was not read: it is not UTF-8 text.`);
        return;
      }
      this.onText(name, text);
    }
  }
}
