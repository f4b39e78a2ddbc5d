// openai-node: what `stream`, `parse` and `runTools` hand back is sent back as it came, for three turns.
//
//     node openai_node_history.mjs URL
//
// Prints one row per check. Runs next to the node_modules that it imports.

import OpenAI from "openai";

import { run } from "./checks.mjs";
import { CITIES, MAX_TOKENS, named, parameters, PlainConversation, question, result, tools } from "./turns.mjs";

const [url] = process.argv.slice(2);
const client = new OpenAI({ apiKey: "unused", baseURL: `${url}/v1`, maxRetries: 0 });
const asked = { model: "smollm2", temperature: 0, max_tokens: MAX_TOKENS };

const streamed = (body) => client.chat.completions.stream(body).finalMessage();
const parsed = async (body) => {
  const strict = tools.map((tool) => ({ ...tool, function: { ...tool.function, strict: true } }));
  return (await client.chat.completions.parse({ ...body, tools: strict })).choices[0].message;
};

const turnsOf = (ask) => async () => {
  const messages = [];
  const plain = new PlainConversation(url);
  for (const city of CITIES) {
    messages.push({ role: "user", content: question(city) });
    const called = await ask({ ...asked, messages, tools, tool_choice: named });
    const [call] = called.tool_calls;
    messages.push(called, { role: "tool", tool_call_id: call.id, content: result(city) });
    plain.addCall(city, call.function.arguments);
    const answer = await ask({ ...asked, messages, tools, tool_choice: "none" });
    messages.push(answer);
    await plain.addAnswer(answer.content);
  }
  return plain.remark();
};

// With a tool by name, the helper ends after it has called the function.
const runTools = (isStreamed) => async () => {
  let messages = [];
  const plain = new PlainConversation(url);
  for (const city of CITIES) {
    let written;
    const get_weather = (text) => {
      written = text;
      return result(city);
    };
    const about = { name: "get_weather", description: "Weather forecast of a city.", parameters };
    const runner = client.chat.completions.runTools({
      ...asked,
      messages: [...messages, { role: "user", content: question(city) }],
      tools: [{ type: "function", function: { ...about, function: get_weather } }],
      tool_choice: named,
      stream: isStreamed,
    });
    await runner.done();
    messages = [...runner.messages];
    plain.addCall(city, written);
    const answer = await streamed({ ...asked, messages, tools, tool_choice: "none" });
    messages.push(answer);
    await plain.addAnswer(answer.content);
  }
  return plain.remark();
};

const checks = {
  "three turns with tools, messages of `stream` sent back": turnsOf(streamed),
  "three turns with tools, messages of `parse` sent back": turnsOf(parsed),
  "three turns with tools, messages of `runTools` sent back": runTools(false),
  "three turns with tools, messages of `runTools` with `stream` sent back": runTools(true),
};

await run("openai-node", "openai", checks);
