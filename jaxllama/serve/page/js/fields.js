/**
 * Entry point of the page of JSON fields: the model writes a value of a schema, field after field;
 * after a change in one field it goes on from there. What comes before is pinned in the schema that
 * the server gets, so the answer is always a whole value.
 */

import { asServerError } from "./api.js";
import { copyText } from "./clipboard.js";
import { byId, download, onSubmit } from "./dom.js";
import { FieldTree } from "./fieldtree.js";
import { offerFormats } from "./choices.js";
import { Frame } from "./frame.js";
import { JsonError, plainValue, readJson } from "./json.js";
import { KnobPanel } from "./knobs.js";
import { keepChoices, readChoices } from "./preferences.js";
import { Problem } from "./problem.js";
import { closedValues, inner, pinned, schemaOf, SchemaError } from "./schema.js";

/** @typedef {import("./schema.js").Path} Path */
/** @typedef {import("./json.js").JsonNode} JsonNode */

const FORMS = ["json_schema", "json_object", "regex", "choices", "grammar"];
const DRAWN = 8; // answers from which the alternatives of an open field come
const POST = { method: "POST", headers: { "Content-Type": "application/json" } };

const frame = new Frame({
  shortcuts: [
    ["Fill the fields", "Ctrl Enter"],
    ["Go on from a changed field", "Enter"],
    ["Stop", "Esc"],
  ],
});
const { server, notices } = frame;
const problem = new Problem();
let model = "";
/** @type {import("./schema.js").Schema | null} of the shown fields */
let schema = null;
let text = ""; // the answer
/** @type {AbortController | null} */
let running = null;
/** @type {number | undefined} */
let drawing = undefined;

const knobs = new KnobPanel({ onChange: (changed) => keepChoices({ fieldKnobs: changed }), except: FORMS });
byId("knob-panel").append(knobs.element);
const keptKnobs = readChoices().fieldKnobs;
knobs.show(typeof keptKnobs === "object" && keptKnobs !== null ? { .../** @type {any} */ (keptKnobs) } : {});

const tree = new FieldTree(byId("fields"), {
  onContinue: (path, value) => {
    const before = documentNow(); // the text is empty once the model writes
    const root = schema;
    if (root) write(() => pinned(root, before, path, { value }));
  },
  onAlternatives: (path) => showAlternatives(path),
});

/** @returns {JsonNode | null} the answer so far */
function nodeNow() {
  try {
    return readJson(text, true);
  } catch (error) {
    if (error instanceof JsonError) return null;
    throw error;
  }
}

function documentNow() {
  const node = nodeNow();
  return node ? plainValue(node) : {};
}

function messages() {
  const [system, message] = [byId("system").value, byId("message").value];
  return [...(system.trim() ? [{ role: "system", content: system }] : []), { role: "user", content: message }];
}

/** Return the fields of a request, without the form of its answer. */
function request() {
  const format = byId("format").value;
  return { ...(model && { model }), messages: messages(), ...knobs.request(), ...(format && { format }) };
}

/** Read the schema of the form; returns null and says why if it is none. */
function readSchema() {
  const field = byId("schema");
  let wrong = "";
  let found = null;
  try {
    const node = readJson(field.value);
    found = node && schemaOf(plainValue(node));
    byId("schema-help").textContent = found?.isSample
      ? "A sample: its schema is made of it."
      : "A JSON schema.";
  } catch (error) {
    if (!(error instanceof JsonError)) throw error;
    const line = field.value.slice(0, error.place).split("\n").length;
    wrong = `Line ${line}: ${error.message}.`;
  }
  byId("schema-wrong").textContent = wrong;
  field.setAttribute("aria-invalid", String(wrong !== ""));
  return found?.schema ?? null;
}

function start() {
  if (running) return;
  const found = readSchema();
  if (found === null) {
    byId("schema").focus();
    return;
  }
  const { wrong } = knobs;
  if (wrong) {
    frame.revealKnob(knobs, wrong.knob.name);
    return;
  }
  keepChoices({
    fields: { system: byId("system").value, message: byId("message").value, schema: byId("schema").value.slice(0, 64_000) },
  });
  schema = found;
  tree.clear();
  byId("fields").scrollIntoView({ block: "nearest" }); // on a narrow screen they are below the form
  write(() => found);
}

/**
 * Let the model write a value.
 * @param {() => import("./schema.js").Schema} makeForm returns the schema that the answer is held to
 */
async function write(makeForm) {
  if (running) return;
  const before = text;
  const controller = new AbortController();
  running = controller;
  text = "";
  let [finish, tokens] = ["", 0];
  problem.clear();
  byId("nothing").hidden = true;
  byId("whole").hidden = false;
  byId("stop").hidden = false;
  byId("start").disabled = true;
  const started = performance.now();
  try {
    const form = JSON.stringify(makeForm());
    show();
    for await (const delta of server.chat({ ...request(), json_schema: form }, controller.signal)) {
      text += delta.text;
      if (delta.finish) finish = delta.finish;
      if (delta.usage) tokens = delta.usage.generated;
      showSoon();
    }
    frame.announcer.flush("All fields are written.");
  } catch (error) {
    if (!controller.signal.aborted) {
      if (text === "") text = before;
      fail(error, () => write(makeForm));
    }
    finish ||= "stopped";
  }
  running = null;
  byId("stop").hidden = true;
  byId("start").disabled = false;
  const seconds = (performance.now() - started) / 1000;
  byId("figures").textContent = [
    ...(finish === "length" ? ["cut at the token limit"] : finish === "stopped" ? ["stopped"] : []),
    ...(tokens > 0 ? [`${tokens} tokens`, `${(tokens / seconds).toFixed(1)} tokens/s`] : []),
  ].join(" · ");
  show();
}

