// The body of a chat completion from the fields of the form. Pure.

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed", "presence_penalty"];
// Fields that are vinfer's, not OpenAI's: clients in code send them beside the others.
export const EXTRA_FIELDS = ["top_k"];

export class FieldProblem extends Error {
  constructor(field, message) {
    super(message);
    this.name = "FieldProblem";
    this.field = field;
  }
}

/**
 * Return the body for a conversation; a field that is empty is left out.
 *
 * Throws FieldProblem if a field does not hold what it must.
 */
export function chatBody(fields, messages) {
  const system = fields.system.trim() ? [{ role: "system", content: fields.system }] : [];
  const body = { model: fields.model, messages: [...system, ...messages] };
  for (const name of NUMBERS) {
    if (fields[name].trim() === "") continue;
    const value = Number(fields[name]);
    if (!Number.isFinite(value)) throw new FieldProblem(name, `${name} is "${fields[name]}": write a number`);
    body[name] = value;
  }
  const stop = fields.stop.split("\n").filter((line) => line !== "");
  if (stop.length) body.stop = stop;
  const schema = parsedJson(fields.schema, "schema", "JSON schema");
  if (schema !== null) {
    if (!isObject(schema)) throw new FieldProblem("schema", "the JSON schema must be an object");
    body.response_format = { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
  }
  const tools = parsedJson(fields.tools, "tools", "tools");
  if (tools !== null) {
    if (!Array.isArray(tools)) throw new FieldProblem("tools", "tools must be a JSON list of tools");
    if (tools.length) body.tools = tools.map(asTool);
  }
  return body;
}

/** Return the body that the page sends: a stream that ends with the number of tokens. */
export function streamed(body) {
  return { ...body, stream: true, stream_options: { include_usage: true } };
}

function asTool(tool) {
  // A bare function, as many documents show it.
  return isObject(tool) && !("type" in tool) && "name" in tool ? { type: "function", function: tool } : tool;
}

function parsedJson(text, field, label) {
  if (!text.trim()) return null;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new FieldProblem(field, `the field with the ${label} is not JSON: ${error.message}`);
  }
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Return the content of a user's message: text alone, or images and then text. */
export function userContent(text, images) {
  if (!images.length) return text;
  const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return text ? [...parts, { type: "text", text }] : parts;
}
