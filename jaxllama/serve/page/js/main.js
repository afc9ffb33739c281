/**
 * Entry point of the page: makes the parts, connects them, and loads the server's model and
 * plugins. Reads nothing from the URL, so that a link cannot send messages.
 */

import { Chat } from "./chat.js";
import { copyText } from "./clipboard.js";
import { Composer } from "./composer.js";
import { byId } from "./dom.js";
import { fenced, FileReading } from "./filereading.js";
import { Frame } from "./frame.js";
import { Library } from "./library.js";
import { MessageList } from "./messages.js";
import { Panel } from "./panel.js";
import { isWriting } from "./shortcuts.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";
import { isExport } from "./transfer.js";

const frame = new Frame({
  shortcuts: [
    ["Send the message", "Enter"],
    ["Start a new line", "Shift Enter"],
    ["Stop the answer", "Esc"],
    ["Save an edited message; a question is answered again", "Ctrl Enter"],
    ["Leave an edited message as it was", "Esc"],
    ["Search the conversations", "/"],
    ["In the token view: go to another token", "← → ↑ ↓"],
    ["In the token view: choose another token", "Enter"],
  ],
});
const { notices, server } = frame;
const store = await Store.open();
const library = new Library(store, () => {
  notices.warn(
    "The browser's storage is full or out of order: what is new is kept only until this page is " +
      "closed. Export what you want to keep, and delete conversations you no longer need.",
  );
});

const panel = new Panel(() => library.saveSettings());
const chat = new Chat({
  server,
  library,
  panel,
  notices,
  announcer: frame.announcer,
  reveal: (knob) => {
    if (knob !== null) return frame.revealKnob(panel.knobs, knob);
    frame.openSettings();
    return panel.revealTools();
  },
  remedyOf: (error) => frame.remedyOf(error, panel.knobs),
});
const composer = new Composer({ send: (text) => chat.send(text), stop: () => chat.stop() });
const list = new MessageList(
  { scroller: byId("scroller"), list: byId("messages"), latest: byId("latest") },
  {
    regenerate: (message) => chat.regenerate(message),
    continue: (message) => chat.continue(message),
    delete: (message) => chat.delete(message),
    copy: ({ content }) => copy(content),
    edit: (message, text, answer) => chat.edit(message, text, answer),
    turn: (message, by) => chat.turn(message, by),
    takeInstead: (message, start) => chat.takeInstead(message, start),
    giveResults: (message, results) => chat.giveResults(message, results),
  },
);
chat.view = list;
chat.composer = composer;
const sidebar = new Sidebar(library, notices, () => {
  frame.sidebar.makeWay();
  composer.focus();
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.altKey || event.metaKey || isWriting(event.target)) return;
  event.preventDefault();
  frame.sidebar.toggle(true);
  sidebar.search.focus();
});

const asTokens = byId("as-tokens");
asTokens.addEventListener("click", () => {
  list.asTokens = !list.asTokens;
  asTokens.setAttribute("aria-pressed", String(list.asTokens));
  chat.show();
});

library.addEventListener("change", () => {
  if (panel.conversation !== library.current) panel.show(library.current);
  chat.show();
});

new FileReading({
  area: byId("main"),
  button: byId("insert-file"),
  onText: async (file, text) => {
    if (isExport(text)) await sidebar.import(file);
    else composer.insert(`${file.name}:\n\n${fenced(text)}\n`);
  },
  onProblem: (words) => notices.warn(words),
});

/** @param {string} text for the clipboard */
async function copy(text) {
  if (await copyText(text)) notices.inform("Copied.");
  else notices.warn("The browser does not let this page copy: select the text instead.");
}

await library.load().catch(() => notices.warn("The conversations kept in this browser cannot be read."));
sidebar.show();
if (store.database === null) {
  notices.warn("This browser keeps no data for the page: conversations last until it is closed.");
}
if (store.unreadable > 0) {
  notices.warn(`${store.unreadable} of the conversations kept here cannot be read; they stay as they are.`);
}
await frame.connect(
  ({ model, models, plugins }) => {
    chat.model = model;
    panel.build(plugins, models);
    chat.problem.clear();
  },
  (error, again) => chat.fail(library.current, error, again),
);
if (matchMedia("(pointer: fine)").matches) composer.focus();
frame.ready();
