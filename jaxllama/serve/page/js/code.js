/**
 * A block of code: its language, a copy button, and the colours of highlight.js, a kept library
 * that is loaded with the first block that needs it. Used by prose.js.
 */

import { copyText } from "./clipboard.js";
import { h } from "./dom.js";

const LONGEST = 50_000; // characters that are coloured: longer code would hold up the page
const SHORT = 4000; // characters that are coloured again with every change
const MILLISECONDS_BETWEEN_COLOURS = 400;
const MILLISECONDS_COPIED = 2000;

/** Names that models write -> files in the folder of languages. */
const FILES = new Map([
  ...["bash", "c", "cpp", "csharp", "css", "diff", "dockerfile", "go", "haskell", "ini", "java",
    "javascript", "json", "kotlin", "latex", "lua", "makefile", "markdown", "php", "python", "r",
    "ruby", "rust", "sql", "swift", "typescript", "xml", "yaml"].map((name) => /** @type {[string, string]} */ ([name, name])),
  ...Object.entries({
    sh: "bash", shell: "bash", zsh: "bash", console: "bash", h: "c", "c++": "cpp", cc: "cpp",
    hpp: "cpp", cs: "csharp", "c#": "csharp", patch: "diff", golang: "go", hs: "haskell",
    toml: "ini", js: "javascript", jsx: "javascript", mjs: "javascript", node: "javascript",
    jsonc: "json", jsonl: "json", kt: "kotlin", tex: "latex", make: "makefile", md: "markdown",
    py: "python", python3: "python", pycon: "python", rb: "ruby", rs: "rust", ts: "typescript",
    tsx: "typescript", html: "xml", htm: "xml", svg: "xml", xhtml: "xml", yml: "yaml",
    postgresql: "sql", mysql: "sql", sqlite: "sql",
  }),
]);
/** Languages inside others. */
const INNER = new Map([["xml", ["css", "javascript"]], ["markdown", ["xml"]], ["php", ["xml"]]]);

/** @type {Promise<any> | null} */
let library = null;
/** @type {Map<string, Promise<void>>} */
const languages = new Map();

/** Shows one block of code. */
export class CodeView {
  /** @param {{text: string, lang?: string}} token */
  constructor({ text, lang = "" }) {
    this.language = lang.trim().split(/[\s{,]/)[0];
    this.file = FILES.get(this.language.toLowerCase());
    this.text = text;
    this.code = h("code", {}, text);
    this.copy = h("button", { type: "button", class: "plain copy", onclick: () => this.copied() }, "Copy code");
    this.element = h(
      "div",
      { class: "code" },
      h("div", { class: "code-bar" }, h("span", {}, this.language || "text"), this.copy),
      h("pre", { tabindex: 0, role: "region", "aria-label": `Code${this.language ? `, ${this.language}` : ""}` }, this.code),
    );
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    this.colour();
  }

  /**
   * Show the text as it is now, in colour at once if it is short, else a moment later.
   * @param {string} text
   */
  show(text) {
    if (text.startsWith(this.text)) this.code.append(text.slice(this.text.length));
    else this.code.textContent = text;
    this.text = text;
    if (text.length <= SHORT) {
      this.colour();
      return;
    }
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      this.colour();
    }, MILLISECONDS_BETWEEN_COLOURS);
  }

  async colour() {
    const { file, text } = this;
    if (!file || text.length > LONGEST) return;
    try {
      const highlighter = await loaded(file);
      if (text !== this.text) return;
      const { _emitter } = highlighter.highlight(text, { language: file, ignoreIllegals: true });
      this.code.replaceChildren(...coloured(_emitter.rootNode.children));
    } catch {
      // Without colours the code is still there.
    }
  }

  async copied() {
    this.copy.textContent = (await copyText(this.text)) ? "Copied" : "Not allowed";
    setTimeout(() => {
      this.copy.textContent = "Copy code";
    }, MILLISECONDS_COPIED);
  }
}

/**
 * Return highlight.js with a language and the languages inside it.
 * @param {string} file
 */
async function loaded(file) {
  library ??= import("../vendor/highlight/core.min.js").then((module) => module.default);
  const highlighter = await library;
  const needed = [...(INNER.get(file) ?? []), file];
  await Promise.all(
    needed.map((name) => {
      const known = languages.get(name) ?? load(highlighter, name);
      languages.set(name, known);
      return known;
    }),
  );
  return highlighter;
}

/**
 * @param {any} highlighter
 * @param {string} name
 */
async function load(highlighter, name) {
  const module = await import(`../vendor/highlight/languages/${name}.min.js`);
  highlighter.registerLanguage(name, module.default);
}

/**
 * Make elements of highlight.js's tree of texts and scopes.
 * @param {any[]} children
 * @returns {(Node | string)[]}
 */
function coloured(children) {
  return children.map((child) => {
    if (typeof child === "string") return child;
    const scope = /^[a-z]+/.exec(child.scope ?? "")?.[0] ?? "";
    return h("span", { class: `hl-${scope}` }, ...coloured(child.children));
  });
}
