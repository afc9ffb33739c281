/** The list of messages of the open conversation. Used by chat.js. */

import { arrange } from "./dom.js";
import { MessageView } from "./message.js";
import { Scrolling } from "./scrolling.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./conversation.js").Message} Message */

/** Shows a conversation. */
export class MessageList {
  /**
   * @param {{scroller: HTMLElement, list: HTMLElement, latest: HTMLElement}} elements
   * @param {import("./message.js").MessageActions} actions
   */
  constructor({ scroller, list, latest }, actions) {
    this.list = list;
    this.actions = actions;
    this.asTokens = false;
    /** @type {Map<string, MessageView>} */
    this.views = new Map();
    this.scrolling = new Scrolling(scroller, latest);
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
    this.scrolling.follow();
  }

  /**
   * Update the message that is being written.
   * @param {Conversation} conversation
   * @param {Message} message
   */
  update({ messages }, message) {
    const view = this.views.get(message.id);
    if (view) this.showOne(view, messages, message);
    this.scrolling.follow();
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

  /**
   * Focus a button of a message, for example of one that took the place of another.
   * @param {number} place of the message
   * @param {string} label of the button
   */
  focusButton(place, label) {
    const button = this.list.children[place]?.querySelector(`footer [aria-label="${label}"]`);
    /** @type {HTMLElement | null | undefined} */ (button)?.focus();
  }

  toEnd() {
    this.scrolling.toEnd();
  }
}
