/**
 * Entry point of the page: makes the parts, connects them, and loads the server's model and
 * plugins. Reads nothing from the URL, so that a link cannot send messages.
 */

import { asServerError, Server } from "./api.js";
import { Chat } from "./chat.js";
import { copyText } from "./clipboard.js";
import { Composer } from "./composer.js";
import { byId } from "./dom.js";
import { Drawer } from "./drawer.js";
import { Library } from "./library.js";
import { MessageList } from "./messages.js";
import { Announcer, Notices } from "./notices.js";
import { Panel } from "./panel.js";
import { Sidebar } from "./sidebar.js";
import { keepChoices, readChoices, Store } from "./store.js";

const LOADING = 503;
const MILLISECONDS_BETWEEN_LOOKS = 700;

const notices = new Notices(byId("notices"));
const server = new Server();
const store = await Store.open();
const library = new Library(store, () => {
  notices.warn(
    "The browser's storage is full or out of order: what is new is kept only until this page is " +
      "closed. Export what you want to keep, and delete conversations you no longer need.",
  );
});

const settings = new Drawer("settings", {
  opener: "open-settings",
  wide: "(min-width: 70rem)",
  isOpen: readChoices().settingsOpen === true,
  onToggle: (open) => keepChoices({ settingsOpen: open }),
});
const conversations = new Drawer("sidebar", {
  opener: "open-sidebar",
  wide: "(min-width: 52rem)",
});

const panel = new Panel(() => library.saveSettings());
const chat = new Chat({
  server,
  library,
  panel,
  notices,
  announcer: new Announcer(byId("spoken")),
  openSettings: () => settings.toggle(true),
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
  },
);
chat.view = list;
chat.composer = composer;
const sidebar = new Sidebar(library, notices, () => {
  conversations.makeWay();
  composer.focus();
});

const asTokens = byId("as-tokens");
asTokens.addEventListener("click", () => {
  list.asTokens = !list.asTokens;
  asTokens.setAttribute("aria-pressed", String(list.asTokens));
  chat.show();
});

const key = byId("key");
key.value = server.key;
key.addEventListener("change", () => {
  server.useKey(key.value);
  ask();
});

library.addEventListener("change", () => {
  if (panel.conversation !== library.current) panel.show(library.current);
  chat.show();
});

/** @param {string} text for the clipboard */
async function copy(text) {
  if (await copyText(text)) notices.inform("Copied.");
  else notices.warn("The browser does not let this page copy: select the text instead.");
}

/** Load the server's model and plugins; retry while the model loads. */
async function ask() {
  try {
    const [model, plugins] = await Promise.all([server.model(), server.plugins()]);
    chat.model = model;
    byId("model").textContent = model;
    panel.build(plugins);
    chat.problem.clear();
  } catch (thrown) {
    const error = asServerError(thrown);
    if (error.status === LOADING) {
      byId("model").textContent = "The model is loading…";
      setTimeout(ask, MILLISECONDS_BETWEEN_LOOKS);
    } else {
      chat.fail(library.current, error, ask);
    }
  }
}

await library.load().catch(() => notices.warn("The conversations kept in this browser cannot be read."));
sidebar.show();
if (store.database === null) {
  notices.warn("This browser keeps no data for the page: conversations last until it is closed.");
}
if (store.unreadable > 0) {
  notices.warn(`${store.unreadable} of the conversations kept here cannot be read; they stay as they are.`);
}
await ask();
if (matchMedia("(pointer: fine)").matches) composer.focus();
document.documentElement.dataset.ready = "";
