/**
 * The list of conversations, and which one is open. Used by the page and the sidebar; dispatches
 * "change" when the list or the open conversation changes. Knows storage, not elements.
 */

import { newConversation, readConversation } from "./conversation.js";
import { keepChoices, readChoices } from "./preferences.js";
import { fromFile } from "./transfer.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./store.js").Store} Store */

const MILLISECONDS_BETWEEN_SAVES = 1000;

/** All conversations, newest first, and the open one. */
export class Library extends EventTarget {
  /**
   * @param {Store} store
   * @param {(error: unknown) => void} onFull called when a conversation could not be saved
   */
  constructor(store, onFull) {
    super();
    this.store = store;
    this.onFull = onFull;
    /** @type {Map<string, Conversation>} */
    this.conversations = new Map();
    this.current = newConversation(settingsKept());
    /** @type {Set<Conversation>} */
    this.waiting = new Set();
    /** Conversations that change in this tab now: changes by other tabs are ignored. */
    this.busy = (/** @type {string} */ _id) => false;
  }

  /** Read the saved conversations and open the one that was open last. */
  async load() {
    for (const each of await this.store.all()) this.conversations.set(each.id, each);
    const { open } = readChoices();
    const found = this.conversations.get(String(open));
    if (found) this.current = found;
    this.store.onChangeElsewhere((id) => this.reread(id));
    this.changed();
  }

  /** @returns {Conversation[]} */
  get list() {
    return [...this.conversations.values()].sort((one, other) => other.updated - one.updated);
  }

  /** @param {Conversation} conversation */
  has({ id }) {
    return this.conversations.has(id);
  }

  /** @param {Conversation} conversation */
  open(conversation) {
    this.current = conversation;
    keepChoices({ open: conversation.id });
    this.changed();
  }

  /**
   * Save the settings of the open conversation, even before it has messages.
   */
  saveSettings() {
    const { system, format, model, tools, knobs } = this.current;
    keepChoices({ settings: { system, format, model, tools, knobs } });
    if (this.has(this.current)) this.saveSoon(this.current);
  }

  /** Open an empty conversation; it is saved once it has a message. */
  create() {
    this.open(newConversation(this.current));
  }

  /**
   * Save a conversation after it changed.
   * @param {Conversation} conversation
   */
  async save(conversation) {
    conversation.updated = Date.now();
    this.conversations.set(conversation.id, conversation);
    if (conversation === this.current) keepChoices({ open: conversation.id });
    this.waiting.delete(conversation);
    this.changed();
    try {
      await this.store.put(conversation);
    } catch (error) {
      this.onFull(error);
    }
  }

  /**
   * Save a conversation that changes many times a second, after a short delay.
   * @param {Conversation} conversation
   */
  saveSoon(conversation) {
    if (this.waiting.has(conversation)) return;
    this.waiting.add(conversation);
    setTimeout(() => {
      if (this.waiting.has(conversation)) this.save(conversation);
    }, MILLISECONDS_BETWEEN_SAVES);
  }

  /** @param {Conversation} conversation */
  async delete(conversation) {
    this.waiting.delete(conversation);
    this.conversations.delete(conversation.id);
    if (this.current === conversation) {
      const next = this.list[0];
      if (next) this.open(next);
      else this.create();
    }
    this.changed();
    await this.store.delete(conversation.id).catch(this.onFull);
  }

  /**
   * Add the conversations of a file, and open the first of them.
   * @param {Blob} file
   */
  async import(file) {
    const found = await fromFile(file);
    for (const each of found) {
      this.conversations.set(each.id, each);
      await this.store.put(each).catch(this.onFull);
    }
    if (found.length > 0) this.open(found[0]);
    return found.length;
  }

  /**
   * Load the change that another tab made to a conversation.
   * @param {string} id
   */
  async reread(id) {
    if (this.busy(id)) return;
    const found = await this.store.get(id).catch(() => undefined);
    if (found) this.conversations.set(id, found);
    else this.conversations.delete(id);
    if (this.current.id === id) this.current = found ?? newConversation(this.current);
    this.changed();
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }
}

/** Return the settings used last, if they can be read from storage. */
function settingsKept() {
  try {
    const settings = /** @type {object} */ (readChoices().settings ?? {});
    return readConversation({ ...newConversation(), ...settings });
  } catch {
    return undefined;
  }
}
