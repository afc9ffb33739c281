/**
 * One message on the page: its thoughts, its text as prose, as tokens or in an edit field, its tool
 * calls, and its buttons. Used by messages.js; the actions of the buttons are passed in.
 */

import { versionsOf } from "./branches.js";
import { arrange, h, iconButton } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { ThoughtsView } from "./thoughts.js";
import { TokenView } from "./tokens.js";
import { ToolCallsView } from "./toolcalls.js";
import { startWith } from "./whatif.js";

/** @typedef {import("./conversation.js").Message} Message */

/**
 * @typedef {object} MessageActions
 * @property {(message: Message) => void} regenerate
 * @property {(message: Message) => void} continue
 * @property {(message: Message) => void} delete
 * @property {(message: Message) => void} copy
 * @property {(message: Message, text: string, answer: boolean) => void} edit
 * @property {(message: Message, by: number) => void} turn
 * @property {(message: Message, start: import("./whatif.js").Start) => void} takeInstead
 * @property {(message: Message, results: string[]) => void} giveResults
 */

const NAMES = { user: "You", assistant: "Model", tool: "Tool" };
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
    this.thoughts = new ThoughtsView();
    this.calls = new ToolCallsView((results) => this.busy || actions.giveResults(message, results));
    this.tokens = new TokenView({
      canTake: (place, other) => !this.busy && startWith(message, place, other) !== null,
      onTake: (place, other) => {
        const start = startWith(message, place, other);
        if (start && !this.busy) actions.takeInstead(message, start);
      },
    });
    this.waiting = h("p", { class: "waiting" }, "Thinking", h("span", { class: "dots" }, "…"));
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
    this.version = h("span", {});
    this.turns = [button("left", "Version before", () => actions.turn(message, -1)), button("right", "Next version", () => actions.turn(message, 1))];
    this.versions = h(
      "div",
      { class: "versions", role: "group", "aria-label": "Versions of this message" },
      this.turns[0],
      this.version,
      this.turns[1],
    );
    this.foot = h("footer", {}, this.versions, h("div", { class: "actions" }, ...this.buttons), this.stats);
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
    const { count, shown } = versionsOf(this.message);
    this.versions.hidden = count === 1;
    this.version.textContent = `${shown + 1} of ${count}`;
    this.turns[0].setAttribute("aria-disabled", String(busy || shown === 0));
    this.turns[1].setAttribute("aria-disabled", String(busy || shown === count - 1));
    this.continueButton.hidden = !last || this.message.calls !== undefined;
    this.element.toggleAttribute("data-writing", writing);
    this.stats.textContent = statsText(this.message, writing, asTokens);
    if (!this.isEdited) this.showBody(asTokens, writing, last);
  }

  /**
   * @param {boolean} asTokens
   * @param {boolean} writing
   * @param {boolean} last
   */
  showBody(asTokens, writing, last) {
    const { role, content, tokens, reasoning = "", calls = [] } = this.message;
    if (role !== "assistant") {
      if (this.body.textContent !== content) this.body.textContent = content;
      return;
    }
    const parts = [];
    if (asTokens && tokens) {
      this.tokens.show(tokens);
      parts.push(this.tokens.element);
    } else {
      if (reasoning) {
        this.thoughts.show(reasoning, writing && !content && calls.length === 0);
        parts.push(this.thoughts.element);
      }
      if (content) {
        this.prose.show(content);
        parts.push(this.prose.element);
      }
    }
    if (calls.length > 0) {
      this.calls.show(calls, last && !writing && !this.busy);
      parts.push(this.calls.element);
    }
    if (parts.length === 0 && writing) parts.push(this.waiting);
    arrange(this.body, parts);
  }

  get isEdited() {
    return this.body.querySelector(":scope > textarea") !== null;
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
