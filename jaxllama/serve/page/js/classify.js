/**
 * Entry point of the page that classifies: one text or a file, several questions, the probability of
 * every choice. Keeps the form in the browser; the server keeps nothing.
 */

import { asServerError } from "./api.js";
import { confusionTable, tally } from "./confusion.js";
import { byId, download, h, onSubmit } from "./dom.js";
import { FileDrop } from "./drop.js";
import { Frame } from "./frame.js";
import { barList } from "./plots.js";
import { keepChoices, readChoices } from "./preferences.js";
import { Problem } from "./problem.js";
import { best, columnsOf, goldOf, problemOfRow, QuestionCard } from "./questions.js";
import { kindOf, namesOf, readRows, RowError, textOf, TEXT, toCsv } from "./rows.js";
import { ResultTable } from "./table.js";

/** @typedef {import("./rows.js").FileRow} FileRow */
/** @typedef {import("./questions.js").Question} Question */
/** @typedef {{row: FileRow, text: string, chances: import("./questions.js").Chances[]}} Done */

const TEXTS_AT_ONCE = 8; // of one request
const FRAME = ["\n", "\nAnswer:"]; // around a question; its choices begin with a space

const frame = new Frame({
  shortcuts: [
    ["Classify", "Ctrl Enter"],
    ["In a table: go to another row", "↑ ↓"],
    ["In a table: open the row", "Enter"],
    ["Close the opened row", "Esc"],
  ],
});
const { server } = frame;
const problem = new Problem();
/** @type {FileRow[]} */
let rows = [];
/** @type {QuestionCard[]} */
let cards = [];
/** @type {AbortController | null} */
let running = null;
/** @type {Question[]} of the results */
let asked = [];
/** @type {Done[]} */
let done = [];
let total = 0;

/** @type {ResultTable<Done>} */
const table = new ResultTable({
  label: "Texts",
  empty: "No results yet.",
  columns: [],
  onOpen: (each) => showDetail(each),
});
byId("results").append(table.element);

const drop = new FileDrop({
  label: "Choose a file",
  accept: ".csv,.jsonl,.json,.txt",
  area: byId("main"),
  onText: takeFile,
  onProblem: (words) => {
    byId("rows-wrong").textContent = words;
  },
});
byId("drop").append(drop.element);

/**
 * @param {string} name
 * @param {string} text
 */
function takeFile(name, text) {
  byId("rows-wrong").textContent = "";
  try {
    const found = readRows(kindOf(name, text), text);
    if (found.length === 0) throw new RowError("has no texts");
    rows = found;
    byId("rows-help").textContent = `“${name}”: ${counted(rows.length)}.`;
  } catch (error) {
    if (!(error instanceof RowError)) throw error;
    byId("rows-wrong").textContent = `“${name}” ${error.message}.`;
    return;
  }
  showColumns();
  update();
}

function showColumns() {
  const names = namesOf(rows);
  const column = byId("column");
  column.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  column.value = names.includes(TEXT) ? TEXT : (names[0] ?? "");
  byId("rows-tools").hidden = rows.length === 0;
  byId("text").hidden = rows.length > 0;
  for (const card of cards) card.offer(names);
}

/** @param {{text?: string, choices?: string}} [like] */
function addCard(like) {
  const card = new QuestionCard({ onChange: update, onRemove: removeCard }, like);
  card.offer(namesOf(rows));
  cards.push(card);
  byId("questions").append(card.element);
  update();
  return card;
}

/** @param {QuestionCard} card */
function removeCard(card) {
  cards = cards.filter((each) => each !== card);
  card.element.remove();
  cards[0].text.focus();
  update();
}

/** @returns {{questions: Question[], texts: FileRow[], wrong: string}} what the form says */
function read() {
  const questions = cards.map((card, number) => card.read(number, cards.length));
  const isFile = rows.length > 0;
  const text = byId("text").value;
  const texts = isFile ? rows : [{ line: 1, values: new Map([[TEXT, text]]) }];
  let wrong = "";
  if (!isFile && text === "") wrong = "empty";
  else if (questions.some(({ choices }) => choices.length === 0)) wrong = "empty";
  else if (isFile) {
    const column = byId("column").value;
    for (const row of rows) {
      wrong = problemOfRow(row, column, questions);
      if (wrong) break;
    }
  }
  return { questions, texts, wrong };
}

/** Show what the form says now. */
function update() {
  const { texts, wrong } = read();
  byId("start").disabled = wrong !== "" || running !== null;
  byId("start-problem").textContent = wrong === "" || wrong === "empty" ? "" : `${wrong}.`;
  byId("start-label").textContent = rows.length > 0 ? `Classify ${counted(texts.length)}` : "Classify";
}

/** Keep the form for the next visit. */
function keep() {
  const questions = cards.map(({ text, choices }) => ({ text: text.value, choices: choices.value }));
  const text = byId("text").value.slice(0, 20_000);
  keepChoices({ classify: { text, questions, normalize: byId("normalize").checked, raw: byId("raw").checked } });
}

