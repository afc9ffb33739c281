/**
 * The frame that all pages have: sidebar, settings, notices, API key, and the connection to the
 * server. A page's first script makes one `Frame` and calls `connect`. Knows no page.
 */

import { asServerError, Server } from "./api.js";
import { byId } from "./dom.js";
import { Drawer } from "./drawer.js";
import { Announcer, Notices } from "./notices.js";
import { keepChoices, readChoices } from "./preferences.js";
import { ShortcutList } from "./shortcuts.js";

/** @typedef {import("./api.js").ServerError} ServerError */
/**
 * @typedef {object} Connection
 * @property {string} model the name of the server's model
 * @property {import("./api.js").ModelName[]} models this name first, then those of other models and of adapters
 * @property {import("./api.js").Plugins} plugins
 */

const LOADING = 503;
const NO_PLUGINS = { samplers: [], formats: [], presets: [], core: [] };
const MILLISECONDS_BETWEEN_LOOKS = 700;

/** The parts that all pages have. `settings` is null on a page without the column #settings. */
export class Frame {
  /** @param {{shortcuts: import("./shortcuts.js").Shortcut[]}} options */
  constructor({ shortcuts }) {
    new ShortcutList(shortcuts);
    this.server = new Server();
    this.notices = new Notices(byId("notices"));
    this.announcer = new Announcer(byId("spoken"));
    this.sidebar = new Drawer("sidebar", { opener: "open-sidebar", wide: "(min-width: 52rem)" });
    this.settings =
      document.getElementById("settings") &&
      new Drawer("settings", {
        opener: "open-settings",
        wide: "(min-width: 70rem)",
        isOpen: readChoices().settingsOpen === true,
        onToggle: (open) => keepChoices({ settingsOpen: open }),
      });
    this.reconnect = () => {};
    const key = byId("key");
    key.value = this.server.key;
    key.addEventListener("change", () => {
      this.server.useKey(key.value);
      this.reconnect();
    });
  }

  /**
   * Load the names of the server's models, and its plugins if the page needs them, and show the model's name in #model; waits while the model
   * loads. Calls `onReady` again after the reader has changed the API key.
   * @param {(connection: Connection) => void} onReady
   * @param {(error: ServerError, again: () => void) => void} onError
   * @param {{needsPlugins?: boolean}} [options]
   */
  async connect(onReady, onError, { needsPlugins = true } = {}) {
    this.reconnect = () => this.connect(onReady, onError, { needsPlugins });
    const place = byId("model");
    try {
      const [models, plugins] = await Promise.all([
        this.server.models(),
        needsPlugins ? this.server.plugins() : NO_PLUGINS,
      ]);
      const [{ name }] = models;
      place.textContent = name;
      onReady({ model: name, models, plugins });
    } catch (thrown) {
      const error = asServerError(thrown);
      if (error.status === LOADING) {
        place.textContent = "The model is loading…";
        setTimeout(this.reconnect, MILLISECONDS_BETWEEN_LOOKS);
      } else {
        onError(error, this.reconnect);
      }
    }
  }

  /** Open the column of settings. */
  openSettings() {
    this.settings?.toggle(true);
  }

  /**
   * Open the column of settings at a knob.
   * @param {import("./knobs.js").KnobPanel} knobs
   * @param {string} name
   */
  revealKnob(knobs, name) {
    this.openSettings();
    knobs.reveal(name);
  }

  /**
   * Return the action that shows where the reader can mend what caused an error: the knob that the
   * server names, or the API key; null if it is neither.
   * @param {ServerError} error
   * @param {import("./knobs.js").KnobPanel} [knobs] of the page
   */
  remedyOf({ param, status }, knobs) {
    if (knobs && param !== null && knobs.controls.has(param)) return () => this.revealKnob(knobs, param);
    return status === 401 ? () => this.revealKey() : null;
  }

  /** Open the field of the API key and focus it. */
  revealKey() {
    this.sidebar.toggle(true);
    byId("access").open = true;
    byId("key").focus();
  }

  /** Note that the page can be used; tests wait for it. */
  ready() {
    document.documentElement.dataset.ready = "";
  }
}
