/**
 * The chat: handles send, stop, edit, delete, regenerate and continue. Connects the open
 * conversation with the server and the views; draws nothing itself.
 */

import { Answer } from "./answer.js";
import { asServerError } from "./api.js";
import { newMessage, turnsBefore } from "./conversation.js";
import { byId } from "./dom.js";
import { Problem } from "./problem.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./conversation.js").Message} Message */

/**
 * @typedef {object} Parts
 * @property {import("./api.js").Server} server
 * @property {import("./library.js").Library} library
 * @property {import("./panel.js").Panel} panel
 * @property {import("./notices.js").Notices} notices
 * @property {import("./notices.js").Announcer} announcer
 * @property {(knob: string) => void} reveal shows a knob among the settings
 * @property {(error: import("./api.js").ServerError) => (() => void) | null} remedyOf
 */

/** Actions of the reader in the open conversation. */
export class Chat {
  /** @param {Parts} parts */
  constructor({ server, library, panel, notices, announcer, reveal, remedyOf }) {
    this.server = server;
    this.library = library;
    this.panel = panel;
    this.notices = notices;
    this.announcer = announcer;
    this.reveal = reveal;
    this.remedyOf = remedyOf;
    this.model = "";
    this.shown = "";
    /** @type {number | undefined} */
    this.frame = undefined;
    /** @type {Map<string, Answer>} running answers, by id of the conversation */
    this.answers = new Map();
    this.problem = new Problem();
    /** @type {import("./messages.js").MessageList | null} */
    this.view = null;
    /** @type {import("./composer.js").Composer | null} */
    this.composer = null;
    library.busy = (id) => this.answers.has(id);
  }

  get conversation() {
    return this.library.current;
  }

  /** Show the open conversation as it is now. */
  show() {
    const { conversation, view } = this;
    if (conversation.id !== this.shown) {
      this.shown = conversation.id;
      this.problem.clear();
      this.announcer.clear();
      view?.toEnd();
    }
    const answer = this.answers.get(conversation.id);
    byId("welcome").hidden = conversation.messages.length > 0;
    view?.show(conversation, answer?.message ?? null);
    this.composer?.update({
      answering: Boolean(answer),
      mayBeEmpty: conversation.messages.at(-1)?.role === "user",
    });
  }

  /**
   * @param {string} text "" to answer the last message
   * @returns {boolean} whether it was sent
   */
  send(text) {
    if (!this.mayAnswer()) return false;
    const { messages } = this.conversation;
    if (text) messages.push(newMessage("user", text));
    this.view?.toEnd();
    this.answerAt(messages.length);
    return true;
  }

  stop() {
    this.answers.get(this.conversation.id)?.stop();
  }

  /**
   * Regenerate: replace an answer by a new one, or generate the answer to a question again.
   * @param {Message} message
   */
  regenerate(message) {
    const place = this.conversation.messages.indexOf(message);
    this.answerAt(message.role === "user" ? place + 1 : place);
  }

  /** @param {Message} message the last answer */
  continue(message) {
    if (this.mayAnswer()) this.run(message, true, null);
  }

  /**
   * @param {Message} message
   * @param {string} text
   * @param {boolean} answer whether to generate a new answer
   */
  edit(message, text, answer) {
    if (text !== message.content) {
      message.content = text;
      delete message.tokens;
      delete message.stats;
      delete message.finish;
      this.library.save(this.conversation);
    }
    this.show();
    if (answer) this.regenerate(message);
  }

  /** @param {Message} message */
  delete(message) {
    const { conversation } = this;
    const place = conversation.messages.indexOf(message);
    conversation.messages.splice(place, 1);
    this.library.save(conversation);
    this.show();
    if (!this.view?.focus(place)) this.composer?.focus();
    const act = () => {
      conversation.messages.splice(place, 0, message);
      this.library.save(conversation);
      this.show();
    };
    this.notices.inform("Message deleted.", { label: "Undo", act });
  }

