/**
 * Entry point of the sampler bench: one task, up to six settings that answer it in one batch, the
 * distribution of any token stage by stage, and what-if on the recorded logits.
 */

import { asServerError } from "./api.js";
import { byId, h } from "./dom.js";
import { ExpressionField } from "./expression.js";
import { Frame } from "./frame.js";
import { KnobPanel } from "./knobs.js";
import { Problem } from "./problem.js";
import { Setting } from "./setting.js";
import { StageView } from "./stages.js";

/** @typedef {import("./setting.js").Task} Task */
/** @typedef {import("./stages.js").Cost} Cost */

const KEY = "jaxllama.bench";
const MOST = 6;
const OWN = ["seed", "max_tokens", "stop", "stop_ids", "logprobs", "guidance_scale", "negative_prompt",
  "json_schema", "json_object", "regex", "choices", "grammar", "reasoning_budget"];
const STARTS = [
  { name: "Likeliest", knobs: { temperature: 0 } },
  { name: "Top-p", knobs: { temperature: 0.8, top_p: 0.9 } },
  { name: "One line", knobs: { expression: "p > 0.1 * p_max and rank < 40" } },
];

const frame = new Frame({
  shortcuts: [
    ["Run all settings", "Ctrl Enter"],
    ["Stop", "Esc"],
    ["In an answer: go to another token", "← → ↑ ↓"],
  ],
});
const problem = new Problem();
/** @type {Setting[]} */
const settings = [];
/** @type {Setting} */
let selected;
/** @type {Map<string, Cost>} */
const costs = new Map();
/** @type {ExpressionField[]} */
let fields = [];
const view = new StageView((name) => costs.get(name) ?? null);
const whatIf = h("p", { class: "what-if", role: "status", hidden: true });
byId("explained").append(whatIf, view.element);
/** @type {{setting: Setting, place: number} | null} */
let explained = null;
let isReplaying = false;
let isStale = false; // the knobs changed while a replay was under way

const panel = new KnobPanel({ onChange: (knobs) => change(knobs), except: OWN });
byId("knob-panel").append(panel.element);

/**
 * @param {{name: string, knobs: Record<string, unknown>}} start
 */
function addSetting(start) {
  const setting = new Setting(start, {
    server: frame.server,
    onSelect: select,
    onEdit: edit,
    onRename: () => {
      setting.showKnobs();
      showSelected();
      save();
    },
    onCopy: ({ name, knobs }) => {
      if (settings.length < MOST) select(addSetting({ name: `${name} 2`.slice(0, 40), knobs: structuredClone(knobs) }));
    },
    onRemove: remove,
    onRun: (each) => runAll([each]),
    onToken: (each, place) => explain(each, place),
  });
  settings.push(setting);
  arrange();
  return setting;
}

/** Number the colours, and allow what can be done with this number of settings. */
function arrange() {
  byId("columns").replaceChildren(...settings.map(({ element }) => element));
  for (const [number, { element, removeButton }] of settings.entries()) {
    for (let each = 1; each <= MOST; each += 1) element.classList.toggle(`series-${each}`, each === number + 1);
    removeButton.hidden = settings.length === 1;
  }
  byId("add").disabled = settings.length >= MOST;
}

/** @param {Setting} setting */
function remove(setting) {
  const place = settings.indexOf(setting);
  setting.stop();
  settings.splice(place, 1);
  arrange();
  if (explained?.setting === setting) showNothing();
  if (selected === setting) select(settings[Math.max(0, place - 1)]);
  save();
  frame.notices.inform(`“${setting.name}” was removed.`, {
    label: "Undo",
    act: () => {
      if (settings.length >= MOST) return;
      settings.splice(place, 0, setting);
      arrange();
      save();
    },
  });
}

/** @param {Setting} setting */
function select(setting) {
  selected = setting;
  for (const each of settings) each.element.toggleAttribute("data-selected", each === setting);
  panel.show(setting.knobs);
  for (const field of fields) field.show(setting.knobs[field.knob.name]);
  showSelected();
  save();
}

/**
 * Show the knobs of a setting beside the page.
 * @param {Setting} setting
 */
function edit(setting) {
  select(setting);
  panel.unfold(Object.keys(setting.knobs));
  frame.settings?.toggle(true);
}

