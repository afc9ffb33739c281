/**
 * The list of conversations: search, open, create, rename, delete, export, import. Used by the page;
 * knows the library, not the messages.
 */

import { excerptWith, titleOf } from "./conversation.js";
import { arrange, byId, download, editInPlace, h } from "./dom.js";
import { fileName, toFile } from "./transfer.js";

/** @typedef {import("./library.js").Library} Library */
/** @typedef {import("./conversation.js").Conversation} Conversation */

/** Shows the library. */
export class Sidebar {
  /**
   * @param {Library} library
   * @param {import("./notices.js").Notices} notices
   * @param {() => void} onOpen called when the reader has chosen a conversation
   */
  constructor(library, notices, onOpen) {
    this.library = library;
    this.notices = notices;
    this.onOpen = onOpen;
    this.list = byId("conversations");
    /** @type {Map<string, HTMLElement>} */
    this.rows = new Map();
    this.title = byId("title");
    this.menu = byId("menu");
    this.search = byId("search");
    this.search.addEventListener("input", () => this.show());
    this.search.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.leaveSearch(event));
    library.addEventListener("change", () => this.show());
    const actions = {
      new: () => this.create(),
      rename: () => this.rename(),
      export: () => this.export([library.current]),
      "export-all": () => this.export(library.list),
      import: () => byId("file").click(),
      delete: () => this.delete(library.current),
    };
    for (const [id, act] of Object.entries(actions)) {
      byId(id).addEventListener("click", () => {
        this.menu.hidePopover();
        act();
      });
    }
    byId("file").addEventListener("change", () => {
      const input = byId("file");
      const [file] = input.files;
      input.value = "";
      if (file) this.import(file);
    });
  }

  /**
   * Escape empties the search, the arrow down goes to what was found.
   * @param {KeyboardEvent} event
   */
  leaveSearch(event) {
    if (event.key === "ArrowDown") {
      event.preventDefault();
      this.list.querySelector("button")?.focus();
    }
    if (event.key !== "Escape" || this.search.value === "") return;
    event.preventDefault();
    event.stopPropagation();
    this.search.value = "";
    this.show();
  }

  show() {
    const { current, list } = this.library;
    const wanted = this.search.value.trim().toLowerCase();
    const rows = [];
    for (const each of list) {
      const excerpt = wanted === "" ? "" : excerptWith(each, wanted);
      if (excerpt !== null) rows.push(this.row(each, excerpt));
    }
    arrange(this.list, rows);
    const nothing = wanted !== "" && rows.length === 0 ? "No conversation has this text." : "";
    if (byId("search-nothing").textContent !== nothing) byId("search-nothing").textContent = nothing;
    const title = titleOf(current);
    if (!this.title.querySelector("input")) this.title.textContent = title;
    document.title = `${title} – jaxllama`;
    const kept = list.includes(current);
    for (const id of ["rename", "export", "delete"]) byId(id).disabled = !kept;
    byId("export-all").disabled = list.length === 0;
  }

  /**
   * @param {Conversation} conversation
   * @param {string} excerpt of a message with what is searched
   */
  row(conversation, excerpt) {
    const { id } = conversation;
    const row = this.rows.get(id) ?? h("li", {}, h("button", { type: "button", onclick: () => this.open(id) }));
    this.rows.set(id, row);
    const button = /** @type {HTMLElement} */ (row.firstChild);
    const title = titleOf(conversation);
    if (excerpt) button.replaceChildren(title, h("span", { class: "excerpt" }, excerpt));
    else if (button.textContent !== title) button.textContent = title;
    if (id === this.library.current.id) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    return row;
  }

  /** @param {string} id */
  open(id) {
    const conversation = this.library.conversations.get(id);
    if (conversation) this.library.open(conversation);
    this.onOpen();
  }

  create() {
    this.library.create();
    this.onOpen();
  }

  /** Let the reader change the title in place. */
  rename() {
    const { current } = this.library;
    editInPlace(this.title, {
      label: "Title",
      value: titleOf(current),
      longest: 200,
      back: byId("more"),
      onDone: (title) => {
        if (title !== null) {
          current.title = title;
          this.library.save(current);
        }
        this.show();
      },
    });
  }

  /** @param {Conversation} conversation */
  async delete(conversation) {
    const title = titleOf(conversation);
    await this.library.delete(conversation);
    this.onOpen();
    const act = async () => {
      await this.library.save(conversation);
      this.library.open(conversation);
    };
    this.notices.inform(`Deleted “${title}”.`, { label: "Undo", act });
  }

  /** @param {Conversation[]} conversations */
  export(conversations) {
    const name = conversations.length === 1 ? titleOf(conversations[0]) : "conversations";
    download(fileName(name), toFile(conversations));
  }

  /** @param {File} file */
  async import(file) {
    try {
      const count = await this.library.import(file);
      this.notices.inform(`Imported ${count} ${count === 1 ? "conversation" : "conversations"}.`);
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      this.notices.warn(`${file.name} was not imported: ${why}.`);
    }
  }
}
