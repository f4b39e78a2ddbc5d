// A conversation of three turns, each with a tool call; as turns.py.

import assert from "node:assert/strict";

export const CITIES = ["Paris", "London", "Oslo"];
export const MAX_TOKENS = 60;
export const question = (city) => `How is the weather in ${city}?`;
export const result = (city) => `22 degrees and sunny in ${city}`;
export const parameters = {
  type: "object",
  properties: { city: { type: "string" }, days: { type: "integer", minimum: 1, maximum: 7 } },
  required: ["city", "days"],
};
const forecast = { name: "get_weather", description: "Weather forecast of a city.", parameters };
export const tools = [{ type: "function", function: forecast }];
export const named = { type: "function", function: { name: "get_weather" } };

export async function post(url, body) {
  const response = await fetch(url, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  assert.equal(response.status, 200);
  return response.json();
}

// The messages of the conversation so far, in plain JSON.
export class PlainConversation {
  #messages = [];
  #url;

  constructor(url) {
    this.#url = url;
  }

  addCall(city, written) {
    const call = { id: `call_${city}`, type: "function", function: { name: "get_weather", arguments: written } };
    this.#messages.push(
      { role: "user", content: question(city) },
      { role: "assistant", content: null, tool_calls: [call] },
      { role: "tool", tool_call_id: call.id, content: result(city) },
    );
  }

  // Checks an answer against the server's own to the same conversation, and adds it.
  async addAnswer(text) {
    const asked = { model: "smollm2", temperature: 0, max_tokens: MAX_TOKENS, tools, tool_choice: "none" };
    const { choices } = await post(`${this.#url}/v1/chat/completions`, { ...asked, messages: this.#messages });
    assert.equal(text, choices[0].message.content);
    this.#messages.push({ role: "assistant", content: text });
  }

  remark() {
    const last = JSON.stringify(this.#messages.at(-1).content.slice(0, 60));
    return `${this.#messages.length} messages, the last ${last}`;
  }
}
