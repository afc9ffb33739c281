/**
 * The list of a page's keyboard shortcuts, in a dialog that the key ? opens, and Ctrl and / even while
 * the reader writes. Used by frame.js; knows only names and keys.
 */

import { byId, h, iconButton } from "./dom.js";

/** @typedef {[string, string]} Shortcut what it does, and its keys with spaces between them */

/** @type {Shortcut[]} */
const EVERYWHERE = [
  ["Close what is open over the page", "Esc"],
  ["Show this list", "?"],
  ["Show this list, also while you write", "Ctrl /"],
];

/** Opens the list. */
export class ShortcutList {
  /** @param {Shortcut[]} shortcuts of the page */
  constructor(shortcuts) {
    const rows = [...shortcuts, ...EVERYWHERE].flatMap(([name, keys]) => [
      h("dt", {}, name),
      h("dd", {}, ...keys.split(" ").flatMap((key) => [h("kbd", {}, key), " "])),
    ]);
    this.dialog = h(
      "dialog",
      { class: "shortcuts", "aria-labelledby": "shortcuts-title" },
      h(
        "header",
        {},
        h("h2", { id: "shortcuts-title" }, "Keyboard shortcuts"),
        iconButton("close", "Close the list", () => this.dialog.close()),
      ),
      h("dl", {}, ...rows),
    );
    this.dialog.addEventListener("click", ({ target }) => {
      if (target === this.dialog) this.dialog.close(); // outside the list
    });
    // The keys of the page do nothing while the list is open.
    this.dialog.addEventListener("keydown", (event) => event.stopPropagation());
    document.body.append(this.dialog);
    byId("show-shortcuts").addEventListener("click", () => this.show());
    document.addEventListener("keydown", (event) => {
      const isCommand = event.ctrlKey || event.metaKey;
      const isAsked = isCommand ? event.key === "/" : event.key === "?" && !isWriting(event.target);
      if (!isAsked || event.altKey) return;
      event.preventDefault();
      this.show();
    });
  }

  show() {
    if (!this.dialog.open) this.dialog.showModal();
  }
}

/**
 * Whether a key in this element writes text.
 * @param {EventTarget | null} target
 */
export function isWriting(target) {
  if (target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement) return true;
  return target instanceof HTMLInputElement && !["checkbox", "radio", "range", "button"].includes(target.type);
}
