/**
 * First script of the API's page: shows the calls that /openapi.json describes, one at a time, with
 * a form to try it and the same call for curl and Python. The description is large, so the list comes
 * first, and the bodies of a call once it is shown.
 */

import { asServerError } from "./api.js";
import { bodyOf, callsOf, exampleOf, fieldsOf } from "./calls.js";
import { CodeView } from "./code.js";
import { curlOf, pythonOf } from "./snippets.js";
import { byId, h } from "./dom.js";
import { Frame } from "./frame.js";
import { Problem } from "./problem.js";
import { isWriting } from "./shortcuts.js";

/** @typedef {import("./calls.js").Call} Call */

const FIRST = "POST /v1/chat/completions";
const LONGEST_REPLY = 200_000; // characters that are shown

/** Shows one call. */
class CallView {
  /**
   * @param {Frame} frame
   * @param {any} document the description
   * @param {Call} call
   */
  constructor(frame, document, call) {
    this.frame = frame;
    this.document = document;
    this.call = call;
    /** @type {AbortController | null} */
    this.running = null;
    const schema = bodyOf(document, call);
    this.body = schema && h("textarea", { class: "grows", rows: 4, spellcheck: "false", oninput: () => this.update() });
    if (this.body) this.body.value = JSON.stringify(exampleOf(document, schema), null, 2);
    this.parameters = (call.operation.parameters ?? []).map((/** @type {any} */ { name }) => ({
      name,
      field: h("input", { type: "text", autocomplete: "off", oninput: () => this.update() }),
    }));
    this.wrong = h("p", { class: "wrong", role: "alert" });
    this.send = h("button", { type: "submit", class: "primary" }, "Send");
    this.status = h("p", { class: "status", role: "status" });
    this.code = h("code");
    const reply = h("pre", { class: "reply", tabindex: 0, role: "region", "aria-label": "Reply" }, this.code);
    this.reply = h("div", { class: "prose", hidden: true }, h("div", { class: "code" }, reply));
    this.curl = new CodeView({ text: "", lang: "sh" });
    this.python = new CodeView({ text: "", lang: "python" });
    this.elements = this.make();
    this.update();
  }

  make() {
    const { method, path, operation } = this.call;
    const form = h(
      "form",
      { class: "tried", autocomplete: "off", novalidate: true },
      ...this.parameters.map((/** @type {any} */ { name, field }) => h("label", {}, name, field)),
      this.body && h("label", {}, "Body", this.body),
      this.wrong,
      h("div", { class: "row" }, this.send),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) this.running.abort();
      else this.try();
    });
    return [
      h("h2", { tabindex: -1 }, methodLabel(method), ` ${path}`),
      h("p", {}, `${operation.summary}.`),
      h("h3", {}, "Try it"),
      form,
      this.status,
      this.reply,
      h("h3", {}, "From a program"),
      h("div", { class: "prose" }, this.curl.element, this.python.element),
      ...this.tables(),
    ];
  }

  tables() {
    return fieldsOf(this.document, this.call).map((fields) =>
      h(
        "section",
        {},
        h("h3", {}, "Fields of the body"),
        h(
          "table",
          { class: "fields" },
          h("thead", {}, h("tr", {}, ...["Field", "Type", "Meaning"].map((name) => h("th", { scope: "col" }, name)))),
          h(
            "tbody",
            {},
            ...fields.map(({ name, type, meaning }) =>
              h("tr", {}, h("td", {}, h("code", {}, name)), h("td", {}, type), h("td", {}, meaning)),
            ),
          ),
        ),
      ),
    );
  }

  get path() {
    return this.parameters.reduce(
      (/** @type {string} */ path, /** @type {any} */ { name, field }) =>
        path.replace(`{${name}}`, field.value ? encodeURIComponent(field.value) : `{${name}}`),
      this.call.path,
    );
  }

  /** @returns {unknown} the body, undefined without one; throws SyntaxError */
  get value() {
    return this.body ? JSON.parse(this.body.value) : undefined;
  }

  /** Show what is wrong with the body, else the call for curl and Python. */
  update() {
    let value;
    try {
      value = this.value;
      this.wrong.textContent = "";
    } catch (error) {
      this.wrong.textContent = `The body is not JSON: ${error instanceof Error ? error.message : error}.`;
      return;
    }
    const url = new URL("/", document.baseURI).origin + this.path;
    const request = { method: this.call.method, url, body: value, needsKey: this.frame.server.key !== "" };
    this.curl.show(curlOf(request));
    this.python.show(pythonOf(request));
  }

  /** Send the call and show the reply as it comes. */
  async try() {
    if (this.wrong.textContent) return;
    const missing = this.parameters.find((/** @type {any} */ { field }) => field.value === "");
    if (missing) {
      this.wrong.textContent = `The path needs a value: ${missing.name}.`;
      missing.field.focus();
      return;
    }
    const controller = new AbortController();
    this.running = controller;
    this.send.textContent = "Stop";
    this.reply.hidden = false;
    this.code.replaceChildren();
    this.status.textContent = "Sent …";
    const started = performance.now();
    try {
      const response = await this.frame.server.send(this.path, {
        method: this.call.method,
        signal: controller.signal,
        ...(this.body && {
          body: JSON.stringify(this.value),
          headers: { "Content-Type": "application/json" },
        }),
      });
      const text = await this.read(response);
      const seconds = ((performance.now() - started) / 1000).toFixed(2);
      const type = response.headers.get("Content-Type") ?? "";
      this.status.textContent = `${response.status} ${response.statusText} · ${type} · ${seconds} s`;
      if (type.startsWith("application/json")) this.code.textContent = pretty(text);
    } catch (error) {
      this.status.textContent = controller.signal.aborted ? "Stopped." : `No reply: ${asServerError(error).message}.`;
    }
    this.running = null;
    this.send.textContent = "Send";
  }

  /** @param {Response} response */
  async read(response) {
    let text = "";
    const decoder = new TextDecoder();
    const reader = response.body?.getReader();
    while (reader) {
      const { done, value } = await reader.read();
      if (done) break;
      const part = decoder.decode(value, { stream: true });
      if (text.length < LONGEST_REPLY) this.code.append(part);
      text += part;
    }
    return text;
  }
}