function showSelected() {
  byId("settings-title").textContent = `Settings of “${selected.name}”`;
  byId("one-line-of").textContent = `of “${selected.name}”`;
}

/** @param {Record<string, unknown>} knobs of the selected setting */
function change(knobs) {
  selected.knobs = knobs;
  selected.showKnobs();
  for (const field of fields) field.show(knobs[field.knob.name]);
  save();
  if (explained?.setting === selected) replaySoon();
  else checkSoon();
}

/**
 * @param {string} name
 * @param {string | undefined} value
 */
function changeOne(name, value) {
  const knobs = { ...selected.knobs, [name]: value };
  if (value === undefined) delete knobs[name];
  selected.knobs = knobs;
  selected.showKnobs();
  panel.show(knobs);
  save();
  if (explained?.setting === selected) replaySoon();
  else checkSoon();
}

/** @param {Setting[]} which */
async function runAll(which) {
  const task = taskOf();
  if (which.some((each) => each === explained?.setting)) showNothing();
  document.body.toggleAttribute("data-running", true);
  showRunning(true);
  const errors = await Promise.all(which.map((each) => each.start(task)));
  showRunning(settings.some(({ running }) => running));
  const wrong = which.findIndex((_, number) => errors[number]?.param);
  if (wrong >= 0 && errors[wrong]) {
    select(which[wrong]);
    showError(errors[wrong]);
  }
  frame.announcer.flush("All answers are there.");
}

/** @param {boolean} isRunning */
function showRunning(isRunning) {
  const words = byId("run").querySelector("span");
  if (words) words.textContent = isRunning ? "Stop" : "Run all";
  byId("run").toggleAttribute("data-running", isRunning);
}

/** @returns {Task} */
function taskOf() {
  const number = (/** @type {string} */ id, /** @type {number} */ low, /** @type {number} */ high) =>
    Math.min(high, Math.max(low, Math.round(Number(byId(id).value) || low)));
  return { prompt: byId("prompt").value, mode: byId("mode").value, tokens: number("tokens", 1, 64), seed: number("seed", 0, Number.MAX_SAFE_INTEGER) };
}

/**
 * @param {Setting} setting
 * @param {number} place of the token
 */
async function explain(setting, place) {
  for (const each of settings) if (each !== setting) each.mark(-1);
  if (selected !== setting) select(setting);
  explained = { setting, place };
  byId("token-hint").hidden = false;
  byId("token-hint").textContent = "The server computes the logits of this answer again. The first time this takes a while: the operations of the samplers are compiled…";
  try {
    const position = await setting.position(place);
    if (explained?.setting !== setting || explained.place !== place) return;
    if (Object.keys(setting.changes()).length > 0) return replaySoon();
    showPosition(position ?? null);
  } catch (thrown) {
    if (explained?.setting === setting) showError(asServerError(thrown));
  }
}

/** @param {import("./stages.js").Position | null} position */
function showPosition(position) {
  byId("token-hint").hidden = position !== null;
  byId("token-hint").textContent = "The answer has no such token any more: run it again.";
  whatIf.hidden = true;
  view.show(position);
}

function showNothing() {
  explained = null;
  view.show(null);
  whatIf.hidden = true;
  byId("token-hint").hidden = false;
  byId("token-hint").textContent = "Choose a token of an answer above.";
}

/** Draw the explained token again with the knobs of this moment; one request at a time. */
async function replaySoon() {
  isStale = true;
  if (isReplaying) return;
  isReplaying = true;
  while (isStale && explained) {
    isStale = false;
    const { setting, place } = explained;
    const changes = setting.changes();
    try {
      const before = await setting.position(place);
      const changed = Object.keys(changes);
      const position = changed.length > 0 ? await setting.replayed(place, changes) : before;
      if (explained?.setting !== setting || explained.place !== place) continue;
      showPosition(position);
      clearErrors();
      if (changed.length > 0) tellWhatIf(setting, before, position);
    } catch (thrown) {
      if (!isStale && explained?.setting === setting) showError(asServerError(thrown));
    }
  }
  isReplaying = false;
}

/**
 * @param {Setting} setting
 * @param {import("./stages.js").Position} before
 * @param {import("./stages.js").Position} after
 */
