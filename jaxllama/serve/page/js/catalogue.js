/**
 * The server's samplers, presets and core fields, grouped and ordered for display. Used by
 * knobs.js; knows neither controls nor the page.
 */

import { labelOf } from "./controls.js";

/** @typedef {import("./api.js").Knob} Knob */
/** @typedef {import("./api.js").Plugins} Plugins */
/** @typedef {import("./api.js").Preset} Preset */
/** @typedef {import("./api.js").Sampler} Sampler */
/** @typedef {Record<string, unknown>} Knobs */

/** Kinds of samplers, in the order in which they run. */
const STAGES = [
  { kind: "adjuster", title: "Before temperature" },
  { kind: "filter", title: "After temperature" },
  { kind: "shaper", title: "With temperature, or last" },
];
/** Core fields that the page sets itself. */
const OWN = new Set(["logprobs", "preset"]);
/** Core fields that constrain the form of an answer. */
const FORM = new Set(["json_schema", "json_object", "regex", "choices", "grammar"]);

/** Core fields that are rarely used. */
const RARE = new Set(["guidance_scale", "negative_prompt"]);

/**
 * Group the core fields by how often they are used.
 * @param {any[]} rows of the server's limits table
 */
export function coreGroups(rows) {
  const knobs = rows.filter(({ name }) => !OWN.has(name)).map(coreKnob);
  const isForm = (/** @type {Knob} */ { name }) => FORM.has(name);
  const isRare = (/** @type {Knob} */ { name, type, width }) =>
    RARE.has(name) || type === "bool" || (type === "int" && width !== null);
  return {
    usual: knobs.filter((knob) => !isForm(knob) && !isRare(knob)),
    rare: knobs.filter((knob) => !isForm(knob) && isRare(knob)),
    form: knobs.filter(isForm),
  };
}

/**
 * Group the samplers that have knobs into stages, in the order in which they run; a kind that this
 * page does not know becomes a stage of its own.
 * @param {Sampler[]} samplers
 */
export function stagesOf(samplers) {
  const known = new Set(STAGES.map(({ kind }) => kind));
  const others = new Set(samplers.map(({ kind }) => kind).filter((kind) => !known.has(kind)));
  const stages = [...STAGES, ...[...others].map((kind) => ({ kind, title: labelOf(kind) }))];
  return stages
    .map(({ kind, title }) => ({
      title,
      samplers: samplers
        .filter((sampler) => sampler.kind === kind && sampler.knobs.length > 0)
        .sort((one, other) => one.order - other.order || (one.name < other.name ? -1 : 1)),
    }))
    .filter((stage) => stage.samplers.length > 0);
}

/**
 * Return the preset whose values equal a conversation's knobs, if there is one.
 * @param {Plugins} plugins
 * @param {Knobs} knobs
 * @returns {Preset | undefined}
 */
export function presetOf(plugins, knobs) {
  const set = presetKnobs(plugins, knobs);
  return plugins.presets.find((preset) => sameKnobs(preset.knobs, set));
}

/**
 * Return the knobs that presets set: those of samplers, and core fields that any preset sets.
 * @param {Plugins} plugins
 * @param {Knobs} knobs
 * @returns {Knobs}
 */
export function presetKnobs({ core, presets }, knobs) {
  const others = new Set(core.map(({ name }) => name));
  for (const preset of presets) for (const name of Object.keys(preset.knobs)) others.delete(name);
  return Object.fromEntries(Object.entries(knobs).filter(([name]) => !others.has(name)));
}

/**
 * Convert a row of the server's limits table to a knob.
 * @param {any} row
 * @returns {Knob}
 */
function coreKnob(row) {
  const { name, type, low = null, high = null, help = "", many = false, most = null } = row;
  const { longest, recommended } = row;
  const off = many ? null : (row.default ?? null);
  const width = many ? most : null;
  return { name, type, off, recommended, low, high, width, by_token: false, longest, help };
}

/**
 * @param {Knobs} one
 * @param {Knobs} other
 */
function sameKnobs(one, other) {
  const names = new Set([...Object.keys(one), ...Object.keys(other)]);
  return [...names].every((name) => JSON.stringify(one[name]) === JSON.stringify(other[name]));
}
