/**
 * Entry point of the batch page: makes the form, the view of a batch and the list of batches, and
 * connects them. The batches live on the server, so a reload loses nothing.
 */

import { asServerError } from "./api.js";
import { Batches, isOver } from "./batches.js";
import { Compose } from "./compose.js";
import { arrange, byId, h } from "./dom.js";
import { offerFormats } from "./choices.js";
import { Frame } from "./frame.js";
import { KnobPanel } from "./knobs.js";
import { endpointOf, linesOf, titleOf } from "./plan.js";
import { keepChoices, readChoices } from "./preferences.js";
import { Problem } from "./problem.js";
import { Run } from "./run.js";

/** @typedef {import("./batches.js").Batch} Batch */

const frame = new Frame({
  shortcuts: [
    ["Start the batch", "Ctrl Enter"],
    ["In a table: go to another row", "↑ ↓"],
    ["In a table: open the row", "Enter"],
  ],
});
const { server, notices } = frame;
const batches = new Batches(server);
const problem = new Problem();
/** @type {Map<string, Batch>} */
const known = new Map();
/** @type {Map<string, HTMLElement>} */
const rows = new Map();
let model = "";
let open = "";
const kept = /** @type {any} */ (readChoices().batchKnobs ?? {});
const knobs = new KnobPanel({ onChange: (changed) => keepChoices({ batchKnobs: changed }) });
byId("knob-panel").append(knobs.element);
knobs.show(typeof kept === "object" && kept !== null ? kept : {});

const run = new Run({
  batches,
  notices,
  onChange: () => {
    const batch = run.follower?.batch;
    if (!batch) return;
    known.set(batch.id, batch);
    showList();
  },
  onFault: (error) => fail(error, () => look()),
});

const compose = new Compose({
  onMode: (mode) => {
    byId("format-row").hidden = mode === "completion";
  },
  start: async (given) => {
    const wrong = knobs.wrong;
    if (wrong) {
      frame.revealKnob(knobs, wrong.knob.name);
      return;
    }
    const plan = { ...given, model, knobs: knobs.request(), format: byId("format").value };
    const button = byId("start");
    button.disabled = true;
    problem.clear();
    try {
      const lines = linesOf(plan);
      const batch = await batches.start({ endpoint: endpointOf(plan), lines, title: titleOf(plan) });
      known.set(batch.id, batch);
      show(batch.id, lines);
    } catch (error) {
      fail(error, () => byId("compose").requestSubmit());
    }
    compose.update();
  },
});

/**
 * Show a batch, or the form of a new one.
 * @param {string} id "" for a new one
 * @param {string[]} [lines] of its input, if they are known
 */
function show(id, lines) {
  open = id;
  const batch = known.get(id);
  keepChoices({ openBatch: id });
  byId("compose").hidden = Boolean(batch);
  byId("run").hidden = !batch;
  byId("title").textContent = batch ? nameOf(batch) : "New batch";
  document.title = `${batch ? nameOf(batch) : "Batch"} – jaxllama`;
  frame.sidebar.makeWay();
  problem.clear();
  showList();
  if (batch) run.show(batch, lines);
  else run.leave();
}

/** @param {Batch} batch */
function nameOf({ metadata }) {
  return metadata?.title ?? "Batch";
}

/** Show the list of batches. */
function showList() {
  const hidden = new Set(/** @type {string[]} */ (readChoices().deletedBatches ?? []));
  const shown = [...known.values()]
    .filter(({ id }) => !hidden.has(id))
    .sort((one, other) => other.created_at - one.created_at);
  arrange(byId("batches"), shown.map(rowOf));
  byId("no-batches").hidden = shown.length > 0;
}

/** @param {Batch} batch */
function rowOf(batch) {
  const { id, request_counts: counts, status } = batch;
  const name = h("span");
  const state = h("span", { class: "hint" });
  const row =
    rows.get(id) ?? h("li", {}, h("button", { type: "button", onclick: () => show(id) }, name, state));
  rows.set(id, row);
  const button = /** @type {HTMLElement} */ (row.firstChild);
  const done = counts.completed + counts.failed;
  button.children[0].textContent = nameOf(batch);
  button.children[1].textContent =
    status === "completed" ? `${counts.total} answers` : `${status.replace("_", " ")} · ${done} of ${counts.total}`;
  if (id === open) button.setAttribute("aria-current", "true");
  else button.removeAttribute("aria-current");
  return row;
}

/**
 * @param {unknown} thrown
 * @param {() => void} again
 */
function fail(thrown, again) {
  const error = asServerError(thrown);
  problem.show(error, { again, settings: frame.remedyOf(error, knobs) });
}

/** Read the list of batches, and open the one that was open last. */
async function look() {
  problem.clear();
  try {
    for (const batch of await batches.list()) known.set(batch.id, batch);
  } catch (error) {
    fail(error, look);
    return;
  }
  const last = open || String(readChoices().openBatch ?? "");
  if (known.has(last)) show(last);
  else showList();
}

byId("new").addEventListener("click", () => {
  show("");
  byId("template").focus();
});
byId("again").addEventListener("click", () => {
  show("");
  byId("template").focus();
});
byId("cancel").addEventListener("click", async () => {
  try {
    const { follower } = run;
    if (follower) follower.batch = await batches.cancel(open);
    run.showProgress();
  } catch (error) {
    fail(error, () => byId("cancel").click());
  }
});
byId("delete").addEventListener("click", async () => {
  const batch = known.get(open);
  if (!batch || !isOver(batch)) return;
  const { title } = { title: nameOf(batch) };
  run.leave();
  try {
    await batches.delete(batch);
  } catch (error) {
    fail(error, () => byId("delete").click());
    return;
  }
  const deleted = /** @type {string[]} */ (readChoices().deletedBatches ?? []);
  keepChoices({ deletedBatches: [...deleted, batch.id].slice(-300) });
  known.delete(batch.id);
  show("");
  notices.inform(`Deleted “${title}” with its files.`);
});

await frame.connect(
  (connection) => {
    model = connection.model;
    problem.clear();
    knobs.build(connection.plugins);
    offerFormats(byId("format"), connection.plugins);
    look();
  },
  (error, again) => fail(error, again),
);
frame.ready();
