// One answer, put together from the chunks of a stream, with its times. Pure: the caller has the clock.

export class Answer {
  text = "";
  reasoning = "";
  calls = [];
  finishReason = null;
  usage = null;
  #sentSeconds;
  #firstSeconds = null;
  #lastSeconds = null;

  /** `sentSeconds` is when the request was sent, on the same clock as that of `apply`. */
  constructor(sentSeconds) {
    this.#sentSeconds = sentSeconds;
  }

  /** Take one chunk of a chat completion. Throws the server's message if the chunk is an error. */
  apply(chunk, nowSeconds) {
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta;
    if (content || reasoning || calls) {
      this.#firstSeconds ??= nowSeconds;
      this.#lastSeconds = nowSeconds;
    }
    this.text += content ?? "";
    this.reasoning += reasoning ?? "";
    for (const piece of calls ?? []) this.#addCall(piece);
    this.finishReason = choice.finish_reason ?? this.finishReason;
  }

  #addCall({ index, id, function: named }) {
    const call = (this.calls[index] ??= { id: "", name: "", arguments: "" });
    call.id = id ?? call.id;
    call.name += named?.name ?? "";
    call.arguments += named?.arguments ?? "";
  }

  /** Return the seconds until the first token; null if there was none. */
  get ttftSeconds() {
    return this.#firstSeconds === null ? null : this.#firstSeconds - this.#sentSeconds;
  }

  /** Return tokens per second after the first token; null if that cannot be said. */
  get tokensPerSecond() {
    const tokens = (this.usage?.completion_tokens ?? 0) - 1;
    const seconds = this.#lastSeconds - this.#firstSeconds;
    return tokens > 0 && seconds > 0 ? tokens / seconds : null;
  }

  /** Return the answer as a message of the conversation. */
  asMessage() {
    const message = { role: "assistant", content: this.text || (this.calls.length ? null : "") };
    if (this.calls.length) {
      message.tool_calls = this.calls.map((call) => ({
        id: call.id,
        type: "function",
        function: { name: call.name, arguments: call.arguments },
      }));
    }
    return message;
  }

  /** Return times and tokens in words. */
  summary() {
    const said = [];
    if (this.ttftSeconds !== null) said.push(`first token after ${shownSeconds(this.ttftSeconds)}`);
    if (this.tokensPerSecond !== null) said.push(`${this.tokensPerSecond.toFixed(1)} tokens/s`);
    if (this.usage) {
      const cached = this.usage.prompt_tokens_details?.cached_tokens;
      const from = cached ? ` (${cached} cached)` : "";
      said.push(`${this.usage.prompt_tokens} prompt${from} + ${this.usage.completion_tokens} tokens`);
    }
    if (this.finishReason === "length") said.push("cut off at the limit of tokens");
    return said.join(" · ");
  }
}

export function shownSeconds(seconds) {
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(2)} s`;
}
