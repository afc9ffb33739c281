/**
 * First script of the page of rooms: the list of rooms, the texts of the open one, and what makes
 * speakers speak. The server keeps rooms; its events bring what other tabs change.
 */

import { asServerError } from "./api.js";
import { copyText } from "./clipboard.js";
import { arrange, byId, download, editInPlace, h } from "./dom.js";
import { Frame } from "./frame.js";
import { keepChoices, readChoices } from "./preferences.js";
import { Problem } from "./problem.js";
import { RoomClient } from "./roomclient.js";
import { nextSpeaker, speech } from "./roomprompt.js";
import { RoomSettings } from "./roomsettings.js";
import { fillAuthors, RoomTexts } from "./roomtexts.js";
import { Scrolling } from "./scrolling.js";

/** @typedef {import("./roomclient.js").Room} Room */
/** @typedef {import("./roomclient.js").Block} Block */
/** @typedef {import("./roomclient.js").Speaker} Speaker */

const MILLISECONDS_BETWEEN_SAVES = 400;
const MILLISECONDS_BEFORE_WATCHING_AGAIN = 1500;

/** The open room, and the actions of the reader in it. */
class OpenRoom {
  /** @param {Frame} frame */
  constructor(frame) {
    this.frame = frame;
    this.client = new RoomClient(frame.server);
    this.problem = new Problem();
    /** @type {Room | null} */
    this.room = null;
    /** @type {{uuid: string, text: string} | null} */
    this.writing = null;
    /** @type {AbortController | null} of what is generated here now */
    this.generating = null;
    /** @type {AbortController | null} of the events of the room */
    this.watching = null;
    this.isFresh = true; // whether the next event begins a new count of revisions
    /** @type {number | undefined} */
    this.frameRequest = undefined;
    this.settings = new RoomSettings((changed) => this.change(changed));
    this.scrolling = new Scrolling(byId("scroller"), byId("latest"));
    this.texts = new RoomTexts(byId("texts"), {
      edit: (block, text) => this.act((name) => this.client.edit(name, block.uuid, text)),
      delete: (block) => this.delete(block),
      rewind: (block) => this.rewind(block),
      continue: (block) => this.continue(block),
      insert: (block, author, text) =>
        this.act((name) => this.client.insert(name, [{ author, text }], block.uuid)),
      copy: async ({ text }) => {
        if (await copyText(text)) frame.notices.inform("Copied.");
        else frame.notices.warn("The browser does not let this page copy: select the text instead.");
      },
    });
  }

  /**
   * Open a room and watch it.
   * @param {string} name
   */
  open(name) {
    this.stop();
    this.settings.report();
    this.watching?.abort();
    this.watching = new AbortController();
    keepChoices({ room: name });
    this.room = null;
    this.problem.clear();
    this.watch(name, this.watching.signal);
  }

  /**
   * @param {string} name
   * @param {AbortSignal} signal
   */
  async watch(name, signal) {
    this.isFresh = true;
    try {
      for await (const event of this.client.watch(name, signal)) this.receive(event);
    } catch (thrown) {
      if (signal.aborted) return;
      const error = asServerError(thrown);
      if (error.status >= 400 && error.status < 500) {
        await showRooms();
        return;
      }
    }
    // The server was stopped or the connection was lost: look again until it is there.
    const current = this.room?.name ?? name;
    if (signal.aborted) return;
    setTimeout(() => !signal.aborted && this.watch(current, signal), MILLISECONDS_BEFORE_WATCHING_AGAIN);
  }

  /** @param {any} event of the room */
  receive({ type, ...event }) {
    if (type === "room") {
      this.take(/** @type {Room} */ (event));
    } else if (type === "append") {
      this.grow(event);
    } else if (type === "gone") {
      this.watching?.abort();
      this.stop();
      this.room = null;
      this.frame.notices.inform(`The room “${event.name}” was deleted.`);
      keepChoices({ room: null });
      showRooms();
    }
  }

  /**
   * Add text to blocks; after a change that this tab knows already, read the room again.
   * @param {{since: number, revision: number, texts: Record<string, string>}} growth
   */
  async grow({ since, revision, texts }) {
    const { room } = this;
    if (!room || room.revision >= revision) return;
    if (room.revision !== since) {
      this.take(await this.client.room(room.name).catch(() => room));
      return;
    }
    room.revision = revision;
    for (const block of room.blocks) block.text += texts[block.uuid] ?? "";
    this.showSoon();
  }

