/**
 * The chat: handles send, stop, edit, delete, regenerate, continue, and going to other branches.
 * Connects the open conversation with the server and the views; draws nothing itself.
 */

import { Answer } from "./answer.js";
import { asServerError } from "./api.js";
import { branch, copiesOf, prune, remove, turnTo, versionsOf } from "./branches.js";
import { isEmpty, newMessage, turnsBefore } from "./conversation.js";
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
 * @property {(knob: string | null) => void} reveal shows a knob among the settings; null: the tools
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
      mayBeEmpty: ["user", "tool"].includes(conversation.messages.at(-1)?.role ?? ""),
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
   * Regenerate: generate another version of an answer, or of the answer to a question.
   * @param {Message} message
   */
  regenerate(message) {
    const place = this.conversation.messages.indexOf(message);
    const isAnswer = message.role === "assistant";
    if (!this.answerAt(isAnswer ? place : place + 1)) return;
    this.view?.focusButton(place, isAnswer ? "Regenerate" : "Answer again");
  }

  /** @param {Message} message the last answer */
  continue(message) {
    if (this.mayAnswer()) this.run(message, true);
  }

  /**
   * Make another version of a message with a new text; what follows it is kept in both, unless it
   * is answered anew.
   * @param {Message} message
   * @param {string} text
   * @param {boolean} answer whether to generate a new answer
   */
  edit(message, text, answer) {
    const { messages } = this.conversation;
    const place = messages.indexOf(message);
    if (text !== message.content) {
      const { role, reasoning, calls, callId } = message;
      const edited = {
        ...newMessage(role, text),
        ...(reasoning !== undefined && { reasoning }),
        ...(calls !== undefined && { calls }),
        ...(callId !== undefined && { callId }),
      };
      branch(messages, place, answer ? [edited] : [edited, ...copiesOf(messages.slice(place + 1))]);
      this.library.save(this.conversation);
    }
    this.show();
    this.view?.focusButton(place, "Edit");
    if (answer) this.regenerate(messages[place]);
  }

  /**
   * Show another version of a message, and what follows it there.
   * @param {Message} message
   * @param {number} by 1 for the next version, -1 for the one before
   */
  turn(message, by) {
    const { conversation } = this;
    if (this.answers.has(conversation.id)) return;
    const place = conversation.messages.indexOf(message);
    const { count, shown } = versionsOf(message);
    if (shown + by < 0 || shown + by >= count) return;
    turnTo(conversation.messages, place, shown + by);
    this.problem.clear();
    this.library.save(conversation);
    this.show();
    this.view?.focusButton(place, by > 0 ? "Next version" : "Version before");
  }

  /**
   * Make another version of an answer: the text before one of its tokens and another token in its
   * place, continued by the model.
   * @param {Message} message
   * @param {{content: string, tokens: import("./conversation.js").Token[]}} start
   */
  takeInstead(message, { content, tokens }) {
    if (!this.mayAnswer()) return;
    const { messages } = this.conversation;
    const place = messages.indexOf(message);
    const { reasoning } = message;
    const changed = { ...newMessage("assistant", content), tokens, ...(reasoning && { reasoning }) };
    branch(messages, place, [changed]);
    this.run(changed, true);
    this.view?.focusButton(place, "Version before");
  }

  /**
   * Add what tools returned to the calls of an answer, and let the model go on.
   * @param {Message} message
   * @param {string[]} results
   */
  giveResults({ calls = [] }, results) {
    if (!this.mayAnswer()) return;
    const { messages } = this.conversation;
    messages.push(...calls.map(({ id }, place) => ({ ...newMessage("tool", results[place]), callId: id })));
    this.view?.toEnd();
    this.answerAt(messages.length);
    this.composer?.focus();
  }

  /** @param {Message} message */
  delete(message) {
    const { conversation } = this;
    const place = conversation.messages.indexOf(message);
    const undo = remove(conversation.messages, place);
    this.library.save(conversation);
    this.show();
    if (!this.view?.focus(place)) this.composer?.focus();
    const act = () => {
      undo();
      this.library.save(conversation);
      this.show();
    };
    this.notices.inform("Message deleted.", { label: "Undo", act });
  }

  /** Say whether an answer can be requested now; if not, show the invalid setting. */
  mayAnswer() {
    if (this.answers.has(this.conversation.id)) return false;
    const { wrong, areToolsWrong } = this.panel;
    if (areToolsWrong) {
      this.reveal(null);
      return false;
    }
    if (wrong === null) return true;
    this.reveal(wrong.knob.name);
    return false;
  }

  /**
   * Generate an answer at a place among the messages; what is there becomes another version.
   * @param {number} place
   * @returns {boolean} whether it can be generated now
   */
  answerAt(place) {
    if (!this.mayAnswer()) return false;
    const { messages } = this.conversation;
    const before = messages[place] ? versionsOf(messages[place]).shown : 0;
    const message = newMessage("assistant", "");
    branch(messages, place, [message]);
    this.run(message, false, before);
    return true;
  }

  /**
   * Stream an answer into a message.
   * @param {Message} message
   * @param {boolean} resume whether to append to its text
   * @param {number} [version] to show again if nothing arrives
   */
  async run(message, resume, version = 0) {
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
    if (message.finish === "stop" && message.content === before && !message.calls && !message.reasoning) {
      this.notices.inform("The model ended its answer at once, without any text.");
    }
    const at = conversation.messages.indexOf(message);
    if (isEmpty(message) && at >= 0) prune(conversation.messages, at, version);
    if (library.has(conversation)) library.save(conversation);
  }

  /**
   * @param {Conversation} conversation
   * @param {number} place of the answer
   * @param {boolean} resume
   */
  request(conversation, place, resume) {
    return {
      ...((conversation.model || this.model) && { model: conversation.model || this.model }),
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
}
