/**
 * The list of messages of the open conversation, and the scrolling: the page follows an answer as
 * it grows, until the reader scrolls up. Used by chat.js.
 */

import { arrange } from "./dom.js";
import { MessageView } from "./message.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./conversation.js").Message} Message */

const NEAR = 48; // pixels from the end that still count as the end

/** Shows a conversation. */
export class MessageList {
  /**
   * @param {{scroller: HTMLElement, list: HTMLElement, latest: HTMLElement}} elements
   * @param {import("./message.js").MessageActions} actions
   */
  constructor({ scroller, list, latest }, actions) {
    this.scroller = scroller;
    this.list = list;
    this.latest = latest;
    this.actions = actions;
    this.asTokens = false;
    /** @type {Map<string, MessageView>} */
    this.views = new Map();
    this.following = true;
    this.placed = 0; // the position that the page last scrolled to by itself
    scroller.addEventListener("scroll", () => this.noticeScroll());
    latest.addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.follow()).observe(scroller);
  }

  /**
   * Show all messages; `writing` is the message that an answer is streamed into.
   * @param {Conversation} conversation
   * @param {Message | null} writing
   */
  show({ messages }, writing) {
    const views = messages.map((message) => {
      const known = this.views.get(message.id);
      return known?.message === message ? known : new MessageView(message, this.actions);
    });
    this.views = new Map(views.map((view) => [view.message.id, view]));
    arrange(
      this.list,
      views.map((view) => view.element),
    );
    for (const view of views) this.showOne(view, messages, writing);
    this.follow();
  }

  /**
   * Update the message that is being written.
   * @param {Conversation} conversation
   * @param {Message} message
   */
  update({ messages }, message) {
    const view = this.views.get(message.id);
    if (view) this.showOne(view, messages, message);
    this.follow();
  }

  /**
   * @param {MessageView} view
   * @param {Message[]} messages
   * @param {Message | null} writing
   */
  showOne(view, messages, writing) {
    view.show({
      last: view.message === messages.at(-1),
      busy: writing !== null,
      writing: view.message === writing,
      asTokens: this.asTokens,
    });
  }

  /**
   * Focus the message that took a deleted message's place.
   * @param {number} index
   * @returns {boolean} whether there was a message
   */
  focus(index) {
    const element = this.list.children[Math.min(index, this.list.children.length - 1)];
    const button = element?.querySelector("button");
    button?.focus();
    return Boolean(button);
  }

  noticeScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.following = scrollHeight - scrollTop - clientHeight < NEAR;
    this.latest.hidden = this.following;
  }

  follow() {
    const { scroller } = this;
    // The reader may have scrolled up, and the scroll event may not have arrived yet.
    if (!this.following || scroller.scrollTop < this.placed) this.noticeScroll();
    if (!this.following) return;
    scroller.scrollTop = scroller.scrollHeight;
    this.placed = scroller.scrollTop;
  }

  toEnd() {
    this.following = true;
    this.placed = 0;
    this.follow();
    this.latest.hidden = true;
  }
}
