// The status view: phases from /readiness, and charts of the last five minutes from /metrics.

import { fetchReadiness, fetchText, savedKey } from "./api.js";
import { shownSeconds } from "./answer.js";
import { Chart } from "./charts.js";
import { byId, element } from "./dom.js";
import { largest, parseMetrics, quantile, rate, total } from "./metrics.js";

const PERIOD_SECONDS = 2;
const MAX_POINTS = 150;
// The width of a chart until there are more.
const MIN_POINTS = 30;
// Quantiles are of this many scrapes: of one alone they would jump.
const WINDOW = 15;

const count = (value) => String(Math.round(value));
const perSecond = (value) => `${value.toFixed(1)}/s`;
const percent = (value) => `${(100 * value).toFixed(0)} %`;
const latency = (name, fraction) => (scrapes) => quantile(scrapes.oldest, scrapes.now, name, fraction);
const growth = (name) => ({ before, now, seconds }) => rate(before, now, name, seconds);

// Title, unit, least top of the scale, value.
const CHARTS = [
  ["Requests in slots", count, 1, ({ now }) => total(now, "num_requests_running")],
  ["Requests waiting", count, 1, ({ now }) => total(now, "num_requests_waiting")],
  ["KV cache pages in use", percent, 1, ({ now }) => largest(now, "kv_cache_usage_perc")],
  ["Tokens generated", perSecond, 1, growth("generation_tokens_total")],
  ["Prompt tokens", perSecond, 1, growth("prompt_tokens_total")],
  ["First token, median", shownSeconds, 0.1, latency("time_to_first_token_seconds", 0.5)],
  ["First token, 95th percentile", shownSeconds, 0.1, latency("time_to_first_token_seconds", 0.95)],
  ["Between tokens, median", shownSeconds, 0.05, latency("inter_token_latency_seconds", 0.5)],
  ["Whole answer, median", shownSeconds, 1, latency("e2e_request_latency_seconds", 0.5)],
];

export class Status {
  #charts = CHARTS.map(([title, unit, max, value]) => ({ chart: new Chart(title, unit, max), value, values: [] }));
  #scrapes = [];
  #refusedKey = null;
  #onPhases;

  /** `onPhases` gets the answer of /readiness after each look at it. */
  constructor(onPhases) {
    this.#onPhases = onPhases;
    byId("charts").append(...this.#charts.map(({ chart }) => chart.node));
    this.#run();
  }

  async #run() {
    for (;;) {
      // A page that nobody sees asks nothing.
      if (!document.hidden) await this.#look();
      await new Promise((resolve) => setTimeout(resolve, PERIOD_SECONDS * 1000));
    }
  }

  async #look() {
    let readiness;
    try {
      readiness = await fetchReadiness();
    } catch {
      await this.#onPhases({ phase: "no answer", models: [] });
      return;
    }
    const metrics = await this.#scrape();
    this.#showModels(readiness, metrics);
    await this.#onPhases(readiness);
  }

  async #scrape() {
    let metrics = new Map();
    // What was refused once is not asked for again every two seconds.
    if (this.#refusedKey === savedKey()) return metrics;
    try {
      metrics = parseMetrics(await fetchText("metrics"));
      byId("status-problem").textContent = "";
    } catch (error) {
      if ([401, 404].includes(error.status)) this.#refusedKey = savedKey();
      const off = "server.metrics is false, so there are no charts";
      byId("status-problem").textContent = error.status === 404 ? off : `no metrics: ${error.message}`;
      return metrics;
    }
    const seconds = performance.now() / 1000;
    this.#scrapes.push({ metrics, seconds });
    if (this.#scrapes.length > WINDOW) this.#scrapes.shift();
    if (this.#scrapes.length < 2) return metrics;
    const before = this.#scrapes.at(-2);
    const given = { now: metrics, before: before.metrics, oldest: this.#scrapes[0].metrics, seconds: seconds - before.seconds };
    for (const each of this.#charts) {
      each.values.push(each.value(given));
      if (each.values.length > MAX_POINTS) each.values.shift();
      const width = Math.max(each.values.length, MIN_POINTS) * PERIOD_SECONDS;
      each.chart.draw(each.values, MIN_POINTS, width < 120 ? `${width} s ago` : `${Math.round(width / 60)} min ago`);
    }
    return metrics;
  }

  #showModels(readiness, metrics) {
    byId("model-rows").replaceChildren(...readiness.models.map((model) => {
      const value = (name) => total(metrics, name, model.name);
      const slots = value("num_slots");
      const pages = value("kv_cache_usage_perc");
      const cells = [
        model.phase,
        model.total ? `${model.done} of ${model.total}` : "",
        slots === null ? "" : `${value("num_requests_running")} of ${slots}`,
        value("num_requests_waiting") ?? "",
        pages === null ? "" : percent(pages),
      ];
      const head = element("th", { scope: "row" }, model.name);
      return element("tr", {}, head, ...cells.map((cell) => element("td", {}, String(cell))));
    }));
  }
}