function start() {
  const { questions, texts, wrong } = read();
  if (running || wrong) {
    if (wrong) (byId("text").value === "" && rows.length === 0 ? byId("text") : cards[0].choices).focus();
    return;
  }
  keep();
  asked = questions;
  done = [];
  total = texts.length;
  byId("nothing").hidden = true;
  byId("detail").hidden = true;
  byId("one").hidden = rows.length > 0;
  byId("many").hidden = rows.length === 0;
  byId("threshold").value = "0";
  byId("threshold-value").textContent = "0.00";
  byId("one").replaceChildren(h("p", { class: "hint" }, "Asking the model…"));
  table.filter(null);
  table.setColumns(columns());
  table.set([]);
  // On a narrow screen the results are below the form.
  byId(rows.length > 0 ? "many" : "one").scrollIntoView({ block: "nearest" });
  go(texts, byId("column").value || TEXT);
}

/**
 * Classify the texts that are not done.
 * @param {FileRow[]} texts
 * @param {string} column
 */
async function go(texts, column) {
  const isMany = rows.length > 0;
  const controller = new AbortController();
  running = controller;
  problem.clear();
  byId("stop").hidden = false;
  update();
  showFigures();
  try {
    while (done.length < texts.length) {
      const some = texts.slice(done.length, done.length + TEXTS_AT_ONCE);
      const found = await ask(some, column, controller.signal);
      done.push(...found);
      if (isMany) {
        table.append(found);
        showFigures();
      } else {
        byId("one").replaceChildren(...answersOf(found[0]));
      }
    }
  } catch (thrown) {
    if (!isMany) byId("one").replaceChildren();
    if (!controller.signal.aborted) {
      const error = asServerError(thrown);
      problem.show(error, { again: () => go(texts, column), settings: frame.remedyOf(error) });
    }
  }
  running = null;
  byId("stop").hidden = true;
  update();
  showFigures();
}

/**
 * Ask all questions about some texts; questions with the same choices share a request.
 * @param {FileRow[]} some
 * @param {string} column
 * @param {AbortSignal} signal
 * @returns {Promise<Done[]>}
 */
async function ask(some, column, signal) {
  const texts = some.map((row) => textOf(row.values.get(column) ?? ""));
  const isRaw = byId("raw").checked;
  /** @type {Done[]} */
  const found = some.map((row, place) => ({ row, text: texts[place], chances: [] }));
  const groups = Map.groupBy(asked.keys(), (number) => JSON.stringify(asked[number].choices));
  for (const numbers of groups.values()) {
    const { choices } = asked[numbers[0]];
    const framed = (/** @type {string} */ text) => (isRaw ? text : FRAME.join(text));
    const response = await server.fetch("/classify", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      signal,
      body: JSON.stringify({
        texts,
        questions: numbers.map((number) => framed(asked[number].text)),
        labels: isRaw ? choices : choices.map((each) => ` ${each}`),
        length_normalize: byId("normalize").checked,
      }),
    });
    for (const { text, question, labels } of (await response.json()).results) {
      found[text].chances[numbers[question]] = new Map(
        labels.map((/** @type {any} */ { probability }, /** @type {number} */ place) => [choices[place], probability]),
      );
    }
  }
  return found;
}

/** @param {Done} given */
function answersOf({ chances }) {
  return asked.map((question, number) => {
    const { label } = best(chances[number]);
    const bars = [...chances[number]].map(([name, share]) => ({
      name,
      share,
      text: percent(share),
      isChosen: name === label,
    }));
    bars.sort((one, other) => other.share - one.share);
    return h("section", { class: "card" }, h("h3", {}, question.text || "Without a question"), barList(bars));
  });
}

/** @returns {import("./table.js").Column<Done>[]} */
function columns() {
  const limit = () => Number(byId("threshold").value);
  return [
    { name: "line", title: "Line", width: "4.5rem", isNumber: true, text: ({ row }) => String(row.line), value: ({ row }) => row.line },
    { name: "text", title: "Text", width: "minmax(11rem, 3fr)", text: ({ text }) => text },
    ...asked.flatMap((question, number) => [
      {
        name: `label${question.suffix}`,
        title: asked.length > 1 ? `Choice ${number + 1}` : "Choice",
        width: "minmax(6rem, 1fr)",
        text: (/** @type {Done} */ { chances }) => {
          const { label, probability } = best(chances[number]);
          return probability < limit() ? `unsure (${label})` : label;
        },
      },
      {
        name: `probability${question.suffix}`,
        title: "Probability",
        width: "6.5rem",
        isNumber: true,
        text: (/** @type {Done} */ { chances }) => percent(best(chances[number]).probability),
        value: (/** @type {Done} */ { chances }) => best(chances[number]).probability,
        share: (/** @type {Done} */ { chances }) => best(chances[number]).probability,
      },
      ...(question.gold
        ? [{
            name: `gold${question.suffix}`,
            title: "Right",
            width: "minmax(6rem, 1fr)",
            text: (/** @type {Done} */ { row, chances }) => {
              const right = goldOf(row, question);
              return right === "" ? "" : `${right === best(chances[number]).label ? "✓" : "✗"} ${right}`;
            },
          }]
        : []),
    ]),
  ];
}