  /** @param {Room} room as it is on the server; an older one than the one shown is ignored */
  take(room) {
    if (this.room && room.revision < this.room.revision && !this.isFresh) return;
    this.isFresh = false;
    const isOther = this.room?.name !== room.name;
    const wasRenamed = this.room !== null && isOther;
    this.room = room;
    this.settings.show(room);
    if (isOther) {
      keepChoices({ room: room.name });
      this.scrolling.toEnd();
      showRooms(wasRenamed);
    }
    this.show();
  }

  /** Show the room at the next frame of the screen, however fast texts grow. */
  showSoon() {
    this.frameRequest ??= requestAnimationFrame(() => {
      this.frameRequest = undefined;
      this.show();
    });
  }

  show() {
    const { room, writing } = this;
    if (!room) return;
    document.title = `${room.name} – jaxllama`;
    const title = byId("title");
    if (!title.querySelector("input")) title.textContent = room.name;
    byId("welcome").hidden = room.blocks.length > 0;
    this.texts.show(room, writing);
    const isBusy = this.generating !== null;
    fillAuthors(byId("author"), room);
    const next = byId("next");
    if (next.dataset.shown !== JSON.stringify([room.speakers.map(({ name, colour }) => [name, colour]), isBusy])) {
      next.dataset.shown = JSON.stringify([room.speakers.map(({ name, colour }) => [name, colour]), isBusy]);
      const focused = next.contains(document.activeElement) ? document.activeElement?.textContent : null;
      next.replaceChildren(h("span", { class: "hint" }, "Let speak:"), ...room.speakers.map((speaker) => this.speakerButton(speaker, isBusy)));
      for (const each of next.children) if (each.textContent === focused) /** @type {HTMLElement} */ (each).focus();
    }
    byId("composer").toggleAttribute("data-answering", isBusy);
    byId("send").setAttribute("aria-label", isBusy ? "Stop" : "Send");
    byId("send").title = isBusy ? "Stop (Esc)" : "Send (Enter)";
    this.scrolling.follow();
  }

  /**
   * @param {Speaker} speaker
   * @param {boolean} isBusy
   */
  speakerButton({ name, colour }, isBusy) {
    return h(
      "button",
      {
        type: "button",
        class: `voice-${colour % 8}`,
        title: `Let ${name} speak`,
        "aria-disabled": String(isBusy),
        onclick: () => this.speakAs([name]),
      },
      h("span", {}, name),
    );
  }

  /**
   * Change the room on the server; shows the room as it then is.
   * @param {(name: string) => Promise<Room>} act
   * @returns {Promise<Room | null>} null if it was refused
   */
  async act(act) {
    if (!this.room) return null;
    try {
      const room = await act(this.room.name);
      this.problem.clear();
      this.take(room);
      return room;
    } catch (error) {
      this.fail(error, () => this.act(act));
      return null;
    }
  }

  /** @param {Partial<Room>} changed */
  async change(changed) {
    const room = await this.act((name) => this.client.change(name, changed));
    if (room === null && this.room) this.settings.show(this.room);
  }

  /**
   * @param {unknown} thrown
   * @param {() => void} again
   */
  fail(thrown, again) {
    const error = asServerError(thrown);
    this.problem.show(error, { again, settings: this.frame.remedyOf(error) });
  }

  /** @param {Block} block */
  async delete({ author, text, uuid }) {
    const before = this.uuidBefore(uuid);
    if (!(await this.act((name) => this.client.cut(name, "delete", uuid)))) return;
    this.offerBack("Text deleted.", [{ author, text }], before);
  }

  /** @param {Block} block the last one that stays */
  async rewind({ uuid }) {
    const blocks = this.room?.blocks ?? [];
    const later = blocks.slice(blocks.findIndex((each) => each.uuid === uuid) + 1);
    if (later.length === 0) return;
    if (!(await this.act((name) => this.client.cut(name, "rewind", uuid)))) return;
    this.offerBack(`${later.length} ${later.length === 1 ? "text" : "texts"} deleted.`, later, uuid);
  }

