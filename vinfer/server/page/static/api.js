// Calls of the server that sent the page. The API key lives in sessionStorage, and goes nowhere else.

import { SseParser } from "./sse.js";

const KEY = "vinfer-api-key";

export const savedKey = () => sessionStorage.getItem(KEY) ?? "";

export function saveKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** The address of the server, for code to copy. */
export const baseUrl = () => new URL(".", document.baseURI).href;

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function send(path, options = {}) {
  const headers = { ...options.headers };
  if (savedKey()) headers.Authorization = `Bearer ${savedKey()}`;
  return fetch(path, { ...options, headers, cache: "no-store" });
}

async function refused(response) {
  const body = await response.json().catch(() => ({}));
  return new ApiError(response.status, body.error?.message ?? `the server answered ${response.status}`);
}

/** Return a JSON answer. Throws ApiError. */
export async function fetchJson(path) {
  const response = await send(path);
  if (!response.ok) throw await refused(response);
  return response.json();
}

/** Return a text answer. Throws ApiError. */
export async function fetchText(path) {
  const response = await send(path);
  if (!response.ok) throw await refused(response);
  return response.text();
}

/** Return the phases; the answer is the same before the server is ready, but its status is 503. */
export async function fetchReadiness() {
  return (await send("readiness")).json();
}

/** Yield the chunks of a streamed chat completion. Throws ApiError; stops when `signal` is aborted. */
export async function* streamChat(body, signal) {
  const response = await send("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await refused(response);
  const parser = new SseParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ApiError(0, "the connection ended before the answer did: try again");
    for (const data of parser.push(value)) {
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
