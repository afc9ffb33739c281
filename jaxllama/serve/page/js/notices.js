/**
 * Notices: short messages that may offer an undo, and announcements for screen readers. Used by all
 * parts of the page; knows nothing of the content.
 */

import { h, icon } from "./dom.js";

const MILLISECONDS_SHOWN = 8000;
const SENTENCE = /[.!?…:;\n]\s*$/;

/** Shows notices in a corner, the newest last. */
export class Notices {
  /** @param {HTMLElement} place a live region */
  constructor(place) {
    this.place = place;
  }

  /**
   * Show a notice that disappears after a while.
   * @param {string} text
   * @param {{label: string, act: () => void}} [offer]
   */
  inform(text, offer) {
    const notice = this.show(text, "notice", offer);
    const leave = () => notice.remove();
    let timer = setTimeout(leave, MILLISECONDS_SHOWN);
    // It does not disappear while the pointer or the focus is on it.
    for (const event of ["pointerenter", "focusin"]) {
      notice.addEventListener(event, () => clearTimeout(timer));
    }
    for (const event of ["pointerleave", "focusout"]) {
      notice.addEventListener(event, () => {
        clearTimeout(timer);
        timer = setTimeout(leave, MILLISECONDS_SHOWN);
      });
    }
  }

  /**
   * Show a warning that stays until it is dismissed.
   * @param {string} text
   */
  warn(text) {
    const known = [...this.place.children].some((each) => each.textContent === text);
    if (!known) this.show(text, "notice warning");
  }

  /**
   * @param {string} text
   * @param {string} style
   * @param {{label: string, act: () => void}} [offer]
   */
  show(text, style, offer) {
    const close = () => notice.remove();
    const notice = h("div", { class: style }, h("p", {}, text));
    if (offer) {
      const act = () => {
        close();
        offer.act();
      };
      notice.append(h("button", { type: "button", class: "plain", onclick: act }, offer.label));
    }
    const label = { type: "button", class: "quiet", "aria-label": "Dismiss", onclick: close };
    notice.append(h("button", label, icon("close")));
    this.place.append(notice);
    return notice;
  }
}

/** Reads an answer out to screen readers, a sentence at a time: single tokens would stutter. */
export class Announcer {
  /** @param {HTMLElement} place a polite live region that is not visible */
  constructor(place) {
    this.place = place;
    this.rest = "";
  }

  /** @param {string} text that was added to the answer */
  add(text) {
    this.rest += text;
    if (SENTENCE.test(this.rest)) this.flush();
  }

  /** @param {string} [closing] what to say after the answer */
  flush(closing = "") {
    const text = `${this.rest} ${closing}`.trim();
    this.rest = "";
    if (text) this.place.append(h("p", {}, text));
  }

  /** Discard all text, pending and announced. */
  clear() {
    this.rest = "";
    this.place.replaceChildren();
  }
}
