/**
 * Files for a message: chosen with a button, dropped on the page or pasted. Reads text files; says of
 * others that the model cannot see them. Used by the chat page; knows nothing of conversations.
 */

import { listenForDrops, textIn } from "./drop.js";
import { h } from "./dom.js";

const MOST_KIB = 256; // more text than any message is good for

/** Takes one file at a time. */
export class FileReading {
  /**
   * @param {object} options
   * @param {HTMLElement} options.area where files may be dropped and pasted
   * @param {HTMLElement} options.button
   * @param {(file: File, text: string) => void} options.onText called with a text file's content
   * @param {(words: string) => void} options.onProblem called with why a file was not read
   */
  constructor({ area, button, onText, onProblem }) {
    this.onText = onText;
    this.onProblem = onProblem;
    const input = h("input", { type: "file", hidden: true });
    input.addEventListener("change", () => {
      const file = input.files?.[0];
      input.value = "";
      if (file) this.read(file);
    });
    button.after(input);
    button.addEventListener("click", () => input.click());
    listenForDrops(area, area, (file) => this.read(file));
    area.addEventListener("paste", (event) => {
      const file = event.clipboardData?.files[0];
      if (!file) return;
      event.preventDefault();
      this.read(file);
    });
  }

  /** @param {File} file */
  async read(file) {
    const { name, size, type } = file;
    const kind = type.split("/")[0];
    if (["image", "audio", "video"].includes(kind) && type !== "image/svg+xml") {
      this.onProblem(`“${name}” was not added: this model reads text only, so it cannot ${kind === "audio" ? "hear" : "see"} it.`);
      return;
    }
    if (size > MOST_KIB * 1024) {
      this.onProblem(`“${name}” was not added: it is larger than ${MOST_KIB} KiB, more than a message can hold.`);
      return;
    }
    const text = await textIn(file);
    if (text === null || text.includes("\0")) {
      this.onProblem(`“${name}” was not added: it is not a text file, and this model reads text only.`);
    } else {
      this.onText(file, text);
    }
  }
}

/**
 * Return a text as a block of code, inside a fence that is longer than any in it.
 * @param {string} text
 */
export function fenced(text) {
  const longest = Math.max(2, ...[...text.matchAll(/`{3,}/g)].map(([found]) => found.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${text.replace(/\n$/, "")}\n${fence}`;
}
