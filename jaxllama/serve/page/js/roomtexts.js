/**
 * The texts of a room on the page: who said what, in the speaker's colour, with buttons. Used by
 * rooms.js; the actions of the buttons are passed in.
 */

import { arrange, h, iconButton } from "./dom.js";
import { MarkdownView } from "./markdown.js";

/** @typedef {import("./roomclient.js").Room} Room */
/** @typedef {import("./roomclient.js").Block} Block */

/**
 * @typedef {object} TextActions
 * @property {(block: Block, text: string) => void} edit
 * @property {(block: Block) => void} delete
 * @property {(block: Block) => void} rewind
 * @property {(block: Block) => void} continue
 * @property {(block: Block, author: string | null, text: string) => void} insert
 * @property {(block: Block) => void} copy
 */

export const NARRATOR = ""; // value of a select for a text that nobody says
const NARRATION = "Narration";

/** Shows all texts of a room. */
export class RoomTexts {
  /**
   * @param {HTMLElement} list
   * @param {TextActions} actions
   */
  constructor(list, actions) {
    this.list = list;
    this.actions = actions;
    /** @type {Map<string, RoomText>} */
    this.views = new Map();
  }

  /**
   * @param {Room} room
   * @param {{uuid: string, text: string} | null} writing the text that is generated here now
   */
  show(room, writing) {
    const views = room.blocks.map(({ uuid }) => this.views.get(uuid) ?? new RoomText(this.actions));
    this.views = new Map(views.map((view, place) => [room.blocks[place].uuid, view]));
    arrange(
      this.list,
      views.map(({ element }) => element),
    );
    views.forEach((view, place) => {
      const block = room.blocks[place];
      const isWriting = writing?.uuid === block.uuid;
      view.show(room, isWriting ? { ...block, text: writing.text } : block, {
        isLast: place === views.length - 1,
        isBusy: writing !== null,
        isWriting,
      });
    });
  }
}

/** Shows one text. */
class RoomText {
  /** @param {TextActions} actions */
  constructor(actions) {
    this.actions = actions;
    /** @type {Block} */
    this.block = { author: null, text: "", uuid: "" };
    /** @type {Room | null} */
    this.room = null;
    this.isBusy = false;
    this.prose = new MarkdownView();
    this.name = h("h2");
    this.body = h("div", { class: "body" }, this.prose.element);
    const button = (/** @type {string} */ icon, /** @type {string} */ label, /** @type {() => void} */ act) =>
      iconButton(icon, label, () => {
        if (!this.isBusy || icon === "copy") act();
      });
    this.goOn = button("continue", "Continue", () => actions.continue(this.block));
    this.buttons = [
      button("copy", "Copy", () => actions.copy(this.block)),
      button("edit", "Edit", () => this.edit()),
      button("plus", "Insert below", () => this.insert()),
      this.goOn,
      button("undo", "Rewind to here", () => actions.rewind(this.block)),
      button("trash", "Delete", () => actions.delete(this.block)),
    ];
    this.article = h(
      "article",
      {},
      this.name,
      this.body,
      h("footer", {}, h("div", { class: "actions" }, ...this.buttons)),
    );
    this.element = h("li", { class: "message" }, this.article);
  }

  /**
   * @param {Room} room
   * @param {Block} block
   * @param {{isLast: boolean, isBusy: boolean, isWriting: boolean}} state
   */
  show(room, block, { isLast, isBusy, isWriting }) {
    [this.room, this.block, this.isBusy] = [room, block, isBusy];
    const speaker = room.speakers.find(({ name }) => name === block.author);
    const style = speaker ? `message voiced voice-${speaker.colour % 8}` : "message voiced";
    if (this.element.className !== style) this.element.className = style;
    const name = block.author ?? NARRATION;
    if (this.name.textContent !== name) this.name.textContent = name;
    this.article.setAttribute("aria-label", name);
    this.element.toggleAttribute("data-writing", isWriting);
    for (const each of this.buttons.slice(1)) each.setAttribute("aria-disabled", String(isBusy));
    this.goOn.hidden = !isLast || speaker === undefined;
    if (block.text || !isWriting) this.prose.show(block.text);
    else this.prose.show("…");
  }

  /** Let the reader change the text in place. */
  edit() {
    const leave = () => this.leave(1);
    const field = textField("Text", this.block.text, (text) => {
      this.actions.edit(this.block, text);
      leave();
    }, leave);
    this.body.replaceChildren(field.element);
    field.focus();
  }

  /** Let the reader write a text that follows this one. */
  insert() {
    const author = authorSelect(/** @type {Room} */ (this.room), "Author of the new text");
    author.value = this.block.author ?? NARRATOR;
    const leave = () => this.leave(2);
    const field = textField("New text", "", (text) => {
      this.actions.insert(this.block, author.value || null, text);
      leave();
    }, leave);
    field.element.prepend(author);
    this.body.replaceChildren(this.prose.element, field.element);
    field.focus();
  }

  /** @param {number} place of the button that gets the focus back */
  leave(place) {
    this.body.replaceChildren(this.prose.element);
    this.buttons[place].focus();
  }
}

/**
 * Make a select with all speakers of a room, and narration.
 * @param {Room} room
 * @param {string} label
 */
export function authorSelect(room, label) {
  const select = h("select", { "aria-label": label });
  fillAuthors(select, room);
  return select;
}

/**
 * @param {HTMLSelectElement} select
 * @param {Room} room
 */
export function fillAuthors(select, room) {
  const chosen = select.value;
  select.replaceChildren(
    ...room.speakers.map(({ name }) => h("option", { value: name }, name)),
    h("option", { value: NARRATOR }, NARRATION),
  );
  const known = chosen === NARRATOR || room.speakers.some(({ name }) => name === chosen);
  select.value = known && select.dataset.filled ? chosen : (room.speakers[0]?.name ?? NARRATOR);
  select.dataset.filled = "";
}

/**
 * @param {string} label
 * @param {string} text
 * @param {(text: string) => void} save
 * @param {() => void} cancel
 */
function textField(label, text, save, cancel) {
  const field = h("textarea", { "aria-label": label, class: "grows", rows: 2 });
  field.value = text;
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save(field.value);
  });
  const button = (/** @type {string} */ name, /** @type {string} */ style, /** @type {() => void} */ act) =>
    h("button", { type: "button", class: style, onclick: act }, name);
  const element = h(
    "div",
    { class: "inserting" },
    field,
    h("div", { class: "row" }, button("Save", "primary", () => save(field.value)), button("Cancel", "plain", cancel)),
  );
  return { element, focus: () => field.focus() };
}