/**
 * @param {unknown} thrown
 * @param {() => void} again
 */
function fail(thrown, again) {
  if (thrown instanceof SchemaError) {
    notices.warn(`This field cannot be kept: ${thrown.message}.`);
    return;
  }
  const error = asServerError(thrown);
  problem.show(error, { again, settings: frame.remedyOf(error, knobs) });
}

function showSoon() {
  drawing ??= requestAnimationFrame(() => {
    drawing = undefined;
    show();
  });
}

/** Show the fields and the text as they are now. */
function show() {
  byId("json").textContent = text;
  if (schema) tree.show(schema, nodeNow(), running !== null);
}

/**
 * Show other values of a field, the likeliest first.
 * @param {Path} path
 */
async function showAlternatives(path) {
  if (!schema || running) return;
  tree.showAlternatives(path, "Asking the model…");
  try {
    let part = schema;
    for (const step of path) part = inner(schema, part, step);
    const values = closedValues(schema, part);
    if (values) tree.showAlternatives(path, await weighed(path, values), "Likelihood among all possible values:");
    else tree.showAlternatives(path, await drawn(path), `Of ${DRAWN} drawn values, the likelihood of each as a whole under the model:`);
  } catch (thrown) {
    const words = thrown instanceof SchemaError ? thrown.message : asServerError(thrown).message;
    tree.showAlternatives(path, words);
  }
}

/**
 * Compute how likely each of the possible values of a field is.
 * @param {Path} path
 * @param {any[]} values
 */
async function weighed(path, values) {
  const node = partOf(nodeNow(), path);
  const before = text.slice(0, node?.start ?? 0);
  const { model: name, format, messages: said } = /** @type {any} */ (request());
  const body = {
    ...(name && { model: name }),
    ...(format && { format }),
    messages: said,
    continuations: values.map((value) => before + JSON.stringify(value)),
  };
  const { scores } = await (await server.fetch("/score", { ...POST, body: JSON.stringify(body) })).json();
  const logprobs = scores.map((/** @type {any} */ { logprob }) => logprob);
  const most = Math.max(...logprobs);
  const shares = logprobs.map((/** @type {number} */ each) => Math.exp(each - most));
  const sum = shares.reduce((/** @type {number} */ one, /** @type {number} */ other) => one + other, 0);
  return sorted(values.map((value, place) => alternative(value, shares[place] / sum)));
}

/**
 * Draw values of a field, and compute how likely each of them is.
 * @param {Path} path
 */
async function drawn(path) {
  const form = pinned(/** @type {any} */ (schema), documentNow(), path, { isLast: true });
  const { seed: _, ...asked } = /** @type {any} */ (request());
  const body = { ...asked, json_schema: JSON.stringify(form), n: DRAWN, logprobs: true, top_logprobs: 0 };
  const response = await server.fetch("/v1/chat/completions", { ...POST, body: JSON.stringify(body) });
  /** @type {Map<string, ReturnType<typeof alternative>>} */
  const found = new Map();
  for (const { message, logprobs } of (await response.json()).choices) {
    const node = partOf(readJson(message.content, true), path);
    if (!node?.isWhole) continue;
    let [place, logprob] = [0, 0];
    for (const token of logprobs.content) {
      const end = place + token.token.length;
      if (end > node.start && place < node.end) logprob += token.logprob;
      place = end;
    }
    const value = plainValue(node);
    found.set(JSON.stringify(value), alternative(value, Math.exp(logprob)));
  }
  return sorted([...found.values()]);
}

/**
 * @param {any} value
 * @param {number} share
 */
function alternative(value, share) {
  const percent = share * 100;
  return { value, share, text: percent > 0 && percent < 0.01 ? "< 0.01 %" : `${percent.toFixed(percent < 1 ? 2 : 1)} %` };
}

/** @param {ReturnType<typeof alternative>[]} found */
function sorted(found) {
  return found.sort((one, other) => other.share - one.share);
}

/**
 * @param {JsonNode | null} node
 * @param {Path} path
 * @returns {JsonNode | null}
 */
function partOf(node, path) {
  let found = node;
  for (const step of path) {
    found =
      (typeof step === "number" ? found?.items[step] : found?.entries.find(({ key }) => key === step)?.value) ?? null;
  }
  return found;
}

onSubmit(byId("ask"), start);
byId("schema").addEventListener("change", () => readSchema());
byId("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.defaultPrevented) running?.abort();
});
byId("copy").addEventListener("click", async () => {
  if (await copyText(text)) notices.inform("Copied.");
  else notices.warn("The browser does not let this page copy: select the text instead.");
});
byId("save").addEventListener("click", () => download("fields.json", `${text}\n`));

const kept = /** @type {any} */ (readChoices().fields ?? {});
for (const name of ["system", "message", "schema"]) {
  if (typeof kept[name] === "string") byId(name).value = kept[name];
}

await frame.connect(
  (connection) => {
    model = connection.model;
    problem.clear();
    knobs.build(connection.plugins);
    offerFormats(byId("format"), connection.plugins);
  },
  (error, again) => fail(error, again),
);
frame.ready();
