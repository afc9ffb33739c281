/**
 * The calls of an OpenAPI document: their groups, the fields of their bodies in words, and an
 * example of each body. Used by docs.js; knows neither page nor server.
 */

/** @typedef {{id: string, method: string, path: string, group: string, operation: any}} Call */
/** @typedef {{name: string, type: string, meaning: string}} Field */

const PREFIX = "#/components/schemas/";
const JSON_TYPE = "application/json";
const DEEPEST = 4; // objects inside an example
const FEW_TOKENS = 32;
const BOUNDS = ["minimum", "maximum", "maxLength", "maxItems", "maxProperties"];
/** Examples by the name of a field. */
const USUAL = new Map(
  Object.entries({
    messages: [{ role: "user", content: "Say hello." }],
    prompt: "Once upon a time",
    input: "Once upon a time",
    text: "Once upon a time",
    content: "Once upon a time",
    query: "What is a llama?",
    documents: ["A llama is an animal.", "Rain is water."],
    labels: ["yes", "no"],
    max_tokens: FEW_TOKENS,
  }),
);

/**
 * @param {any} document
 * @returns {Call[]}
 */
export function callsOf(document) {
  return Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(/** @type {any} */ (methods)).map(([method, operation]) => {
      const group = /** @type {any} */ (operation).tags?.[0] ?? "";
      return { id: `${method.toUpperCase()} ${path}`, method, path, group, operation };
    }),
  );
}

/**
 * Return the schema of a call's body; null if it has none.
 * @param {any} document
 * @param {Call} call
 */
export function bodyOf(document, { operation }) {
  const schema = operation.requestBody?.content?.[JSON_TYPE]?.schema;
  return schema ? resolved(document, schema.anyOf?.[0] ?? schema) : null;
}

/**
 * Return the fields of each body that a call may have.
 * @param {any} document
 * @param {Call} call
 * @returns {Field[][]}
 */
export function fieldsOf(document, { operation }) {
  const schema = operation.requestBody?.content?.[JSON_TYPE]?.schema;
  if (!schema) return [];
  return (schema.anyOf ?? [schema]).map((/** @type {any} */ each) => {
    const { properties = {}, required = [] } = resolved(document, each);
    return Object.entries(properties).map(([name, field]) => ({
      name,
      type: typeOf(field) + (required.includes(name) ? ", required" : ""),
      meaning: /** @type {any} */ (field).description ?? "",
    }));
  });
}

/**
 * Return an example of a schema: the required fields, and those of `USUAL`.
 * @param {any} document
 * @param {any} schema
 * @param {number} [depth]
 * @returns {unknown}
 */
export function exampleOf(document, schema, depth = 0) {
  const { type, properties = {}, required = [], ...rest } = resolved(document, schema);
  if (rest.enum) return rest.enum.find((/** @type {unknown} */ each) => each !== null) ?? null;
  if (rest.const !== undefined) return rest.const;
  const branches = rest.anyOf ?? rest.oneOf;
  if (branches) return exampleOf(document, branches[0], depth);
  if (type === "object") {
    if (depth >= DEEPEST) return {};
    const names = Object.keys(properties).filter(
      (name) => required.includes(name) || (depth === 0 && name === "max_tokens"),
    );
    const chosen = names.some((name) => name !== "max_tokens") ? names : [...firstUsual(properties), ...names];
    return Object.fromEntries(
      chosen.map((name) => [name, USUAL.get(name) ?? exampleOf(document, properties[name], depth + 1)]),
    );
  }
  if (type === "array") return depth >= DEEPEST ? [] : [exampleOf(document, rest.items ?? {}, depth + 1)];
  if (type === "integer" || type === "number") return Math.max(rest.minimum ?? 1, 1);
  if (type === "boolean") return false;
  return type === "string" ? "text" : null;
}

/**
 * A body without required fields may need one of several: the first that is usual.
 * @param {any} properties
 */
function firstUsual(properties) {
  const name = Object.keys(properties).find((each) => USUAL.has(each) && each !== "max_tokens");
  return name === undefined ? [] : [name];
}

/**
 * @param {any} document
 * @param {any} schema
 */
function resolved(document, schema) {
  const name = schema.$ref?.slice(PREFIX.length);
  return name === undefined ? schema : (document.components.schemas[name] ?? {});
}

/**
 * Describe the type of a schema in words.
 * @param {any} schema
 * @returns {string}
 */
function typeOf(schema) {
  if (schema.anyOf) {
    const parts = schema.anyOf.filter((/** @type {any} */ each) => each.type !== "null").map(typeOf);
    return [...new Set(parts)].join(" or ");
  }
  if (schema.$ref) return schema.$ref.slice(PREFIX.length);
  if (schema.enum) return schema.enum.map(String).join(" or ");
  if (schema.type === "array" && schema.items) return `list of ${typeOf(schema.items)}${boundsOf(schema)}`;
  return `${schema.type ?? "anything"}${boundsOf(schema)}`;
}

/** @param {any} schema */
function boundsOf(schema) {
  const found = BOUNDS.filter((name) => name in schema).map((name) => `${name} ${schema[name]}`);
  return found.length > 0 ? ` (${found.join(", ")})` : "";
}
