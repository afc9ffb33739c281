/**
 * Shows the Markdown that models write. The parser is loaded with the first text; until then, the
 * text is shown as it is. Used for answers; knows nothing of messages.
 */

import { h } from "./dom.js";

/** @typedef {import("./blocks.js").MarkdownToken} MarkdownToken */
/** @typedef {{token: MarkdownToken, element: HTMLElement | null}} ShownBlock */

/** @type {Promise<[typeof import("./blocks.js"), typeof import("./prose.js")]> | null} */
let loading = null;
/** @type {[typeof import("./blocks.js"), typeof import("./prose.js")] | null} */
let modules = null;

/** Load the parser and what shows its tokens. */
async function load() {
  loading ??= Promise.all([import("./blocks.js"), import("./prose.js")]);
  modules = await loading;
}

/** Shows a growing text, updating only the blocks that changed. */
export class MarkdownView {
  constructor() {
    this.element = h("div", { class: "prose" });
    this.text = "";
    /** @type {import("./blocks.js").BlockReader | null} */
    this.reader = null;
    /** @type {ShownBlock[]} */
    this.shown = [];
  }

  /** @param {string} text */
  show(text) {
    if (modules !== null) {
      this.update(text, modules);
      return;
    }
    const waits = this.text !== "";
    this.text = text;
    this.element.replaceChildren(h("p", {}, text));
    if (!waits) load().then(() => this.show(this.text), () => {});
  }

  /**
   * @param {string} text
   * @param {[typeof import("./blocks.js"), typeof import("./prose.js")]} loaded
   */
  update(text, [{ BlockReader }, { blockElement, grow }]) {
    if (this.reader === null) {
      this.reader = new BlockReader();
      this.element.replaceChildren();
    }
    const blocks = this.reader.read(text);
    let same = 0;
    while (same < blocks.length && this.shown[same]?.token === blocks[same]) same += 1;
    const grown = this.shown[same];
    if (grown?.element && blocks[same] && grow(grown.element, grown.token, blocks[same])) {
      grown.token = blocks[same];
      same += 1;
    }
    for (const { element } of this.shown.splice(same)) element?.remove();
    for (const token of blocks.slice(same)) {
      const element = blockElement(token);
      if (element) this.element.append(element);
      this.shown.push({ token, element });
    }
  }
}
