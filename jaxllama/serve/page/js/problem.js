/**
 * What went wrong, below the messages: in words, with what can be done about it. Used by chat.js and
 * main.js; knows errors, not what was asked.
 */

import { byId, h } from "./dom.js";

/** @typedef {import("./api.js").ServerError} ServerError */

/** The place for one problem. */
export class Problem {
  constructor() {
    this.place = byId("problem");
  }

  /**
   * @param {ServerError} error
   * @param {{again: () => void, settings: (() => void) | null}} offers ways on
   */
  show(error, { again, settings }) {
    const button = (/** @type {string} */ label, /** @type {() => void} */ act) =>
      h("button", { type: "button", class: "plain", onclick: act }, label);
    const retry = () => {
      this.clear();
      again();
    };
    this.place.replaceChildren(
      h(
        "div",
        { class: "problem" },
        h("p", {}, h("strong", {}, sentence(error.message))),
        error.remedy && h("p", {}, error.remedy),
        h(
          "div",
          { class: "row" },
          button("Try again", retry),
          settings && button("Show the setting", settings),
        ),
      ),
    );
  }

  clear() {
    this.place.replaceChildren();
  }
}

/** @param {string} words of the server, which begins them small and ends them without a stop */
function sentence(words) {
  return `${words.charAt(0).toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`;
}