function tellWhatIf(setting, before, after) {
  const changed = Object.entries(setting.changes()).map(([name, value]) => `${name} ${value ?? "off"}`);
  const [old, now] = [before, after].map(({ stages }) => stages.at(-1)?.kept ?? 0);
  const drawn = before.token === after.token ? "the same token is drawn" : `another token is drawn than “${before.text}”`;
  whatIf.textContent = `What if ${changed.join(", ")}: ${now} candidates in place of ${old}, and ${drawn}. The model did not run.`;
  whatIf.hidden = false;
}

/** @type {number | undefined} */
let checking;

/** Ask the server whether an expression is right, a moment after the last key. */
function checkSoon() {
  clearTimeout(checking);
  checking = setTimeout(async () => {
    const { knobs } = selected;
    const texts = Object.fromEntries(fields.map(({ knob: { name } }) => [name, knobs[name]]).filter(([, value]) => value !== undefined));
    if (Object.keys(texts).length === 0) return clearErrors();
    try {
      // An id that no recording has: the knobs are checked first, so only a wrong one is refused as such.
      await frame.server.post("/explain/replay", { recording: "none", what_if: texts });
    } catch (thrown) {
      const error = asServerError(thrown);
      if (error.status === 404) clearErrors();
      else if (error.param) showError(error);
    }
  }, 350);
}

function clearErrors() {
  problem.clear();
  for (const field of fields) field.showError("");
}

/**
 * @param {import("./api.js").ServerError} error
 * @param {(() => void) | null} [again]
 */
function showError(error, again = null) {
  const name = error.param?.replace(/^what_if\./, "");
  const field = fields.find(({ knob }) => knob.name === name);
  if (field) return field.showError(error.message);
  byId("token-hint").hidden = true;
  problem.show(error, { again, settings: frame.remedyOf(error, panel) });
  return undefined;
}

function save() {
  const kept = { task: taskOf(), settings: settings.map(({ name, knobs }) => ({ name, knobs })), selected: settings.indexOf(selected) };
  try {
    localStorage.setItem(KEY, JSON.stringify(kept));
  } catch {
    // Without storage the bench begins anew at the next visit.
  }
}

/** Fill the page with what was saved; data from storage may be of any form. */
function restore() {
  /** @type {any} */
  let kept = null;
  try {
    kept = JSON.parse(localStorage.getItem(KEY) ?? "null");
  } catch {
    // Not readable: begin anew.
  }
  const isSetting = (/** @type {any} */ each) =>
    typeof each?.name === "string" && typeof each.knobs === "object" && each.knobs !== null && !Array.isArray(each.knobs);
  const starts = Array.isArray(kept?.settings) ? kept.settings.filter(isSetting).slice(0, MOST) : [];
  for (const { name, knobs } of starts.length > 0 ? starts : structuredClone(STARTS)) addSetting({ name: name.slice(0, 40), knobs });
  const { prompt, mode, tokens, seed } = kept?.task ?? {};
  if (typeof prompt === "string") byId("prompt").value = prompt;
  if (mode === "chat" || mode === "text") byId("mode").value = mode;
  if (Number.isFinite(tokens)) byId("tokens").value = String(tokens);
  if (Number.isFinite(seed)) byId("seed").value = String(seed);
  select(settings[kept?.selected] ?? settings[0]);
}

byId("task").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  if (settings.some(({ running }) => running)) for (const each of settings) each.stop();
  else runAll(settings);
});
byId("task").addEventListener("input", save);
byId("knobs").addEventListener("submit", (/** @type {Event} */ event) => event.preventDefault());
byId("add").addEventListener("click", () => select(addSetting({ name: `Setting ${settings.length + 1}`, knobs: {} })));
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    runAll(settings);
  } else if (event.key === "Escape") {
    for (const each of settings) each.stop();
  }
});

restore();
await frame.connect(
  ({ plugins }) => {
    panel.build(plugins);
    for (const { name, cost } of plugins.samplers) if (cost) costs.set(name, cost);
    const knobs = plugins.samplers.flatMap((sampler) => sampler.knobs).filter(({ words }) => words && Object.keys(words).length > 0);
    fields = knobs.map((knob) => new ExpressionField(knob, changeOne));
    byId("expressions").replaceChildren(h("div", { class: "expressions" }, ...fields.map(({ element }) => element)));
    byId("one-line").hidden = fields.length === 0;
    select(selected);
    clearErrors();
  },
  (error, again) => showError(error, again),
);
frame.ready();
