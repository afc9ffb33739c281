/**
 * An answer as tokens, each tinted by how unlikely it was under the model; hover or focus a token
 * to see its probability and the alternatives, press it to choose one of them. Used by message.js
 * and run.js; knows nothing of conversations.
 */

import { byId, h } from "./dom.js";

/** @typedef {import("./conversation.js").Token} Token */
/** @typedef {import("./conversation.js").Alternative} Alternative */

const VISIBLE = new Map([["\n", "↵"], ["\t", "⇥"], ["\r", "␍"], [" ", "␣"], ["", "∅"]]);
const GAP = 8; // pixels between a token and its card

/** Shows a growing list of tokens; one stop of the Tab key, arrow keys move between tokens. */
export class TokenView {
  /**
   * @param {object} [options] without them, no alternative can be chosen
   * @param {(place: number, other: Alternative) => boolean} [options.canTake]
   * @param {(place: number, other: Alternative) => void} [options.onTake]
   */
  constructor({ canTake = () => false, onTake = () => {} } = {}) {
    this.canTake = canTake;
    this.onTake = onTake;
    this.element = h("div", {
      class: "tokens",
      role: "listbox",
      "aria-label": "Tokens of this answer",
      "aria-orientation": "horizontal",
      onkeydown: (/** @type {KeyboardEvent} */ event) => this.move(event),
      onfocusin: (/** @type {Event} */ event) => this.choose(event.target),
      onfocusout: hideCard,
      onpointerover: (/** @type {Event} */ event) => this.reveal(event.target),
      onpointerleave: hideCard,
      onclick: (/** @type {Event} */ event) => this.pin(event.target),
    });
    /** @type {Token[]} */
    this.tokens = [];
  }

  /** @param {Token[]} tokens the ones shown before, and new ones */
  show(tokens) {
    const shown = this.element.children.length;
    if (tokens !== this.tokens || shown > tokens.length) this.element.replaceChildren();
    this.tokens = tokens;
    for (let place = this.element.children.length; place < tokens.length; place += 1) {
      this.element.append(tokenElement(tokens[place], place === 0));
    }
  }

  /** @param {EventTarget | null} target */
  reveal(target) {
    if (isPinned()) return;
    const place = this.placeOf(target);
    if (place < 0) hideCard();
    else showCard(this.tokens[place], /** @type {HTMLElement} */ (target), this.takenAt(place).length > 0);
  }

  /**
   * Return the place of a token with a probability; -1 for anything else.
   * @param {EventTarget | null} target
   */
  placeOf(target) {
    const place = [...this.element.children].indexOf(/** @type {Element} */ (target));
    return place < 0 || this.tokens[place].logprob === undefined ? -1 : place;
  }

  /**
   * Return the alternatives of a token that can be taken instead.
   * @param {number} place
   */
  takenAt(place) {
    const { text, top = [] } = this.tokens[place];
    return top.filter((other) => other.text !== text && this.canTake(place, other));
  }

  /**
   * Keep the card of a token open, with buttons that take another token instead.
   * @param {EventTarget | null} target
   */
  pin(target) {
    const place = this.placeOf(target);
    const others = place < 0 ? [] : this.takenAt(place);
    unpin();
    if (others.length === 0) return;
    showCard(this.tokens[place], /** @type {HTMLElement} */ (target), false, (other) => {
      if (!others.includes(other)) return null;
      const take = () => {
        unpin();
        this.onTake(place, other);
      };
      return h("button", { type: "button", "aria-label": `Take ${spelled(other.text)} instead`, onclick: take }, spelled(other.text));
    });
    const card = byId("token-card");
    card.setAttribute("role", "dialog");
    card.setAttribute("aria-label", `Other tokens in place of ${spelled(this.tokens[place].text)}`);
    const leave = (/** @type {Event} */ event) => {
      const { key } = /** @type {KeyboardEvent} */ (event);
      if (event.type === "keydown" && key !== "Escape" && key !== "Tab") return;
      const isInside = card.contains(/** @type {Node} */ (event.target));
      if ((event.type === "pointerdown" || key === "Tab") && isInside) return;
      event.stopPropagation();
      unpin();
      if (event.type === "keydown") /** @type {HTMLElement} */ (target).focus();
    };
    const options = { capture: true, signal: pinned() };
    for (const type of ["keydown", "pointerdown"]) document.addEventListener(type, leave, options);
    card.querySelector("button")?.focus();
  }

  /** @param {EventTarget | null} target */
  choose(target) {
    const chosen = /** @type {HTMLElement} */ (target);
    for (const each of this.element.querySelectorAll("[aria-selected=true]")) {
      each.setAttribute("aria-selected", "false");
      each.setAttribute("tabindex", "-1");
    }
    chosen.setAttribute("aria-selected", "true");
    chosen.tabIndex = 0;
    this.reveal(chosen);
  }

