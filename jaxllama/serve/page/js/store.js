/**
 * The conversations in the browser's storage, IndexedDB. Without storage, or without room in it,
 * nothing is saved, but the page continues in memory and warns the reader. Knows conversations, not
 * the page.
 */

import { readConversation } from "./conversation.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */

const DATABASE = "jaxllama";
const CONVERSATIONS = "conversations";

/** Saves conversations. */
export class Store {
  /** @param {IDBDatabase | null} database */
  constructor(database) {
    this.database = database;
    /** Stored records that are no conversations; they are not changed. */
    this.unreadable = 0;
    // Other tabs are notified of each save, so that none overwrites a newer version.
    this.channel = new BroadcastChannel(DATABASE);
  }

  /** Open the storage; if that fails, nothing will be saved. */
  static async open() {
    try {
      const request = indexedDB.open(DATABASE, 1);
      request.onupgradeneeded = () => {
        request.result.createObjectStore(CONVERSATIONS, { keyPath: "id" });
      };
      return new Store(await result(request));
    } catch {
      return new Store(null);
    }
  }

  /** Return all conversations, the newest first. */
  async all() {
    const records = await this.run("readonly", (table) => table.getAll());
    /** @type {Conversation[]} */
    const found = [];
    for (const record of records ?? []) {
      try {
        found.push(readConversation(record));
      } catch {
        // Written by another program, or damaged.
      }
    }
    this.unreadable = (records?.length ?? 0) - found.length;
    return found.sort((one, other) => other.updated - one.updated);
  }

  /**
   * Return one conversation as it was last saved.
   * @param {string} id
   */
  async get(id) {
    const record = await this.run("readonly", (table) => table.get(id));
    return record && readConversation(record);
  }

  /**
   * Save a conversation; rejects if there is no room.
   * @param {Conversation} conversation
   */
  async put(conversation) {
    await this.run("readwrite", (table) => table.put(conversation));
    this.channel.postMessage(conversation.id);
  }

  /** @param {string} id */
  async delete(id) {
    await this.run("readwrite", (table) => table.delete(id));
    this.channel.postMessage(id);
  }

  /**
   * Call `listener` when another tab has saved or deleted a conversation.
   * @param {(id: string) => void} listener
   */
  onChangeElsewhere(listener) {
    this.channel.addEventListener("message", ({ data }) => listener(data));
  }

  /**
   * Run one request in a transaction of its own; waits until it is on disk.
   * @template T
   * @param {IDBTransactionMode} mode
   * @param {(table: IDBObjectStore) => IDBRequest<T>} ask
   * @returns {Promise<T | undefined>}
   */
  async run(mode, ask) {
    if (this.database === null) return undefined;
    const transaction = this.database.transaction(CONVERSATIONS, mode);
    const done = new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
    });
    const answer = result(ask(transaction.objectStore(CONVERSATIONS)));
    await Promise.all([answer, done]);
    return answer;
  }
}

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
