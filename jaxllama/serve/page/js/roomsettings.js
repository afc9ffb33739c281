/**
 * The settings of a room: fixed prompt, ends of turns, and the speakers. Used by rooms.js; reports
 * changes, and knows no requests.
 */

import { choose, offerModels } from "./choices.js";
import { byId, h } from "./dom.js";
import { KnobPanel } from "./knobs.js";
import { keepChoices, readChoices } from "./preferences.js";

/** @typedef {import("./roomclient.js").Room} Room */
/** @typedef {import("./roomclient.js").Speaker} Speaker */

const COLOURS = ["Green", "Orange", "Blue", "Pink", "Olive", "Red", "Violet", "Grey"];
const MOST_SPEAKERS = 8;
const MILLISECONDS_BETWEEN_CHANGES = 500;
const OWN = ["max_tokens", "stop"]; // set by the room

/** Shows and changes the settings of a room. */
export class RoomSettings {
  /** @param {(changed: Partial<Room>) => Promise<unknown>} onChange */
  constructor(onChange) {
    this.onChange = onChange;
    /** @type {Room | null} */
    this.room = null;
    /** @type {Partial<Room>} changed here, not reported yet */
    this.changed = {};
    /** @type {Set<Partial<Room>>} reported, and not confirmed yet */
    this.reported = new Set();
    this.chosen = "";
    this.shown = ""; // name of the speaker whose settings are shown
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    this.knobs = new KnobPanel({ onChange: (knobs) => this.changeSpeaker({ knobs }), except: OWN });
    byId("knob-panel").replaceChildren(this.knobs.element);
    this.replies = byId("replies");
    this.replies.value = String(readChoices().replies ?? "all");
    this.replies.addEventListener("change", () => keepChoices({ replies: this.replies.value }));
    byId("speaker-colour").replaceChildren(...COLOURS.map((name, value) => h("option", { value }, name)));
    this.listen();
  }

  listen() {
    /** @type {(id: string, event: string, act: (field: any) => void) => void} */
    const on = (id, event, act) => byId(id).addEventListener(event, () => act(byId(id)));
    on("fixed", "input", ({ value }) => this.change({ fixed_prompt: value }));
    on("keep", "change", ({ checked }) => this.change({ keep_fixed_prompt: checked }));
    on("newline", "change", ({ checked }) => this.change({ break_on_newline: checked }));
    on("style", "change", ({ value }) => this.change({ style: value }));
    on("most", "input", ({ valueAsNumber }) => {
      if (Number.isInteger(valueAsNumber) && valueAsNumber > 0) this.change({ max_response_tokens: valueAsNumber });
    });
    on("speaker-name", "change", ({ value }) => this.rename(value.trim()));
    on("speaker-colour", "change", ({ value }) => this.changeSpeaker({ colour: Number(value) }));
    on("speaker-system", "input", ({ value }) => this.changeSpeaker({ system: value }));
    on("speaker-model", "change", ({ value }) => this.changeSpeaker({ model: value }));
    on("add-speaker", "click", () => this.add());
    on("remove-speaker", "click", () => this.remove());
  }

  /**
   * @param {import("./api.js").Plugins} plugins
   * @param {import("./api.js").ModelName[]} models the default one first
   */
  build(plugins, models) {
    this.knobs.build(plugins);
    byId("style").querySelector("[value=script]").disabled = !plugins.formats.some(({ name }) => name === "plain");
    offerModels(byId("speaker-model"), models);
    if (this.room) this.showSpeaker();
  }

  /**
   * Show a room; fields that the reader is changing stay as they are.
   * @param {Room} room
   */
  show(room) {
    this.room = Object.assign({ ...room }, ...this.reported, this.changed);
    const { fixed_prompt, keep_fixed_prompt, break_on_newline, max_response_tokens, style } = /** @type {Room} */ (this.room);
    setField("fixed", fixed_prompt);
    byId("keep").checked = keep_fixed_prompt;
    byId("newline").checked = break_on_newline;
    setField("most", String(max_response_tokens));
    byId("style").value = style;
    this.showSpeaker();
  }

  /** @returns {Speaker | undefined} the speaker whose settings are shown */
  get speaker() {
    const speakers = this.room?.speakers ?? [];
    return speakers.find(({ name }) => name === this.chosen) ?? speakers[1] ?? speakers[0];
  }

