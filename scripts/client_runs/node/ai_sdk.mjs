// Vercel's AI SDK: an answer, a typed object, and three turns whose messages are sent back as they came.
//
//     node ai_sdk.mjs URL
//
// Prints one row per check. Runs next to the node_modules that it imports.

import assert from "node:assert/strict";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, streamText, tool } from "ai";
import { z } from "zod";

import { readPicture, run } from "./checks.mjs";
import { CITIES, MAX_TOKENS, parameters, PlainConversation, post, question, result } from "./turns.mjs";

const [url] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "vinfer", baseURL: `${url}/v1`, supportsStructuredOutputs: true });
const asked = { model: provider("smollm2"), temperature: 0, maxOutputTokens: MAX_TOKENS, maxRetries: 0 };
const QUESTION = "What is the capital of France?";

async function expected() {
  const messages = [{ role: "user", content: QUESTION }];
  const body = { model: "smollm2", temperature: 0, max_tokens: MAX_TOKENS, messages };
  return (await post(`${url}/v1/chat/completions`, body)).choices[0].message.content;
}

async function whole() {
  const { text } = await generateText({ ...asked, prompt: QUESTION });
  assert.equal(text, await expected());
  return text;
}

async function streamed() {
  const { textStream } = streamText({ ...asked, prompt: QUESTION });
  let text = "";
  for await (const piece of textStream) text += piece;
  assert.equal(text, await expected());
  return text;
}

async function typed() {
  const City = z.object({ name: z.string(), country: z.string() });
  const { output } = await generateText({ ...asked, prompt: "Describe Paris.", output: Output.object({ schema: City }) });
  City.parse(output);
  return JSON.stringify(output);
}

async function imageNamed() {
  const content = [
    { type: "image", image: picture.png, mediaType: "image/png" },
    { type: "text", text: picture.question },
  ];
  const messages = [{ role: "user", content }];
  const ofPictures = createOpenAICompatible({ name: "vinfer", baseURL: `${picture.url}/v1` });
  const { text } = await generateText({ ...asked, model: ofPictures("pictures"), messages });
  assert.equal(text, picture.colour);
  return text;
}

const turnsOf = (ask) => async () => {
  const messages = [];
  const plain = new PlainConversation(url);
  for (const city of CITIES) {
    let written;
    const execute = async (input) => {
      written = JSON.stringify(input);
      return result(city);
    };
    const get_weather = tool({
      description: "Weather forecast of a city.",
      inputSchema: jsonSchema(parameters),
      execute,
    });
    const tools = { get_weather };
    messages.push({ role: "user", content: question(city) });
    const named = { type: "tool", toolName: "get_weather" };
    messages.push(...(await ask({ ...asked, messages, tools, toolChoice: named })).messages);
    plain.addCall(city, written);
    const answer = await ask({ ...asked, messages, tools, toolChoice: "none" });
    messages.push(...answer.messages);
    await plain.addAnswer(answer.text);
  }
  return plain.remark();
};

async function generated(options) {
  const { response, text } = await generateText(options);
  return { messages: response.messages, text };
}

async function fromStream(options) {
  const stream = streamText(options);
  await stream.consumeStream();
  return { messages: (await stream.response).messages, text: await stream.text };
}

const checks = {
  "`generateText`": whole,
  "`streamText`": streamed,
  "`generateText` with a zod type": typed,
  "three turns with tools, messages of `generateText` sent back": turnsOf(generated),
  "three turns with tools, messages of `streamText` sent back": turnsOf(fromStream),
};
const picture = readPicture();
if (picture) checks["an image is named"] = imageNamed;

await run("ai", "ai", checks);
