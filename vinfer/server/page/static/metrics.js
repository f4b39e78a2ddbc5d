// Prometheus' text format, and what charts need from it. Pure.

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/** Return a map from name, without the prefix `vinfer:` or `vllm:`, to samples {labels, value}. */
export function parseMetrics(text) {
  const named = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : SAMPLE.exec(line);
    if (!match) continue;
    const samples = named.get(match[1]) ?? [];
    samples.push({ labels: labelsOf(match[2] ?? ""), value: Number(match[3].replace("Inf", "Infinity")) });
    named.set(match[1], samples);
  }
  // A server may write the same metric under both names.
  const metrics = new Map();
  for (const prefix of ["vllm:", "vinfer:"]) {
    for (const [name, samples] of named) {
      if (name.startsWith(prefix)) metrics.set(name.slice(prefix.length), samples);
    }
  }
  return metrics;
}

function labelsOf(text) {
  const labels = {};
  for (const [, name, value] of text.matchAll(LABEL)) {
    labels[name] = value.replace(/\\(.)/g, (_, char) => (char === "n" ? "\n" : char));
  }
  return labels;
}

/** Return the sum of a metric over all models, or of one; null without samples. */
export function total(metrics, name, model = null) {
  const samples = (metrics.get(name) ?? []).filter(({ labels }) => model === null || labels.model_name === model);
  return samples.length ? samples.reduce((sum, sample) => sum + sample.value, 0) : null;
}

/** Return the largest value of a metric; null without samples. */
export function largest(metrics, name) {
  const values = (metrics.get(name) ?? []).map((sample) => sample.value);
  return values.length ? Math.max(...values) : null;
}

/** Return how much a counter grew per second between two scrapes; a restart counts as no growth. */
export function rate(before, after, name, seconds) {
  const [old, now] = [total(before, name), total(after, name)];
  if (old === null || now === null || seconds <= 0) return null;
  return Math.max(0, now - old) / seconds;
}

/** Return a quantile of what a histogram observed between two scrapes; null if it observed nothing. */
export function quantile(before, after, name, fraction) {
  const old = cumulative(before, name);
  const buckets = [...cumulative(after, name)]
    .map(([edge, count]) => [edge, count - (old.get(edge) ?? 0)])
    .sort(([a], [b]) => a - b);
  const num = buckets.at(-1)?.[1] ?? 0;
  if (num <= 0) return null;
  const rank = fraction * num;
  let [lower, below] = [0, 0];
  for (const [edge, count] of buckets) {
    if (count >= rank) {
      // Beyond the last edge nothing is known but that edge.
      if (edge === Infinity) return lower;
      return lower + ((edge - lower) * (rank - below)) / Math.max(count - below, 1e-9);
    }
    [lower, below] = [edge, count];
  }
  return lower;
}

function cumulative(metrics, name) {
  const counts = new Map();
  for (const { labels, value } of metrics.get(`${name}_bucket`) ?? []) {
    const edge = labels.le === "+Inf" ? Infinity : Number(labels.le);
    counts.set(edge, (counts.get(edge) ?? 0) + value);
  }
  return counts;
}
