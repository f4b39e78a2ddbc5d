// Server-sent events from pieces of text. Pure: knows neither fetch nor the DOM.

export class SseParser {
  #rest = "";

  /** Return the data of each event that is complete, given the next piece of the stream. */
  push(text) {
    // A piece may end between the two characters of a line end.
    let whole = this.#rest + text;
    const held = whole.endsWith("\r") ? "\r" : "";
    whole = whole.slice(0, whole.length - held.length).replace(/\r\n?/g, "\n");
    const blocks = whole.split("\n\n");
    this.#rest = blocks.pop() + held;
    return blocks.map(dataOf).filter((data) => data !== null);
  }
}

function dataOf(block) {
  const lines = block.split("\n").filter((line) => line.startsWith("data:"));
  if (!lines.length) return null;
  return lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
}