  /**
   * @param {string} words
   * @param {{author: string | null, text: string}[]} blocks
   * @param {string} after
   */
  offerBack(words, blocks, after) {
    const plain = blocks.map(({ author, text }) => ({ author, text }));
    const undo = () => this.act((name) => this.client.insert(name, plain, after));
    this.frame.notices.inform(words, { label: "Undo", act: undo });
  }

  /** @param {string} uuid */
  uuidBefore(uuid) {
    const blocks = this.room?.blocks ?? [];
    return blocks[blocks.findIndex((each) => each.uuid === uuid) - 1]?.uuid ?? "";
  }

  /**
   * Add what the reader said, and let others speak as the settings say.
   * @param {string} text
   * @param {string | null} author
   */
  async say(text, author) {
    if (!this.room || this.generating) return false;
    this.settings.report();
    if (text && !(await this.act((name) => this.client.insert(name, [{ author, text }])))) return false;
    const others = this.room.speakers.map(({ name }) => name).filter((name) => name !== author);
    const replies = this.settings.replies.value;
    this.scrolling.toEnd();
    if (replies === "all") this.speakAs(others);
    else if (replies === "next") this.speakAs(others.slice(0, 1).map(() => this.following(author)));
    else if (replies === "chosen") this.speakAs([], others);
    return true;
  }

  /**
   * Return the speaker after another in the list.
   * @param {string | null} author
   */
  following(author) {
    const names = (this.room?.speakers ?? []).map(({ name }) => name);
    return names[(names.indexOf(author ?? "") + 1) % names.length];
  }

  /**
   * Let speakers speak one after the other; first, the model may choose one.
   * @param {string[]} names
   * @param {string[]} [choices]
   */
  async speakAs(names, choices = []) {
    if (this.generating || !this.room) return;
    this.settings.report();
    const controller = new AbortController();
    this.generating = controller;
    this.problem.clear();
    try {
      const chosen = choices.length > 0 ? [await this.choose(choices, controller.signal)] : [];
      for (const name of [...chosen, ...names]) {
        if (controller.signal.aborted) break;
        await this.speak(name, null, controller.signal);
      }
    } catch (error) {
      if (!controller.signal.aborted) this.fail(error, () => this.speakAs(names, choices));
    } finally {
      this.generating = null;
      this.writing = null;
      this.show();
    }
  }

  /** @param {Block} block the last one, which its speaker continues */
  async continue(block) {
    if (this.generating || !block.author) return;
    const controller = new AbortController();
    this.generating = controller;
    this.problem.clear();
    try {
      await this.speak(block.author, block, controller.signal);
    } catch (error) {
      if (!controller.signal.aborted) this.fail(error, () => this.continue(block));
    } finally {
      this.generating = null;
      this.writing = null;
      this.show();
    }
  }

  /**
   * @param {string[]} names
   * @param {AbortSignal} signal
   */
  async choose(names, signal) {
    if (names.length === 1) return names[0];
    this.show();
    let text = "";
    const request = nextSpeaker(/** @type {Room} */ (this.room), names);
    for await (const delta of this.frame.server.chat(request, signal)) text += delta.text;
    return names.includes(text.trim()) ? text.trim() : names[0];
  }

  /**
   * Generate what a speaker says, and save it on the server as it grows.
   * @param {string} name
   * @param {Block | null} begun the block to continue
   * @param {AbortSignal} signal
   */
  async speak(name, begun, signal) {
    const room = /** @type {Room} */ (this.room);
    const speaker = room.speakers.find((each) => each.name === name);
    if (!speaker) return;
    const before = room.blocks.filter((each) => each.uuid !== begun?.uuid);
    const request = speech(room, speaker, before, begun?.text ?? "");
    let block = begun;
    if (block === null) {
      const changed = await this.client.insert(room.name, [{ author: name, text: "" }]);
      block = /** @type {Block} */ (changed.blocks.at(-1));
      this.take(changed);
    }
    const { uuid } = block;
    const writing = { uuid, text: block.text };
    this.writing = writing;
    this.show();
    let saved = performance.now();
    let text = block.text;
    try {
      for await (const delta of this.frame.server.chat(request, signal)) {
        text += delta.text;
        writing.text = begun ? text : text.trimStart();
        this.frame.announcer.add(delta.text);
        this.showSoon();
        if (performance.now() - saved < MILLISECONDS_BETWEEN_SAVES) continue;
        saved = performance.now();
        await this.client.edit(this.room?.name ?? room.name, uuid, writing.text);
      }
    } finally {
      this.frame.announcer.flush();
      const current = this.room?.name ?? room.name;
      const isEmpty = writing.text.trim() === "";
      const end = isEmpty ? this.client.cut(current, "delete", uuid) : this.client.edit(current, uuid, writing.text);
      await end.then(
        (changed) => {
          if (this.room?.name === changed.name) this.take(changed);
        },
        () => {},
      );
      if (isEmpty) this.frame.notices.inform(`${name} said nothing: the model ended the turn at once.`);
    }
  }

