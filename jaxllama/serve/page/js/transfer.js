/**
 * Conversations as a file: export, and import of files that anyone may have written. Used by the
 * page; knows the form of the file, not the storage.
 */

import { readConversation } from "./conversation.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */

const FORMAT = "jaxllama conversations";
const VERSION = 1;
const MOST_BYTES = 64 * 2 ** 20;

/**
 * Return the text of a file with these conversations.
 * @param {Conversation[]} conversations
 */
export function toFile(conversations) {
  return `${JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 1)}\n`;
}

/**
 * Return a file name that is valid on every system.
 * @param {string} title
 */
export function fileName(title) {
  const plain = title.replace(/[^\p{L}\p{N} _-]/gu, "").trim().slice(0, 60);
  return `${plain || "conversations"}.json`;
}

/**
 * Whether a text is a file of conversations, of any version.
 * @param {string} text
 */
export function isExport(text) {
  return text.slice(0, 200).includes(`"format": ${JSON.stringify(FORMAT)}`);
}

/**
 * Read the conversations of a file, all or none. Each gets a new id, so that an import never
 * overwrites a conversation.
 * @param {Blob} file
 * @returns {Promise<Conversation[]>}
 */
export async function fromFile(file) {
  if (file.size > MOST_BYTES) {
    throw new Error(`it has ${file.size} bytes; at most ${MOST_BYTES} are read`);
  }
  let data;
  try {
    data = JSON.parse(await file.text());
  } catch {
    throw new Error("it is not JSON; expected a file that was exported here");
  }
  if (data?.format !== FORMAT || !Array.isArray(data.conversations)) {
    throw new Error("it holds no conversations; expected a file that was exported here");
  }
  if (data.version !== VERSION) {
    throw new Error(`it is of version ${data.version}; this page reads version ${VERSION}`);
  }
  return data.conversations.map((/** @type {unknown} */ each) => {
    return { ...readConversation(each), id: crypto.randomUUID() };
  });
}
