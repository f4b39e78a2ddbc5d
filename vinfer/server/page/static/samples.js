// The same request as code to copy. Pure. The user's key is never in it: a placeholder stands there.

import { EXTRA_FIELDS } from "./request.js";

export const KEY_PLACEHOLDER = "YOUR_API_KEY";

/** Return code that sends `body` to the server at `base` (without /v1), as "curl", "python" or "javascript". */
export function codeSample(kind, base, body, needsKey) {
  return { curl, python, javascript }[kind](base.replace(/\/$/, ""), body, needsKey);
}

function curl(base, body, needsKey) {
  // A here-document takes any text and any length. JSON has no line that could end it.
  const key = needsKey ? `  -H 'Authorization: Bearer ${KEY_PLACEHOLDER}' \\\n` : "";
  const json = JSON.stringify(body, null, 2);
  return `curl '${base}/v1/chat/completions' \\\n  -H 'Content-Type: application/json' \\\n${key}  --data-binary @- <<'JSON'\n${json}\nJSON\n`;
}

function python(base, body, needsKey) {
  const known = Object.entries(body).filter(([name]) => !EXTRA_FIELDS.includes(name));
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => EXTRA_FIELDS.includes(name)));
  if (Object.keys(extra).length) known.push(["extra_body", extra]);
  const given = known.map(([name, value]) => `    ${name}=${pythonValue(value, 4)},\n`).join("");
  const key = needsKey ? KEY_PLACEHOLDER : "unused";
  return `from openai import OpenAI\n\nclient = OpenAI(base_url=${JSON.stringify(`${base}/v1`)}, api_key="${key}")\n`
    + `answer = client.chat.completions.create(\n${given})\nprint(answer.choices[0].message.content)\n`;
}

function javascript(base, body, needsKey) {
  const headers = { "Content-Type": "application/json" };
  if (needsKey) headers.Authorization = `Bearer ${KEY_PLACEHOLDER}`;
  return `const response = await fetch(${JSON.stringify(`${base}/v1/chat/completions`)}, {\n`
    + `  method: "POST",\n  headers: ${JSON.stringify(headers)},\n`
    + `  body: JSON.stringify(${JSON.stringify(body, null, 2).replaceAll("\n", "\n  ")}),\n});\n`
    + "const answer = await response.json();\n"
    + "console.log(answer.choices?.[0].message.content ?? answer.error.message);\n";
}

function pythonValue(value, indent) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  // A JSON string is a Python string, but for pairs of surrogates, which JSON.stringify does not write.
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = " ".repeat(indent + 4);
  const list = Array.isArray(value);
  const items = list
    ? value.map((item) => pythonValue(item, indent + 4))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${pythonValue(item, indent + 4)}`);
  const [open, close] = list ? "[]" : "{}";
  if (!items.length) return open + close;
  return `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${" ".repeat(indent)}${close}`;
}
