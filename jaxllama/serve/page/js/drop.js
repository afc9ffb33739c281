/**
 * A field for a file: choose it, or drop it anywhere on an element. Reads it as UTF-8 text. Used by
 * every page with a form for files, and by filereading.js; knows nothing of their content.
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
    listenForDrops(area ?? this.element, this.element, (file) => this.read(file));
  }

  /** @param {File} file */
  async read(file) {
    const { name } = file;
    if (!this.accept.split(",").some((ending) => name.toLowerCase().endsWith(ending))) {
      this.onProblem(`“${name}” was not read: expected a file that ends in ${this.accept}.`);
    } else if (file.size > this.mostMib * MIB) {
      this.onProblem(`“${name}” was not read: it is larger than ${this.mostMib} MiB.`);
    } else {
      const text = await textIn(file);
      if (text === null) this.onProblem(`“${name}” was not read: it is not UTF-8 text.`);
      else this.onText(name, text);
    }
  }
}

/**
 * Call `take` with a file that is dropped on an element.
 * @param {HTMLElement} area
 * @param {HTMLElement} marked gets the attribute data-over while a file is above the area
 * @param {(file: File) => void} take
 */
export function listenForDrops(area, marked, take) {
  const over = (/** @type {boolean} */ is) => marked.toggleAttribute("data-over", is);
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
    take(file);
  });
}

/**
 * Read a file as UTF-8; null if it is something else.
 * @param {File} file
 */
export async function textIn(file) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    return null;
  }
}