  /** @param {KeyboardEvent} event */
  move(event) {
    const all = /** @type {HTMLElement[]} */ ([...this.element.children]);
    const place = all.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    const last = all.length - 1;
    /** @type {Record<string, number>} */
    const targets = {
      ArrowRight: Math.min(place + 1, last),
      ArrowLeft: Math.max(place - 1, 0),
      ArrowDown: Math.min(place + 10, last),
      ArrowUp: Math.max(place - 10, 0),
      Home: 0,
      End: last,
    };
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.pin(document.activeElement);
    }
    if (event.key === "Escape" && !byId("token-card").hidden) {
      hideCard();
      event.stopPropagation();
    }
    if (!(event.key in targets)) return;
    event.preventDefault();
    all[targets[event.key]].focus();
  }
}

/**
 * @param {Token} token
 * @param {boolean} first
 */
function tokenElement(token, first) {
  const known = token.logprob !== undefined;
  const element = h(
    "span",
    {
      class: known ? "token" : "token untold",
      role: "option",
      "aria-selected": "false",
      "aria-label": spelled(token.text) + (known ? `, ${percent(token.logprob)}` : ""),
      tabindex: first ? 0 : -1,
    },
    token.text === "" ? "∅" : token.text.replace(/\n$/, "↵\n"),
  );
  // Squared, so that a nearly certain token is nearly untinted.
  if (known) element.style.setProperty("--surprise", String((1 - Math.exp(token.logprob ?? 0)) ** 2));
  return element;
}

/** @type {AbortController | null} while a card is kept open */
let pinning = null;

function isPinned() {
  return pinning !== null;
}

/** Note that the card is kept open; returns the signal of when it no longer is. */
function pinned() {
  pinning = new AbortController();
  byId("token-card").toggleAttribute("data-pinned", true);
  return pinning.signal;
}

/** Close a card that was kept open. */
function unpin() {
  pinning?.abort();
  pinning = null;
  const card = byId("token-card");
  card.removeAttribute("data-pinned");
  card.removeAttribute("role");
  card.removeAttribute("aria-label");
  hideCard();
}

/**
 * @param {Token} token
 * @param {HTMLElement} beside
 * @param {boolean} hasChoice whether pressing the token offers others
 * @param {(other: Alternative) => HTMLElement | null} [choice] makes the button of an alternative
 */
function showCard(token, beside, hasChoice, choice = () => null) {
  const card = byId("token-card");
  card.replaceChildren(
    h("p", { class: "said" }, spelled(token.text)),
    h(
      "dl",
      {},
      h("dt", {}, "Model"),
      h("dd", {}, percent(token.logprob)),
      token.sampled !== undefined && h("dt", {}, "As sampled"),
      token.sampled !== undefined && h("dd", {}, percent(token.sampled)),
    ),
    alternatives(token, choice),
    ...(hasChoice ? [h("p", { class: "hint" }, "Press the token to take another one instead.")] : []),
  );
  card.hidden = false;
  const [box, size] = [beside.getClientRects()[0], card.getBoundingClientRect()];
  const left = Math.min(Math.max(box.left, GAP), innerWidth - size.width - GAP);
  const below = box.bottom + GAP + size.height < innerHeight;
  card.style.left = `${left}px`;
  card.style.top = `${below ? box.bottom + GAP : Math.max(box.top - GAP - size.height, GAP)}px`;
}

function hideCard() {
  if (!isPinned()) byId("token-card").hidden = true;
}

/**
 * Make the table of alternatives: one row per token, under the model and as sampled.
 * @param {Token} token
 * @param {(other: Alternative) => HTMLElement | null} choice
 */
function alternatives({ text, top = [], topSampled }, choice) {
  if (top.length === 0) return h("p", { class: "hint" }, "No alternatives were recorded.");
  const sampled = new Map(topSampled?.map((other) => [other.text, other.logprob]));
  const rows = top.map((other) => {
    const row = h(
      "tr",
      { class: other.text === text ? "chosen" : null },
      h("td", { class: "said" }, choice(other) ?? spelled(other.text)),
      h("td", {}, percent(other.logprob)),
      topSampled && h("td", {}, sampled.has(other.text) ? percent(sampled.get(other.text)) : "–"),
    );
    row.style.setProperty("--share", String(Math.exp(other.logprob)));
    return row;
  });
  const head = h(
    "tr",
    {},
    h("th", {}, "Alternatives"),
    h("th", {}, "model"),
    topSampled && h("th", {}, "sampled"),
  );
  return h("table", {}, h("thead", {}, head), h("tbody", {}, ...rows));
}

/**
 * Return a token's text with visible spaces and line breaks.
 * @param {string} text
 */
function spelled(text) {
  if (VISIBLE.has(text)) return /** @type {string} */ (VISIBLE.get(text));
  return text.replace(/[\n\t\r]/g, (blank) => VISIBLE.get(blank) ?? blank).replace(/^ | $/g, "␣");
}

/** @param {number | undefined} logprob */
function percent(logprob) {
  const share = Math.exp(logprob ?? 0) * 100;
  if (share > 0 && share < 0.01) return "< 0.01 %";
  return `${share.toFixed(share < 1 ? 2 : 1)} %`;
}
