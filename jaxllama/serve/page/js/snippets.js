/** A call as text for other programs: a line for curl, and lines of Python. Used by docs.js. */

/** @typedef {{method: string, url: string, body: unknown, needsKey: boolean}} PlainCall */

/** @param {PlainCall} call */
export function curlOf({ method, url, body, needsKey }) {
  const parts = [`curl ${quoted(url)}`];
  if (method !== (body === undefined ? "get" : "post")) parts.push(`-X ${method.toUpperCase()}`);
  if (needsKey) parts.push('-H "Authorization: Bearer $KEY"');
  if (body !== undefined) {
    parts.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(body, null, 2))}`);
  }
  return parts.join(" \\\n  ");
}

/** @param {PlainCall} call */
export function pythonOf({ method, url, body, needsKey }) {
  const streams = typeof body === "object" && body !== null && "stream" in body && body.stream === true;
  const lines = [...(needsKey ? ["import os", ""] : []), "import requests", ""];
  lines.push(`response = requests.${method}(`, `    ${JSON.stringify(url)},`);
  if (needsKey) lines.push('    headers={"Authorization": f"Bearer {os.environ[\'KEY\']}"},');
  if (body !== undefined) lines.push(`    json=${literal(body, 1)},`);
  if (streams) lines.push("    stream=True,");
  lines.push("    timeout=600,", ")", "response.raise_for_status()");
  if (streams) lines.push("for line in response.iter_lines(decode_unicode=True):", "    print(line)");
  else lines.push("print(response.text)");
  return lines.join("\n");
}

/**
 * Quote a text for a shell.
 * @param {string} text
 */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/**
 * Write a value of JSON as Python.
 * @param {unknown} value
 * @param {number} depth
 * @returns {string}
 */
function literal(value, depth) {
  const [outer, inner] = ["    ".repeat(depth), "    ".repeat(depth + 1)];
  if (value === null) return "None";
  if (value === true || value === false) return value ? "True" : "False";
  if (typeof value === "object") {
    const isList = Array.isArray(value);
    const entries = isList
      ? value.map((each) => literal(each, depth + 1))
      : Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each, depth + 1)}`);
    const [open, close] = isList ? "[]" : "{}";
    if (entries.length === 0) return open + close;
    return `${open}\n${entries.map((each) => `${inner}${each},\n`).join("")}${outer}${close}`;
  }
  return JSON.stringify(value);
}
