/**
 * What the page has to say: short notices that may offer to undo something, and words for those
 * who listen instead of look. Used by everyone; knows nothing of what it says.
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
   * Say something in passing.
   * @param {string} text
   * @param {{label: string, act: () => void}} [offer]
   */
  tell(text, offer) {
    const notice = this.show(text, "notice", offer);
    const leave = () => notice.remove();
    let timer = setTimeout(leave, MILLISECONDS_SHOWN);
    // Who is about to use it is not hurried.
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
   * Say that something went wrong; stays until it is dismissed.
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
  /** @param {HTMLElement} place a polite live region that nobody sees */
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

  /** Begin anew. */
  clear() {
    this.rest = "";
    this.place.replaceChildren();
  }
}
