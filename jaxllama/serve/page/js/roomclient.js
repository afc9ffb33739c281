/**
 * The routes of rooms: sessions on the server, and the events of one. Used by rooms.js; knows the
 * JSON, not the page.
 */

import { ServerError } from "./api.js";
import { readEvents } from "./events.js";

/** @typedef {{name: string, was?: string, system: string, colour: number, model: string, knobs: Record<string, unknown>}} Speaker */
/** @typedef {{author: string | null, text: string, uuid: string}} Block */

/**
 * @typedef {object} Room
 * @property {string} name
 * @property {number} revision grows with every change
 * @property {string} fixed_prompt
 * @property {boolean} keep_fixed_prompt
 * @property {boolean} break_on_newline
 * @property {number} max_response_tokens
 * @property {"chat" | "script"} style
 * @property {Speaker[]} speakers
 * @property {Block[]} blocks
 */

/** Reads and changes rooms. */
export class RoomClient {
  /** @param {import("./api.js").Server} server */
  constructor(server) {
    this.server = server;
  }

  /** @returns {Promise<string[]>} */
  async names() {
    return (await (await this.server.fetch("/v1/rooms")).json()).rooms;
  }

  /**
   * @param {string} name
   * @returns {Promise<Room>}
   */
  async room(name) {
    return (await this.server.fetch(pathOf(name))).json();
  }

  /** @returns {Promise<Room>} a new room */
  create() {
    return this.post("", {});
  }

  /** @param {string} name */
  async delete(name) {
    await this.server.fetch(pathOf(name), { method: "DELETE" });
  }

  /**
   * @param {string} name
   * @param {Record<string, unknown>} changed
   * @returns {Promise<Room>}
   */
  change(name, changed) {
    return this.post(pathOf(name), changed);
  }

  /**
   * @param {string} name
   * @param {{author: string | null, text: string}[]} blocks
   * @param {string | null} after uuid of a block; "": before the first; null: after the last
   * @returns {Promise<Room>}
   */
  insert(name, blocks, after = null) {
    return this.post(`${pathOf(name)}/insert`, { blocks, after });
  }

  /**
   * @param {string} name
   * @param {string} uuid
   * @param {string} text
   * @returns {Promise<Room>}
   */
  edit(name, uuid, text) {
    return this.post(`${pathOf(name)}/edit`, { uuid, text });
  }

  /**
   * @param {string} name
   * @param {"delete" | "rewind"} action
   * @param {string} uuid
   * @returns {Promise<Room>}
   */
  cut(name, action, uuid) {
    return this.post(`${pathOf(name)}/${action}`, { uuid });
  }

  /**
   * Yield the room, and then what changes in it, until the signal or the server ends it.
   * @param {string} name
   * @param {AbortSignal} signal
   * @returns {AsyncGenerator<any>}
   */
  async *watch(name, signal) {
    const response = await this.server.fetch(`${pathOf(name)}/events`, { signal });
    if (response.body === null) throw new ServerError("the server sent an empty answer");
    for await (const data of readEvents(response.body)) yield JSON.parse(data);
  }

  /**
   * @param {string} path below /v1/rooms, or whole
   * @param {unknown} body
   */
  async post(path, body) {
    const response = await this.server.fetch(path || "/v1/rooms", {
      method: "POST",
      body: JSON.stringify(body),
      headers: { "Content-Type": "application/json" },
    });
    return response.json();
  }
}

/** @param {string} name */
function pathOf(name) {
  return `/v1/rooms/${encodeURIComponent(name)}`;
}
