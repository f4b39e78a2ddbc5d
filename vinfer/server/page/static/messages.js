// Messages as DOM nodes: what a user sent, an answer that grows, and fields for the results of tool calls.

import { element } from "./dom.js";
import { MarkdownView } from "./render.js";

/** Return the node of a user's message. */
export function userMessage(content) {
  const parts = typeof content === "string" ? [{ type: "text", text: content }] : content;
  const nodes = parts.map((part, at) =>
    part.type === "text"
      ? element("div", { className: "plain" }, part.text)
      : element("img", { src: part.image_url.url, alt: `Image ${at + 1} of the message` }));
  return element("article", { className: "message user" }, element("h3", {}, "You"), ...nodes);
}

/** Shows an answer while it grows. `onResults` gets a list of tool messages. */
export class AnswerView {
  node = element("article", { className: "message assistant" });
  #markdown = new MarkdownView();
  #reasoning = element("div");
  #folded;
  #calls = element("div");
  #meta = element("p", { className: "meta" });
  #problem = element("p", { className: "problem" });
  #onResults;

  constructor(model, onResults) {
    this.#onResults = onResults;
    this.#folded = element("details", { className: "reasoning", hidden: true },
      element("summary", {}, "Reasoning"), this.#reasoning);
    this.node.append(element("h3", {}, model), this.#folded, this.#markdown.node, this.#calls, this.#meta, this.#problem);
  }

  show(answer) {
    this.#folded.hidden = !answer.reasoning;
    this.#reasoning.textContent = answer.reasoning;
    this.#markdown.show(answer.text);
    const calls = answer.calls.filter(Boolean);
    while (this.#calls.children.length < calls.length) this.#calls.append(callNode());
    calls.forEach((call, at) => {
      const node = this.#calls.children[at];
      node.querySelector("code").textContent = call.name;
      node.querySelector("pre").textContent = indented(call.arguments);
    });
    this.#meta.textContent = answer.summary();
  }

  /** End the answer; calls get fields for their results. */
  finish(answer, problem = "") {
    this.show(answer);
    this.#problem.textContent = problem;
    if (answer.calls.length && answer.finishReason === "tool_calls") this.#askForResults(answer.calls);
  }

  #askForResults(calls) {
    const fields = calls.map((call, at) => {
      const field = element("textarea", { rows: 2 });
      this.#calls.children[at].append(element("label", {}, `Result of ${call.name}`, field));
      return field;
    });
    const button = element("button", { type: "button" }, calls.length > 1 ? "Send results" : "Send result");
    button.addEventListener("click", () => {
      button.disabled = true;
      for (const field of fields) field.readOnly = true;
      this.#onResults(calls.map((call, at) => ({ role: "tool", tool_call_id: call.id, content: fields[at].value })));
    });
    this.#calls.append(button);
  }
}

function callNode() {
  return element("div", { className: "call" },
    element("div", {}, "Calls ", element("code")), element("pre", { className: "arguments" }));
}

function indented(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}