  stop() {
    this.generating?.abort();
  }
}

const frame = new Frame({
  shortcuts: [
    ["Send the text", "Enter"],
    ["Start a new line", "Shift Enter"],
    ["Stop the speakers", "Esc"],
    ["Save an edited text", "Ctrl Enter"],
    ["Leave an edited text as it was", "Esc"],
  ],
});
const open = new OpenRoom(frame);
const { client } = open;

/** Show the list of rooms; opens one, or makes the first, if none is open. */
async function showRooms(isListOnly = false) {
  let names;
  try {
    names = await client.names();
  } catch (error) {
    const { status } = asServerError(error);
    if (status !== 404) open.fail(error, () => showRooms(isListOnly));
    else open.problem.show(asServerError(error), { again: () => showRooms(), settings: null });
    return;
  }
  const current = open.room?.name;
  arrange(
    byId("rooms"),
    names.map((name) =>
      h(
        "li",
        {},
        h("button", { type: "button", "aria-current": name === current ? "true" : null, onclick: () => choose(name) }, name),
      ),
    ),
  );
  if (isListOnly || (current !== undefined && names.includes(current))) return;
  const kept = String(readChoices().room ?? "");
  if (names.length === 0) await create();
  else open.open(names.includes(kept) ? kept : names[0]);
}

/** @param {string} name */
function choose(name) {
  open.open(name);
  frame.sidebar.makeWay();
  byId("text").focus();
}

async function create() {
  try {
    choose((await client.create()).name);
  } catch (error) {
    open.fail(error, create);
  }
}

byId("new-room").addEventListener("click", create);
for (const [id, act] of Object.entries({ rename, export: exportText, delete: remove })) {
  byId(id).addEventListener("click", () => {
    byId("menu").hidePopover();
    if (open.room) act(open.room);
  });
}

/** @param {Room} room */
function rename(room) {
  editInPlace(byId("title"), {
    label: "Name of the room",
    value: room.name,
    longest: 100,
    back: byId("more"),
    onDone: (name) => {
      if (name) open.act((old) => client.change(old, { new_name: name }));
      open.show();
    },
  });
}

/** @param {Room} room */
function exportText({ name, blocks }) {
  const lines = blocks.map(({ author, text }) => (author === null ? text : `${author}: ${text}`));
  download(`${name}.txt`, `${lines.join("\n\n")}\n`, "text/plain");
}

/** @param {Room} room */
async function remove({ name }) {
  try {
    await client.delete(name);
  } catch (error) {
    open.fail(error, () => {});
  }
}

const text = byId("text");
byId("composer").addEventListener("submit", async (/** @type {Event} */ event) => {
  event.preventDefault();
  if (open.generating) {
    open.stop();
    return;
  }
  const said = text.value.trim();
  text.value = "";
  if (!(await open.say(said, byId("author").value || null)) && said) text.value = said;
});
text.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!open.generating) byId("composer").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.defaultPrevented && !document.querySelector(":popover-open")) open.stop();
});
byId("knobs").addEventListener("submit", (/** @type {Event} */ event) => event.preventDefault());

await frame.connect(
  async ({ models, plugins }) => {
    open.settings.build(plugins, models);
    open.problem.clear();
    await showRooms();
  },
  (error, again) => open.fail(error, again),
);
if (matchMedia("(pointer: fine)").matches) text.focus();
frame.ready();
