// The chat: the conversation, the form, and one answer at a time.

import { Answer } from "./answer.js";
import { baseUrl, savedKey, streamChat } from "./api.js";
import { announce, byId, copy } from "./dom.js";
import { ImageTray } from "./images.js";
import { AnswerView, userMessage } from "./messages.js";
import { chatBody, FieldProblem, streamed, userContent } from "./request.js";
import { codeSample } from "./samples.js";

const FIELDS = [
  ...["model", "system", "temperature", "top_p", "top_k", "max_tokens", "seed", "presence_penalty"],
  ...["stop", "schema", "tools"],
];

export class Chat {
  #messages = [];
  #running = null;
  #images = new ImageTray((problem) => this.#showProblem(problem));
  #needsKey = false;

  constructor() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#sendPrompt();
    });
    byId("settings").addEventListener("submit", (event) => event.preventDefault());
    byId("prompt").addEventListener("keydown", (event) => {
      // Enter also ends a composition, of Japanese for example.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#sendPrompt();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#running?.abort();
    });
    byId("stop-answer").addEventListener("click", () => this.#running?.abort());
    byId("again").addEventListener("click", () => this.#regenerate());
    byId("clear").addEventListener("click", () => this.#clear());
    for (const button of document.querySelectorAll("[data-sample]")) {
      button.addEventListener("click", () => copy(button, () => this.#sample(button.dataset.sample)));
    }
  }

  /** Take what the server says of the chosen model; undefined while it is not known. */
  useModel(capabilities) {
    this.#images.allow(capabilities?.limits.max_images ?? 0);
    for (const [name, value] of Object.entries(capabilities?.sampling_defaults ?? {})) {
      const field = FIELDS.includes(name) ? byId(name) : null;
      if (field?.type === "number") field.placeholder = value ?? "";
    }
  }

  /** Say whether the server refused a request for want of a key. */
  set needsKey(needed) {
    this.#needsKey = needed;
  }

  #body(messages) {
    this.#showProblem("");
    try {
      return chatBody(Object.fromEntries(FIELDS.map((name) => [name, byId(name).value])), messages);
    } catch (error) {
      if (!(error instanceof FieldProblem)) throw error;
      this.#showProblem(error.message);
      byId("more").open = true;
      byId(error.field).focus();
      throw error;
    }
  }

  #sample(kind) {
    const text = byId("prompt").value;
    const next = text || this.#images.urls.length || !this.#messages.length
      ? [{ role: "user", content: userContent(text || "Hello", this.#images.urls) }]
      : [];
    const body = this.#body([...this.#untilQuestion(), ...next]);
    return codeSample(kind, baseUrl(), body, this.#needsKey || savedKey() !== "");
  }

  /** Return the conversation as it was sent last; all of it if something new follows. */
  #untilQuestion() {
    const isNew = byId("prompt").value || this.#images.urls.length;
    const asked = this.#messages.findLastIndex((message) => message.role !== "assistant");
    return isNew ? this.#messages : this.#messages.slice(0, asked + 1);
  }

  #sendPrompt() {
    const text = byId("prompt").value;
    if (this.#running || (!text.trim() && !this.#images.urls.length)) return;
    const content = userContent(text, this.#images.urls);
    if (!this.#isValid([{ role: "user", content }])) return;
    this.#images.take();
    byId("prompt").value = "";
    this.#messages.push({ role: "user", content });
    byId("messages").append(userMessage(content));
    this.#answer();
  }

  #sendResults(results) {
    if (this.#running || !this.#isValid([])) return;
    this.#messages.push(...results);
    this.#answer();
  }

  #isValid(next) {
    try {
      this.#body([...this.#messages, ...next]);
      return true;
    } catch {
      return false;
    }
  }

  #regenerate() {
    if (this.#running || !this.#isValid([])) return;
    const shown = byId("messages");
    if (this.#messages.at(-1)?.role === "assistant") this.#messages.pop();
    if (shown.lastElementChild?.classList.contains("assistant")) shown.lastElementChild.remove();
    this.#answer();
  }

  #clear() {
    this.#running?.abort();
    this.#messages = [];
    byId("messages").replaceChildren();
    byId("again").disabled = true;
    this.#images.clear();
    byId("prompt").focus();
  }

  async #answer() {
    const body = streamed(this.#body(this.#messages));
    const conversation = this.#messages;
    const answer = new Answer(performance.now() / 1000);
    const view = new AnswerView(body.model, (results) => this.#sendResults(results));
    byId("messages").append(view.node);
    const running = (this.#running = new AbortController());
    this.#showRunning();
    announce("The answer has started");
    let frame = 0;
    let problem = "";
    try {
      for await (const chunk of streamChat(body, running.signal)) {
        answer.apply(chunk, performance.now() / 1000);
        frame ||= requestAnimationFrame(() => {
          frame = 0;
          this.#follow(() => view.show(answer));
        });
      }
    } catch (error) {
      problem = error.name === "AbortError" ? "Stopped." : error.message;
    }
    cancelAnimationFrame(frame);
    this.#running = null;
    this.#follow(() => view.finish(answer, problem));
    // What was begun can be continued; an answer without a word cannot.
    if (answer.text || (answer.calls.length && !problem)) conversation.push(answer.asMessage());
    this.#showRunning();
    announce(problem || `${body.model}: ${answer.text || "calls a tool"}`);
  }

  /** Change what is shown; stay at its end if that is in view. */
  #follow(change) {
    const box = byId("messages");
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 80;
    change();
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  }

  #showRunning() {
    const isRunning = this.#running !== null;
    const hadFocus = document.activeElement === byId("stop-answer");
    byId("stop-answer").hidden = !isRunning;
    byId("send").disabled = isRunning;
    byId("again").disabled = isRunning || !this.#messages.length;
    // A button that disappears would drop the focus.
    if (hadFocus && !isRunning) byId("prompt").focus();
  }

  #showProblem(text) {
    byId("settings-problem").textContent = text;
  }
}
