// anthropic-node: the same question and tool as the Python clients, whole and streamed.
//
//     node anthropic_node.mjs URL
//
// Prints one row per check. Runs next to the node_modules that it imports.

import assert from "node:assert/strict";

import Anthropic from "@anthropic-ai/sdk";

import { readPicture, run } from "./checks.mjs";

const [url] = process.argv.slice(2);
const client = new Anthropic({ apiKey: "unused", baseURL: url, maxRetries: 0 });

const messages = [{ role: "user", content: "What is the capital of France?" }];
const greedy = { model: "smollm2", temperature: 0, max_tokens: 200 };
const parameters = {
  type: "object",
  properties: { city: { type: "string" }, days: { type: "integer", minimum: 1, maximum: 7 } },
  required: ["city", "days"],
};
const about = { name: "get_weather", description: "Weather forecast of a city." };
const tools = [{ ...about, input_schema: parameters }];
const chatTools = [{ type: "function", function: { ...about, parameters } }];
const weather = [{ role: "user", content: "How is the weather in Paris?" }];
const named = { type: "tool", name: "get_weather", disable_parallel_tool_use: true };

async function raw(path, body) {
  const response = await fetch(url + path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  assert.equal(response.status, 200);
  return response.json();
}

const rawChat = async (body) => (await raw("/v1/chat/completions", body)).choices[0].message;

function textOf(message) {
  const [block, ...others] = message.content;
  assert.deepEqual(others, []);
  assert.equal(block.type, "text");
  return block.text;
}

async function whole() {
  const message = await client.messages.create({ ...greedy, messages });
  const { content } = await rawChat({ ...greedy, messages });
  assert.equal(textOf(message), content);
  assert.equal(message.stop_reason, "end_turn");
  return content;
}

async function streamed() {
  const stream = client.messages.stream({ ...greedy, messages });
  let text = "";
  stream.on("text", (piece) => {
    text += piece;
  });
  const message = await stream.finalMessage();
  const expected = await raw("/v1/chat/completions", { ...greedy, messages });
  assert.equal(text, expected.choices[0].message.content);
  assert.equal(textOf(message), text);
  assert.equal(message.usage.output_tokens, expected.usage.completion_tokens);
  return text;
}

async function toolRoundTrip() {
  const asked = { ...greedy, tools, max_tokens: 60 };
  const first = await client.messages.stream({ ...asked, messages: weather, tool_choice: named }).finalMessage();
  assert.equal(first.stop_reason, "tool_use");
  const [call] = first.content;
  assert.equal(call.name, "get_weather");
  assert.equal(typeof call.input.city, "string");
  assert(Number.isInteger(call.input.days));
  const content = "22 degrees and sunny";
  const turns = [
    ...weather,
    { role: "assistant", content: first.content },
    { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content }] },
  ];
  const second = await client.messages.create({ ...asked, messages: turns, tool_choice: { type: "none" } });
  const written = { name: call.name, arguments: JSON.stringify(call.input) };
  const expected = await rawChat({
    ...greedy,
    max_tokens: 60,
    tools: chatTools,
    tool_choice: "none",
    messages: [
      ...weather,
      { role: "assistant", tool_calls: [{ id: call.id, type: "function", function: written }] },
      { role: "tool", tool_call_id: call.id, content },
    ],
  });
  assert.equal(textOf(second), expected.content);
  return JSON.stringify(textOf(second));
}

async function countTokens() {
  const { input_tokens } = await client.messages.countTokens({ model: "smollm2", messages });
  const { count } = await raw("/v1/count_tokens", { model: "smollm2", conversation: messages });
  assert.equal(input_tokens, count);
  return `${count} tokens`;
}

async function imageNamed() {
  const source = { type: "base64", media_type: "image/png", data: picture.png };
  const content = [{ type: "image", source }, { type: "text", text: picture.question }];
  const asked = { model: "pictures", temperature: 0, max_tokens: 12 };
  const ofPictures = new Anthropic({ apiKey: "unused", baseURL: picture.url, maxRetries: 0 });
  const stream = ofPictures.messages.stream({ ...asked, messages: [{ role: "user", content }] });
  assert.equal(textOf(await stream.finalMessage()), picture.colour);
  return picture.colour;
}

async function imageRefused() {
  const source = { type: "base64", media_type: "image/png", data: "aGk=" };
  const turns = [{ role: "user", content: [{ type: "image", source }] }];
  await assert.rejects(client.messages.create({ ...greedy, messages: turns }), (error) => {
    assert(error instanceof Anthropic.BadRequestError);
    assert.equal(error.error.error.type, "invalid_request_error");
    return true;
  });
  return "BadRequestError, invalid_request_error";
}

const checks = {
  "`messages.create`": whole,
  "`messages.stream`": streamed,
  "messages, tool round trip, the first step streamed": toolRoundTrip,
  "`messages.countTokens`": countTokens,
  "an image for a model without": imageRefused,
};
const picture = readPicture();
if (picture) checks["an image is named, streamed"] = imageNamed;

await run("anthropic-node", "@anthropic-ai/sdk", checks);
