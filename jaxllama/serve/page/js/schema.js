/**
 * JSON schemas as the page of fields uses them: made from a sample, cut after a field, and with fields
 * pinned to their values, so that the model writes only what comes after. Knows no page.
 */

/** @typedef {Record<string, any>} Schema */
/** @typedef {(string | number)[]} Path names and places from the root to a value */

/** A schema is built in a way that the page cannot pin a field of. */
export class SchemaError extends Error {}

/**
 * Return a schema as it is, or the schema of a sample.
 * @param {any} given
 * @returns {{schema: Schema, isSample: boolean}}
 */
export function schemaOf(given) {
  if (isRecord(given) && looksLikeSchema(given)) return { schema: given, isSample: false };
  return { schema: ofSample(given), isSample: true };
}

/** @param {Schema} given */
function looksLikeSchema(given) {
  const { type, properties } = given;
  const isKind = ["object", "array", "string", "number", "integer", "boolean", "null"].includes(type);
  const names = ["$schema", "$ref", "$defs"].some((word) => word in given);
  const lists = ["anyOf", "oneOf", "allOf", "enum"].some((word) => Array.isArray(given[word]));
  return isKind || isRecord(properties) || names || lists;
}

/**
 * @param {any} sample
 * @returns {Schema}
 */
function ofSample(sample) {
  if (sample === null) return { type: "null" };
  if (Array.isArray(sample)) return { type: "array", items: sample.length > 0 ? ofSample(sample[0]) : { type: "string" } };
  if (isRecord(sample)) {
    const names = Object.keys(sample);
    const properties = Object.fromEntries(names.map((name) => [name, ofSample(sample[name])]));
    return { type: "object", properties, required: names, additionalProperties: false };
  }
  if (typeof sample === "number") return { type: Number.isInteger(sample) ? "integer" : "number" };
  return { type: typeof sample };
}

/**
 * Follow references inside of a document; returns the schema that a schema stands for.
 * @param {Schema} root
 * @param {Schema} schema
 * @returns {Schema}
 */
export function resolve(root, schema) {
  let found = schema;
  for (let steps = 0; steps < 20 && typeof found?.$ref === "string"; steps += 1) {
    if (!found.$ref.startsWith("#")) throw new SchemaError(`“${found.$ref}” is in another document`);
    /** @type {any} */
    let at = root;
    for (const part of found.$ref.slice(1).split("/").filter(Boolean)) {
      at = at?.[part.replaceAll("~1", "/").replaceAll("~0", "~")];
    }
    if (!isRecord(at)) throw new SchemaError(`“${found.$ref}” leads to nothing`);
    found = at;
  }
  return found ?? {};
}

/**
 * Return the schema of a part of a value; an empty one if it is not known.
 * @param {Schema} root
 * @param {Schema} schema
 * @param {string | number} step
 * @returns {Schema}
 */
export function inner(root, schema, step) {
  const whole = branch(root, schema, step);
  if (typeof step === "string") return whole.properties?.[step] ?? {};
  return whole.prefixItems?.[step] ?? (isRecord(whole.items) ? whole.items : {});
}

/**
 * Of several possible schemas, return the first that has such a part.
 * @param {Schema} root
 * @param {Schema} schema
 * @param {string | number} step
 * @returns {Schema}
 */
function branch(root, schema, step) {
  const whole = resolve(root, schema);
  const several = whole.anyOf ?? whole.oneOf;
  if (!Array.isArray(several)) return whole;
  const fits = several.map((each) => resolve(root, each)).find((each) =>
    typeof step === "string" ? each.properties && step in each.properties : each.items || each.prefixItems,
  );
  return fits ?? {};
}

/**
 * Return all values that a schema allows, if these are few and known; else null.
 * @param {Schema} root
 * @param {Schema} schema
 * @returns {any[] | null}
 */
export function closedValues(root, schema) {
  const whole = resolve(root, schema);
  if ("const" in whole) return [whole.const];
  if (Array.isArray(whole.enum)) return whole.enum;
  return whole.type === "boolean" ? [true, false] : null;
}

/**
 * Return a schema of which everything before a field, and the field itself if `value` is given, is
 * fixed. With `isLast`, nothing comes after the field.
 * @param {Schema} root
 * @param {any} document the value so far
 * @param {Path} path to the field
 * @param {{value?: any, isLast?: boolean}} [options]
 * @returns {Schema}
 */
export function pinned(root, document, path, options = {}) {
  const { $defs, definitions } = root;
  const found = pinnedAt(root, root, document, path, options);
  return { ...found, ...($defs && { $defs }), ...(definitions && { definitions }) };
}

/**
 * @param {Schema} root
 * @param {Schema} schema
 * @param {any} document
 * @param {Path} path
 * @param {{value?: any, isLast?: boolean}} options
 * @returns {Schema}
 */
function pinnedAt(root, schema, document, path, options) {
  const [step, ...rest] = path;
  if (step === undefined) return "value" in options ? { const: options.value } : resolve(root, schema);
  const next = pinnedAt(root, inner(root, schema, step), document?.[step], rest, options);
  const whole = branch(root, schema, step);
  if (typeof step === "string") {
    if (!isRecord(whole.properties)) throw new SchemaError(`the schema does not say what “${step}” is part of`);
    const names = Object.keys(whole.properties);
    const place = names.indexOf(step);
    /** @type {[string, Schema][]} */
    const properties = [];
    for (const [number, name] of names.entries()) {
      // A field that was left out stays out.
      if (number < place && name in document) properties.push([name, { const: document[name] }]);
      if (number === place) properties.push([name, next]);
      if (number > place && !options.isLast) properties.push([name, whole.properties[name]]);
    }
    const before = properties.map(([name]) => name).slice(0, properties.findIndex(([name]) => name === step) + 1);
    const required = [...new Set([...before, ...(whole.required ?? []).filter((/** @type {string} */ name) => names.indexOf(name) > place && !options.isLast)])];
    return { type: "object", properties: Object.fromEntries(properties), required, additionalProperties: false };
  }
  const before = document.slice(0, step).map((/** @type {any} */ each) => ({ const: each }));
  const more = options.isLast ? false : (whole.items ?? {});
  return {
    type: "array",
    prefixItems: [...before, next],
    items: more,
    minItems: Math.max(step + 1, options.isLast ? 0 : (whole.minItems ?? 0)),
    ...(options.isLast ? { maxItems: step + 1 } : whole.maxItems !== undefined && { maxItems: whole.maxItems }),
  };
}

/**
 * @param {unknown} value
 * @returns {value is Record<string, any>}
 */
function isRecord(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
