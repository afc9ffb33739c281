/**
 * One message on the page: its text as prose, as tokens or in an edit field, and its buttons. Used
 * by messages.js; the actions of the buttons are passed in.
 */

import { h, iconButton } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { TokenView } from "./tokens.js";

/** @typedef {import("./conversation.js").Message} Message */

/**
 * @typedef {object} MessageActions
 * @property {(message: Message) => void} regenerate
 * @property {(message: Message) => void} continue
 * @property {(message: Message) => void} delete
 * @property {(message: Message) => void} copy
 * @property {(message: Message, text: string, answer: boolean) => void} edit
 */

const NAMES = { user: "You", assistant: "Model" };
const ENDINGS = new Map([
  ["length", "cut at the token limit"],
  ["stopped", "stopped"],
  ["error", "broken off"],
]);

/** Shows one message. */
export class MessageView {
  /**
   * @param {Message} message
   * @param {MessageActions} actions
   */
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.busy = false;
    this.prose = new MarkdownView();
    this.tokens = new TokenView();
    this.body = h("div", { class: "body" });
    this.stats = h("span", { class: "stats" });
    /** @type {(name: string, label: string, act: () => void) => HTMLButtonElement} */
    const button = (name, label, act) =>
      iconButton(name, label, () => {
        if (!this.busy || name === "copy") act();
      });
    const answered = message.role === "assistant";
    const again = answered ? "Regenerate" : "Answer again";
    this.editButton = button("edit", "Edit", () => this.edit());
    this.continueButton = button("continue", "Continue", () => actions.continue(message));
    this.buttons = [
      button("copy", "Copy", () => actions.copy(message)),
      this.editButton,
      button("again", again, () => actions.regenerate(message)),
      ...(answered ? [this.continueButton] : []),
      button("trash", "Delete", () => actions.delete(message)),
    ];
    this.foot = h("footer", {}, h("div", { class: "actions" }, ...this.buttons), this.stats);
    const label = NAMES[message.role];
    this.element = h(
      "li",
      { class: "message", "data-role": message.role },
      h("article", { "aria-label": label }, h("h2", {}, label), this.body, this.foot),
    );
  }

  /**
   * Show the message as it is now.
   * @param {{last: boolean, busy: boolean, writing: boolean, asTokens: boolean}} state
   */
  show({ last, busy, writing, asTokens }) {
    this.busy = busy;
    for (const each of this.buttons) {
      // Not `disabled`: a pressed button would lose the focus.
      if (each !== this.buttons[0]) each.setAttribute("aria-disabled", String(busy));
    }
    this.continueButton.hidden = !last;
    this.element.toggleAttribute("data-writing", writing);
    this.stats.textContent = statsText(this.message, writing, asTokens);
    if (!this.isEdited) this.showBody(asTokens, writing);
  }

  /**
   * @param {boolean} asTokens
   * @param {boolean} writing
   */
  showBody(asTokens, writing) {
    const { role, content, tokens } = this.message;
    if (role === "user") {
      this.body.textContent = content;
    } else if (asTokens && tokens) {
      this.tokens.show(tokens);
      this.place(this.tokens.element);
    } else if (!content && writing) {
      this.place(h("p", { class: "waiting" }, "Thinking", h("span", { class: "dots" }, "…")));
    } else {
      this.prose.show(content);
      this.place(this.prose.element);
    }
  }

  /** @param {HTMLElement} element */
  place(element) {
    if (this.body.firstChild !== element) this.body.replaceChildren(element);
  }

  get isEdited() {
    return this.body.querySelector("textarea") !== null;
  }

  /** Let the reader change the text in place. */
  edit() {
    const { message, actions } = this;
    const field = h("textarea", { "aria-label": "Text of this message", class: "grows" });
    field.value = message.content;
    const leave = () => {
      this.body.replaceChildren();
      actions.edit(message, message.content, false);
      this.editButton.focus();
    };
    /** @type {(answer: boolean) => void} */
    const save = (answer) => {
      this.body.replaceChildren();
      actions.edit(message, field.value, answer);
      this.editButton.focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        leave();
      }
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save(message.role === "user");
    });
    /** @type {(label: string, style: string, act: () => void) => HTMLElement} */
    const button = (label, style, act) =>
      h("button", { type: "button", class: style, onclick: act }, label);
    const asked = message.role === "user";
    this.body.replaceChildren(
      field,
      h(
        "div",
        { class: "row" },
        asked && button("Save and answer", "primary", () => save(true)),
        button("Save", asked ? "plain" : "primary", () => save(false)),
        button("Cancel", "plain", leave),
      ),
    );
    field.focus();
  }
}

/**
 * @param {Message} message
 * @param {boolean} writing
 * @param {boolean} asTokens
 */
function statsText({ role, stats, finish, tokens }, writing, asTokens) {
  if (role === "user") return "";
  const parts = [];
  if (asTokens && !writing && !tokens) parts.push("no probabilities were recorded");
  if (!stats) return parts.join("");
  if (finish && !writing && ENDINGS.has(finish)) parts.push(ENDINGS.get(finish));
  if (stats.rate > 0) parts.push(`${stats.rate.toFixed(1)} tokens/s`);
  if (stats.generated > 0) parts.push(`${stats.generated} tokens`);
  if (stats.first > 0) parts.push(`${stats.first.toFixed(2)} s to the first`);
  if (stats.prompt > 0) {
    const reused = stats.reused > 0 ? `, ${stats.reused} reused` : "";
    parts.push(`prompt ${stats.prompt}${reused}`);
  }
  if (stats.dropped > 0) {
    parts.push(`the context is full: the oldest ${stats.dropped} messages were left out`);
  }
  return parts.join(" · ");
}