  /** Say whether an answer can be requested now; if not, show the invalid setting. */
  mayAnswer() {
    if (this.answers.has(this.conversation.id)) return false;
    const { wrong } = this.panel;
    if (wrong === null) return true;
    this.reveal(wrong.knob.name);
    return false;
  }

  /**
   * Generate an answer at a place among the messages, replacing the message there.
   * @param {number} place
   */
  answerAt(place) {
    if (!this.mayAnswer()) return;
    const { messages } = this.conversation;
    const old = messages[place]?.role === "assistant" ? messages[place] : null;
    const message = newMessage("assistant", "");
    messages.splice(place, old ? 1 : 0, message);
    this.run(message, false, old);
  }

  /**
   * Stream an answer into a message.
   * @param {Message} message
   * @param {boolean} resume whether to append to its text
   * @param {Message | null} old the message to restore if no text arrives
   */
  async run(message, resume, old) {
    const { conversation, library } = this;
    const before = message.content;
    const place = conversation.messages.indexOf(message);
    const answer = new Answer(conversation, message);
    this.answers.set(conversation.id, answer);
    this.problem.clear();
    this.announcer.clear();
    library.save(conversation);
    try {
      const request = this.request(conversation, place, resume);
      await answer.stream(this.server, request, (text) => this.grown(answer, text));
      this.announcer.flush(message.finish === "stopped" ? "Stopped." : "");
    } catch (error) {
      this.fail(conversation, error, () => {
        if (resume) this.continue(message);
        else this.answerAt(Math.min(place, conversation.messages.length));
      });
    }
    this.answers.delete(conversation.id);
    if (message.finish === "stop" && message.content === before) {
      this.notices.inform("The model ended its answer at once, without any text.");
    }
    if (message.content === "") this.putBack(conversation, message, old);
    else if (old) this.offerOld(conversation, message, old);
    if (library.has(conversation)) library.save(conversation);
  }

  /**
   * @param {Conversation} conversation
   * @param {number} place of the answer
   * @param {boolean} resume
   */
  request(conversation, place, resume) {
    return {
      ...(this.model && { model: this.model }),
      messages: turnsBefore(conversation, place, resume),
      context_overflow: "drop_oldest",
      ...(resume && { continue_final_message: true, add_generation_prompt: false }),
      ...this.panel.request(conversation),
    };
  }

  /**
   * @param {Answer} answer
   * @param {string} text
   */
  grown(answer, text) {
    const { conversation, message } = answer;
    if (!this.library.has(conversation)) answer.stop();
    else this.library.saveSoon(conversation);
    if (conversation !== this.conversation) return;
    this.announcer.add(text);
    // At most once per frame of the screen, however fast tokens arrive.
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      if (conversation === this.conversation && this.answers.has(conversation.id)) {
        this.view?.update(conversation, message);
      }
    });
  }

  /**
   * @param {Conversation} conversation
   * @param {unknown} thrown
   * @param {() => void} again
   */
  fail(conversation, thrown, again) {
    const error = asServerError(thrown);
    if (conversation !== this.conversation) {
      this.notices.warn(`An answer in another conversation failed: ${error.message}.`);
      return;
    }
    this.problem.show(error, { again, settings: this.remedyOf(error) });
  }

  /**
   * Restore the message that was there before an answer that brought no text.
   * @param {Conversation} conversation
   * @param {Message} message
   * @param {Message | null} old
   */
  putBack({ messages }, message, old) {
    const place = messages.indexOf(message);
    if (place >= 0) messages.splice(place, 1, ...(old ? [old] : []));
  }

  /**
   * @param {Conversation} conversation
   * @param {Message} message
   * @param {Message} old
   */
  offerOld(conversation, message, old) {
    const act = () => {
      this.putBack(conversation, message, old);
      this.library.save(conversation);
    };
    this.notices.inform("Answered again.", { label: "Restore the old answer", act });
  }
}