/** Show progress, and for each question how sure and how right the choices are. */
function showFigures() {
  if (byId("many").hidden) return;
  byId("progress").max = Math.max(total, 1);
  byId("progress").value = done.length;
  const state = running ? "Running" : done.length < total ? "Stopped" : "Done";
  byId("figures").replaceChildren(h("b", {}, state), ` · ${done.length.toLocaleString("en")} of ${counted(total)}`);
  const threshold = Number(byId("threshold").value);
  byId("scores").replaceChildren(
    ...asked.map((question, number) => {
      const judged = done.map(({ row, chances }) => ({ gold: question.gold && goldOf(row, question), ...best(chances[number]) }));
      const { counts, sure, known, right } = tally(judged, threshold);
      const parts = [
        ...(threshold > 0 ? [`${sure} of ${judged.length} are at least ${percent(threshold)} likely`] : []),
        ...(known > 0 ? [`${percent(right / known)} right (${right} of ${known})`] : []),
      ];
      if (parts.length === 0) return "";
      return h(
        "section",
        { class: "card" },
        h("h3", {}, question.text || "Without a question"),
        h("p", { class: "figures" }, parts.join(" · ")),
        known > 0 && confusionTable(question.choices, counts),
      );
    }),
  );
}

/** @param {Done} each */
function showDetail(each) {
  byId("detail").hidden = false;
  byId("detail-title").textContent = `Line ${each.row.line}`;
  byId("detail-body").replaceChildren(h("div", { class: "preview" }, each.text), ...answersOf(each));
  byId("detail-title").focus();
}

/** @param {"csv" | "jsonl"} kind */
function save(kind) {
  const known = namesOf(rows);
  const own = asked.flatMap((question) => columnsOf(question, new Map()).map(([name]) => name));
  const added = (/** @type {Done} */ { chances }) => asked.flatMap((question, number) => columnsOf(question, chances[number]));
  if (kind === "csv") {
    const cells = table.view.map((each) => [
      ...known.map((name) => textOf(each.row.values.get(name) ?? "")),
      ...added(each).map(([, value]) => value),
    ]);
    download("classified.csv", toCsv([...known, ...own], cells), "text/csv");
  } else {
    // Values stay as they are written: a row's own JSON, and the new values after it.
    const lines = table.view.map((each) => {
      const values = [...each.row.values].map(([name, value]) => [name, rawJson(value)]);
      const all = [...values, ...added(each).map(([name, value]) => [name, JSON.stringify(value)])];
      return `{${all.map(([name, value]) => `${JSON.stringify(name)}: ${value}`).join(", ")}}\n`;
    });
    download("classified.jsonl", lines.join(""), "application/jsonl");
  }
}

/** @param {string | import("./json.js").JsonNode} value */
function rawJson(value) {
  if (typeof value === "string" || value.kind === "string") return JSON.stringify(textOf(value));
  return textOf(value);
}

function closeDetail() {
  byId("detail").hidden = true;
  table.element.focus();
}

/** @param {number} share */
function percent(share) {
  return `${(share * 100).toFixed(1)} %`;
}

/** @param {number} number */
function counted(number) {
  return `${number.toLocaleString("en")} ${number === 1 ? "text" : "texts"}`;
}

onSubmit(byId("ask"), start);
byId("stop").addEventListener("click", () => running?.abort());
byId("add").addEventListener("click", () => addCard().text.focus());
byId("text").addEventListener("input", update);
byId("column").addEventListener("change", update);
byId("drop-rows").addEventListener("click", () => {
  rows = [];
  byId("rows-help").textContent = "One text here, or a file with many.";
  showColumns();
  update();
  byId("text").focus();
});
byId("threshold").addEventListener("input", () => {
  byId("threshold-value").textContent = Number(byId("threshold").value).toFixed(2);
  table.refresh();
  showFigures();
});
byId("save-csv").addEventListener("click", () => save("csv"));
byId("save-jsonl").addEventListener("click", () => save("jsonl"));
byId("detail-close").addEventListener("click", closeDetail);
byId("many").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if (event.key !== "Escape" || byId("detail").hidden) return;
  event.preventDefault();
  closeDetail();
});

const kept = /** @type {any} */ (readChoices().classify ?? {});
if (typeof kept.text === "string") byId("text").value = kept.text;
byId("normalize").checked = kept.normalize === true;
byId("raw").checked = kept.raw === true;
const like = Array.isArray(kept.questions) && kept.questions.length > 0 ? kept.questions : [{}];
for (const { text, choices } of like) addCard({ text: String(text ?? ""), choices: String(choices ?? "") });

await frame.connect(
  () => problem.clear(),
  (error, again) => problem.show(error, { again, settings: frame.remedyOf(error) }),
  { needsPlugins: false },
);

frame.ready();