  showSpeaker() {
    const { speaker, room } = this;
    const speakers = room?.speakers ?? [];
    byId("choose-speaker").replaceChildren(
      ...speakers.map(({ name, colour }) => {
        const choose = () => {
          this.chosen = name;
          this.showSpeaker();
          byId("choose-speaker").querySelector("[aria-pressed=true]")?.focus();
        };
        const pressed = String(name === speaker?.name);
        const style = `voice-${colour % COLOURS.length}`;
        return h("button", { type: "button", class: style, "aria-pressed": pressed, onclick: choose }, h("span", {}, name));
      }),
    );
    byId("speaker").hidden = speaker === undefined;
    byId("add-speaker").disabled = speakers.length >= MOST_SPEAKERS;
    byId("speaker-name-problem").textContent = "";
    if (!speaker) return;
    const isOther = this.shown !== speaker.name;
    this.shown = speaker.name;
    setField("speaker-name", speaker.name, isOther);
    setField("speaker-system", speaker.system, isOther);
    byId("speaker-colour").value = String(speaker.colour % COLOURS.length);
    choose(byId("speaker-model"), speaker.model);
    if (isOther || !this.knobs.element.contains(document.activeElement)) this.knobs.show(speaker.knobs);
  }

  /** @param {Partial<Speaker>} changed */
  changeSpeaker(changed) {
    const { speaker, room } = this;
    if (!speaker || !room) return;
    const speakers = room.speakers.map((each) => (each === speaker ? { ...each, ...changed } : each));
    this.change({ speakers });
  }

  /** @param {string} name */
  rename(name) {
    const { speaker, room } = this;
    if (!speaker || !room || name === speaker.name) return;
    const taken = room.speakers.some((each) => each.name === name);
    const wrong = name === "" ? "a speaker needs a name" : taken ? "another speaker has this name" : "";
    byId("speaker-name-problem").textContent = wrong;
    if (wrong) return;
    const renamed = { ...speaker, name, was: speaker.name };
    this.chosen = name;
    this.change({ speakers: room.speakers.map((each) => (each === speaker ? renamed : each)) });
    this.report();
  }

  add() {
    const { room } = this;
    if (!room || room.speakers.length >= MOST_SPEAKERS) return;
    const names = new Set(room.speakers.map(({ name }) => name));
    let number = room.speakers.length;
    while (names.has(`Speaker ${number}`)) number += 1;
    const used = new Set(room.speakers.map(({ colour }) => colour));
    const colour = COLOURS.findIndex((_, place) => !used.has(place));
    const name = `Speaker ${number}`;
    this.chosen = name;
    const speaker = { name, system: "You are {name}.", colour: Math.max(colour, 0), model: "", knobs: {} };
    this.change({ speakers: [...room.speakers, speaker] });
    this.report();
    byId("speaker-name").focus();
    byId("speaker-name").select();
  }

  remove() {
    const { speaker, room } = this;
    if (!speaker || !room) return;
    this.change({ speakers: room.speakers.filter((each) => each !== speaker) });
    this.report();
    byId("add-speaker").focus();
  }

  /** @param {Partial<Room>} changed */
  change(changed) {
    Object.assign(this.changed, changed);
    if (this.room) Object.assign(this.room, changed);
    if (changed.speakers) this.showSpeaker();
    this.timer ??= setTimeout(() => this.report(), MILLISECONDS_BETWEEN_CHANGES);
  }

  /** Report what was changed since the last report. */
  report() {
    clearTimeout(this.timer);
    this.timer = undefined;
    const { changed } = this;
    if (Object.keys(changed).length === 0) return;
    this.changed = {};
    const names = changed.speakers?.map(({ was: _, ...speaker }) => speaker);
    const shown = { ...changed, ...(names && { speakers: names }) };
    if (this.room) Object.assign(this.room, shown);
    this.reported.add(shown);
    this.onChange(changed).finally(() => this.reported.delete(shown));
  }
}

/**
 * @param {string} id
 * @param {string} value
 * @param {boolean} [always] also in a field that has the focus
 */
function setField(id, value, always = false) {
  const field = byId(id);
  if ((always || field !== document.activeElement) && field.value !== value) field.value = value;
}
