/**
 * Entry point of the dashboard: reads the stream of figures and shows tiles, plots, slots, clients.
 * The same key as for /metrics opens it. Knows no prompts and no texts: the server sends none.
 */

import { asServerError, ServerError } from "./api.js";
import { byId, h } from "./dom.js";
import { readEvents } from "./events.js";
import { Frame } from "./frame.js";
import { History, SHARES } from "./history.js";
import { LinePlot, short } from "./plots.js";
import { Problem } from "./problem.js";

/** @typedef {import("./history.js").Figures} Figures */

const MILLISECONDS_BETWEEN_TRIES = 3000;
const frame = new Frame({
  shortcuts: [
    ["Pause, or go on", "P"],
    ["Show 5 minutes, 15 minutes, 1 hour", "1 2 3"],
  ],
});
const problem = new Problem();
const history = new History();
const range = byId("range");
const pause = byId("pause");
let isPaused = false;
/** @type {AbortController | null} */
let open = null;

const clock = (/** @type {number} */ time) =>
  new Date(time * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const waits = (/** @type {string} */ name) =>
  SHARES.map((share) => ({ name: `p${share * 100}`, key: `${name}${share}` }));
const plots = [
  { plot: line("Tokens per second", short), lines: [{ name: "written", key: "written" }, { name: "read", key: "read" }] },
  { plot: line("Time to the first token", duration), lines: waits("first") },
  { plot: line("Time between tokens", duration), lines: waits("between") },
  { plot: line("Slots in use, and requests that wait", short), lines: [{ name: "slots", key: "used" }, { name: "waiting", key: "queue" }] },
  { plot: line("Weights read by decode steps, per second", size), lines: [{ name: "achieved", key: "bandwidth" }] },
  { plot: line("Share of the time in which the engine computes", percent, 1), lines: [{ name: "busy", key: "busy" }] },
];

/**
 * @param {string} label
 * @param {(y: number) => string} formatY
 * @param {number} [top]
 */
function line(label, formatY, top) {
  return new LinePlot({ label, formatX: clock, formatY, height: 170, top });
}

byId("plots").replaceChildren(...plots.map(({ plot }) => plot.element));
range.addEventListener("change", draw);
pause.addEventListener("click", togglePause);
document.addEventListener("keydown", (event) => {
  const { target, key, ctrlKey, altKey, metaKey } = event;
  if (ctrlKey || altKey || metaKey) return;
  if (target instanceof HTMLInputElement || target instanceof HTMLSelectElement) return;
  if (key.toLowerCase() === "p") togglePause();
  const place = ["1", "2", "3"].indexOf(key);
  if (place < 0) return;
  range.selectedIndex = place;
  draw();
});

function togglePause() {
  isPaused = !isPaused;
  pause.setAttribute("aria-pressed", String(isPaused));
  pause.textContent = isPaused ? "Go on" : "Pause";
  if (!isPaused && history.last) show(history.last);
}

draw();
frame.connect(listen, (error, again) => fail(error, again), { needsPlugins: false });
frame.ready();

/** Read the stream; when it ends, try again. */
async function listen() {
  open?.abort();
  const mine = (open = new AbortController());
  while (!mine.signal.aborted) {
    try {
      const response = await frame.server.fetch("/metrics/live", { signal: mine.signal });
      if (response.body === null) throw new ServerError("the server sent an empty answer");
      for await (const data of readEvents(response.body)) {
        const figures = /** @type {Figures} */ (JSON.parse(data));
        history.add(figures);
        if (!isPaused) show(figures);
      }
      say("The server has closed the stream; trying again…");
    } catch (thrown) {
      if (mine.signal.aborted) return;
      const error = asServerError(thrown);
      if (error.status >= 400 && error.status < 500) return fail(error, listen);
      say("The server does not answer; trying again…");
    }
    await new Promise((resolve) => setTimeout(resolve, MILLISECONDS_BETWEEN_TRIES));
  }
}

/** @param {string} words */
function say(words) {
  const state = byId("state");
  if (state.textContent !== words) state.textContent = words;
}

/**
 * @param {ServerError} error
 * @param {() => void} again
 */
function fail(error, again) {
  problem.show(error, { again, settings: frame.remedyOf(error) });
  say("");
}

/** @param {Figures} now */
function show(now) {
  problem.clear();
  say(stateOf(now));
  draw();
  showTiles(now);
  showSlots(now);
  showClients(now);
  showFacts(now);
}

/** @param {Figures} now */
function stateOf({ state, pending }) {
  if (state !== "ready") return `The server is ${state}.`;
  return pending.length > 0 ? `Ready; still compiling ${pending.join(", ")}.` : "Ready.";
}

function draw() {
  const seconds = Number(range.value);
  for (const { plot, lines } of plots) {
    plot.show(lines.map(({ name, key }) => ({ name, points: history.points(key, seconds) })));
  }
}

/** @param {Figures} now */
function showTiles(now) {
  const { figures, tokens } = now;
  const sample = history.samples.at(-1) ?? {};
  const prompt = tokens.prompt ?? 0;
  const share = now.memory_bytes_per_second ? figures.weight_bytes_per_second / now.memory_bytes_per_second : null;
  const ended = Object.values(now.requests).reduce((sum, count) => sum + count, 0);
  const recent = (/** @type {string} */ name) =>
    history.samples.findLast((each) => each[name] !== null && each[name] !== undefined)?.[name] ?? null;
  tile("Tokens per second", short(sample.written ?? 0), `${short(tokens.generated ?? 0)} written since the start`);
  tile("First token (p50)", optional(recent("first0.5"), duration), `p99 ${optional(recent("first0.99"), duration)}`);
  tile("Between tokens (p50)", optional(recent("between0.5"), duration), `p99 ${optional(recent("between0.99"), duration)}`);
  tile("Slots", `${figures.slots_used ?? 0} of ${figures.slots ?? 0}`, `${figures.queue_requests ?? 0} requests wait`);
  tile("Requests", short(ended), `${figures.open_requests ?? 0} open`);
  tile("Prompt tokens reused", prompt > 0 ? percent((tokens.reused ?? 0) / prompt) : "–", `${short(now.hits)} requests; ${short(figures.prompt_cache_hits ?? 0)} from the prompt cache`);
  tile("Memory bandwidth", share === null ? size(figures.weight_bytes_per_second ?? 0) : percent(share), share === null ? "per second, of weights" : `${size(figures.weight_bytes_per_second)} of ${size(now.memory_bytes_per_second ?? 0)} per second`);
  tile("Memory", optional(now.resident_bytes, size), `weights ${size(now.weight_bytes)}`);
}

/** @type {Map<string, HTMLElement[]>} */
const tiles = new Map();

/**
 * @param {string} name
 * @param {string} value
 * @param {string} more
 */
function tile(name, value, more) {
  let parts = tiles.get(name);
  if (!parts) {
    parts = [h("dd"), h("dd")];
    tiles.set(name, parts);
    byId("tiles").append(h("div", { class: "tile" }, h("dt", {}, name), ...parts));
  }
  for (const [place, words] of [value, more].entries()) {
    if (parts[place].textContent !== words) parts[place].textContent = words;
  }
}

/** @param {Figures} now */
function showSlots({ slots, context }) {
  byId("slots").replaceChildren(
    ...slots.map(({ index, is_held, cached, prompt, decoded, most }) => {
      const doing = !is_held
        ? "free"
        : decoded === 0
          ? `reading ${short(prompt)} tokens`
          : `writing, token ${short(decoded)} of ${short(most)}`;
      const full = context > 0 ? cached / context : 0;
      return h(
        "li",
        { class: "slot", "data-held": is_held },
        h("div", { class: "slot-line" }, h("span", {}, `Slot ${index + 1}: ${doing}`), h("span", {}, `${percent(full)} full`)),
        meter(full, ""),
        is_held && meter(most > 0 ? decoded / most : 0, "answer"),
      );
    }),
  );
}

/**
 * @param {number} share
 * @param {string} kind
 */
function meter(share, kind) {
  const element = h("div", { class: `meter ${kind}`, "aria-hidden": "true" });
  element.style.setProperty("--share", String(Math.max(0, Math.min(1, share))));
  return element;
}

/** @param {Figures} now */
function showClients({ clients }) {
  byId("clients").replaceChildren(
    ...clients.map(({ name, is_you, waiting, running, slots, tokens }) =>
      h("tr", {}, h("td", {}, is_you ? `${name} (you)` : name), ...[waiting, running, slots, tokens].map((each) => h("td", {}, short(each)))),
    ),
  );
  byId("clients-none").hidden = clients.length > 0;
}

/** @param {Figures} now */
function showFacts({ figures, adapters, pending, requests }) {
  const rows = [
    ["Prompt cache", `${size(figures.prompt_cache_bytes ?? 0)}, ${short(figures.prompt_cache_tokens ?? 0)} tokens came back, ${short(figures.prompt_cache_evictions ?? 0)} blocks dropped`],
    ["Programs", `${figures.programs_compiled ?? 0} compiled in ${duration(figures.program_compile_seconds ?? 0)}, ${figures.programs_loaded ?? 0} loaded, ${pending.length} to come`],
    ["One decode step", duration(figures.step_seconds ?? 0)],
    ["Faults", short(figures.faults ?? 0)],
    ["Requests by end", Object.entries(requests).map(([reason, count]) => `${reason} ${short(count)}`).join(", ") || "none yet"],
    ["Adapters", Object.entries(adapters).map(([name, count]) => `${name} ${short(count)}`).join(", ") || `${figures.adapters ?? 0} loaded`],
  ];
  byId("facts").replaceChildren(...rows.map(([name, words]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, words))));
}

/**
 * @param {number | null | undefined} value
 * @param {(value: number) => string} format
 */
function optional(value, format) {
  return value === null || value === undefined ? "–" : format(value);
}

/** @param {number} seconds */
function duration(seconds) {
  if (seconds >= 1) return `${short(seconds)} s`;
  return seconds === 0 ? "0" : `${short(seconds * 1000)} ms`;
}

/** @param {number} bytes */
function size(bytes) {
  return `${short(bytes).replace(/(\d)$|([kMG])$/, "$1 $2")}B`;
}

/** @param {number} share */
function percent(share) {
  return `${Math.round(share * 100)} %`;
}
