/**
 * The error in the element #problem, with advice and buttons. Used by every page that sends
 * requests; knows errors, not requests.
 */

import { byId, h } from "./dom.js";

/** @typedef {import("./api.js").ServerError} ServerError */

/** Shows one error at a time. */
export class Problem {
  constructor() {
    this.place = byId("problem");
  }

  /**
   * @param {ServerError} error
   * @param {{again: (() => void) | null, settings: (() => void) | null}} offers actions of its
   *   buttons; null for no button
   */
  show(error, { again, settings }) {
    const button = (/** @type {string} */ label, /** @type {() => void} */ act) =>
      h("button", { type: "button", class: "plain", onclick: act }, label);
    const retry = again && (() => {
      this.clear();
      again();
    });
    this.place.replaceChildren(
      h(
        "div",
        { class: "problem" },
        h("p", {}, h("strong", {}, sentence(error.message))),
        error.remedy && h("p", {}, error.remedy),
        h(
          "div",
          { class: "row" },
          retry && button("Try again", retry),
          settings && button("Show the setting", settings),
        ),
      ),
    );
  }

  clear() {
    this.place.replaceChildren();
  }
}

/** @param {string} words of the server, which start in lower case and end without a period */
function sentence(words) {
  return `${words.charAt(0).toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`;
}