/** @param {string} method */
function methodLabel(method) {
  return h("span", { class: "method", "data-method": method }, method.toUpperCase());
}

/** @param {string} text */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2).slice(0, LONGEST_REPLY);
  } catch {
    return text.slice(0, LONGEST_REPLY);
  }
}

const frame = new Frame({
  shortcuts: [
    ["Find a call", "/"],
  ],
});
const problem = new Problem();
const find = byId("find");
/** @type {Map<string, {button: HTMLElement, words: string}>} */
const buttons = new Map();
/** @type {Map<string, Promise<any>>} the descriptions of single calls, once they are needed */
const described = new Map();
/** @type {CallView | null} */
let shown = null;
let wanted = ""; // id of the call that the reader chose last

/**
 * Return the description of a call.
 * @param {Call} call
 * @returns {Promise<any>}
 */
function describe({ operation: { operationId: name } }) {
  const found = described.get(name) ?? read(`?operation=${encodeURIComponent(name)}`);
  described.set(name, found);
  found.catch(() => described.delete(name)); // so that it can be tried again
  return found;
}

/** @param {string} query which part of the description to read */
async function read(query) {
  return (await frame.server.fetch(`/openapi.json${query}`)).json();
}

/**
 * @param {Call} named a call without its bodies
 * @param {boolean} [focus]
 */
async function show(named, focus = true) {
  const { id } = named;
  wanted = id;
  shown?.running?.abort();
  shown = null;
  byId("call").replaceChildren();
  byId("title").textContent = named.operation.summary;
  for (const [other, { button }] of buttons) {
    if (other === id) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  frame.sidebar.makeWay();
  problem.clear();
  try {
    const description = await describe(named);
    const call = callsOf(description).find((each) => each.id === id);
    if (!call || wanted !== id) return;
    shown = new CallView(frame, description, call);
  } catch (thrown) {
    const error = asServerError(thrown);
    problem.show(error, { again: () => show(named), settings: frame.remedyOf(error) });
    return;
  }
  byId("call").replaceChildren(...shown.elements);
  byId("scroller").scrollTop = 0;
  if (focus) byId("call").querySelector("h2")?.focus();
}

/** @param {any} outline */
function list(outline) {
  const calls = callsOf(outline);
  buttons.clear();
  byId("calls").replaceChildren(
    ...[...Map.groupBy(calls, ({ group }) => group)].map(([group, members]) =>
      h(
        "section",
        {},
        h("h3", {}, group),
        ...members.map((call) => {
          const button = h(
            "button",
            { type: "button", title: call.operation.summary, onclick: () => show(call) },
            methodLabel(call.method),
            ` ${call.path}`,
          );
          buttons.set(call.id, { button, words: `${call.id} ${call.operation.summary}`.toLowerCase() });
          return button;
        }),
      ),
    ),
  );
  const first = calls.find(({ id }) => id === FIRST) ?? calls[0];
  if (first) show(first, false);
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.altKey || event.metaKey || isWriting(event.target)) return;
  event.preventDefault();
  frame.sidebar.toggle(true);
  find.focus();
});
find.addEventListener("input", () => {
  const words = find.value.toLowerCase().split(/\s+/);
  for (const { button, words: own } of buttons.values()) {
    button.hidden = !words.every((/** @type {string} */ word) => own.includes(word));
  }
  for (const section of byId("calls").children) {
    section.hidden = section.querySelector("button:not([hidden])") === null;
  }
});

await frame.connect(
  async () => {
    try {
      problem.clear();
      list(await read("?outline=true"));
    } catch (error) {
      const refusal = asServerError(error);
      problem.show(refusal, { again: frame.reconnect, settings: frame.remedyOf(refusal) });
    }
  },
  (error, again) => problem.show(error, { again, settings: frame.remedyOf(error) }),
  { needsPlugins: false },
);
frame.ready();
