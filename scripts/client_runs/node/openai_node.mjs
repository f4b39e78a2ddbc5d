// openai-node: the same question, tool and type as the Python clients, mostly streamed.
//
//     node openai_node.mjs URL
//
// Prints one row per check. Runs next to the node_modules that it imports.

import assert from "node:assert/strict";

import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

import { readPicture, run } from "./checks.mjs";

const [url] = process.argv.slice(2);
const client = new OpenAI({ apiKey: "unused", baseURL: `${url}/v1`, maxRetries: 0 });

const QUESTION = "What is the capital of France?";
const messages = [{ role: "user", content: QUESTION }];
const greedy = { model: "smollm2", temperature: 0 };
const forecast = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Weather forecast of a city.",
    parameters: {
      type: "object",
      properties: { city: { type: "string" }, days: { type: "integer", minimum: 1, maximum: 7 } },
      required: ["city", "days"],
    },
  },
};
const weather = {
  ...greedy,
  messages: [{ role: "user", content: "How is the weather in Paris?" }],
  tools: [forecast],
};
const City = z.object({ name: z.string(), country: z.string(), population: z.int() });

async function raw(path, body) {
  const response = await fetch(url + path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  assert.equal(response.status, 200);
  return response.json();
}

const rawMessage = async (body) => (await raw("/v1/chat/completions", body)).choices[0].message;

function readWeatherCall(call) {
  assert.equal(call.name, "get_weather");
  const { city, days, ...others } = JSON.parse(call.arguments);
  assert.equal(typeof city, "string");
  assert(Number.isInteger(days) && days >= 1 && days <= 7);
  assert.deepEqual(others, {});
}

async function chat() {
  const answer = await client.chat.completions.create({ ...greedy, messages });
  const { content } = await rawMessage({ ...greedy, messages });
  assert.equal(answer.choices[0].message.content, content);
  return content;
}

async function chatStreamed() {
  const asked = { ...greedy, messages, stream: true, stream_options: { include_usage: true } };
  let text = "";
  let numChunks = 0;
  let usage = null;
  for await (const chunk of await client.chat.completions.create(asked)) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
    numChunks += 1;
  }
  const expected = await raw("/v1/chat/completions", { ...greedy, messages });
  assert.equal(text, expected.choices[0].message.content);
  assert.equal(usage.completion_tokens, expected.usage.completion_tokens);
  return `${numChunks} chunks, usage in the last`;
}

async function streamHelper() {
  const text = await client.chat.completions.stream({ ...greedy, messages }).finalContent();
  assert.equal(text, (await rawMessage({ ...greedy, messages })).content);
  return text;
}

async function toolsStreamed() {
  const asked = { ...weather, tool_choice: "required" };
  const streamed = await client.chat.completions.stream(asked).finalMessage();
  const expected = (await rawMessage(asked)).tool_calls.map((call) => call.function);
  assert.deepEqual(
    streamed.tool_calls.map((call) => ({ name: call.function.name, arguments: call.function.arguments })),
    expected,
  );
  expected.forEach(readWeatherCall);
  return expected.map((call) => call.arguments).join(", ");
}

async function toolRoundTrip() {
  const forced = { tool_choice: { type: "function", function: { name: "get_weather" } } };
  const { message } = (await client.chat.completions.create({ ...weather, ...forced })).choices[0];
  const [call] = message.tool_calls;
  readWeatherCall(call.function);
  const result = { role: "tool", tool_call_id: call.id, content: "22 degrees and sunny" };
  const asked = { ...weather, messages: [...weather.messages, message, result], tool_choice: "none" };
  const { content } = (await client.chat.completions.create(asked)).choices[0].message;
  assert(content);
  assert.equal(content, (await rawMessage(asked)).content);
  return JSON.stringify(content);
}

async function parsed() {
  const asked = { ...greedy, messages: [{ role: "user", content: "Describe Paris." }] };
  const form = zodResponseFormat(City, "City");
  const answer = await client.chat.completions.parse({ ...asked, response_format: form });
  const { content } = await rawMessage({ ...asked, response_format: form });
  assert.equal(answer.choices[0].message.content, content);
  City.loose().parse(answer.choices[0].message.parsed);
  return content;
}

async function responsesStreamed() {
  const stream = client.responses.stream({ ...greedy, input: QUESTION });
  let text = "";
  for await (const event of stream) {
    text += event.type === "response.output_text.delta" ? event.delta : "";
  }
  assert.equal(text, (await rawMessage({ ...greedy, messages })).content);
  assert.equal((await stream.finalResponse()).output_text, text);
  return text;
}

async function responsesParsed() {
  const asked = { ...greedy, input: "Describe Paris." };
  const answer = await client.responses.parse({ ...asked, text: { format: zodTextFormat(City, "City") } });
  assert.equal(answer.status, "completed");
  City.parse(answer.output_parsed);
  return answer.output_text;
}

async function imageNamed() {
  const image = { type: "image_url", image_url: { url: `data:image/png;base64,${picture.png}`, detail: "auto" } };
  const content = [image, { type: "text", text: picture.question }];
  const asked = { model: "pictures", temperature: 0, messages: [{ role: "user", content }] };
  const ofPictures = new OpenAI({ apiKey: "unused", baseURL: `${picture.url}/v1`, maxRetries: 0 });
  assert.equal(await ofPictures.chat.completions.stream(asked).finalContent(), picture.colour);
  return picture.colour;
}

const checks = {
  chat,
  "chat streamed, with usage": chatStreamed,
  "`chat.completions.stream`": streamHelper,
  "tools `required`, streamed": toolsStreamed,
  "tool round trip, call by name": toolRoundTrip,
  "`chat.completions.parse` with a zod type": parsed,
  "responses streamed": responsesStreamed,
  "`responses.parse` with a zod type": responsesParsed,
};
const picture = readPicture();
if (picture) checks["an image is named, streamed"] = imageNamed;

await run("openai-node", "openai", checks);
