// The pure modules of the page. Run by test_page_modules.py, which lays them beside this file.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Answer } from "./answer.js";
import { parseInline, safeUrl } from "./inline.js";
import { parseMarkdown } from "./markdown.js";
import { largest, parseMetrics, quantile, rate, total } from "./metrics.js";
import { chatBody, FieldProblem, streamed, userContent } from "./request.js";
import { codeSample, KEY_PLACEHOLDER } from "./samples.js";
import { SseParser } from "./sse.js";

const FORM = {
  ...{ model: "m", system: "", temperature: "", top_p: "", top_k: "", max_tokens: "", seed: "" },
  ...{ presence_penalty: "", stop: "", schema: "", tools: "" },
};
const HI = [{ role: "user", content: "hi" }];

/** Write inline nodes in brackets, so that a test reads like the text. */
function written(nodes) {
  return nodes.map((node) => {
    if (node.type === "text") return node.text;
    if (node.type === "code") return `{code ${node.text}}`;
    if (node.type === "break") return "{br}";
    const target = node.href ? ` ${node.href}` : "";
    return `{${node.type}${target} ${written(node.children)}}`;
  }).join("");
}

for (const [text, expected] of [
  ["a **b** *c* _d_ __e__ ~~f~~", "a {strong b} {em c} {em d} {strong e} {del f}"],
  ["**a *b* c**", "{strong a {em b} c}"],
  ["snake_case_name and 2 * 3 * 4", "snake_case_name and 2 * 3 * 4"],
  ["**open and `a ** b`", "**open and {code a ** b}"],
  ["`` a ` b `` \\*c\\*", "{code a ` b} *c*"],
  ["[a](https://x.org/b?c=1)", "{link https://x.org/b?c=1 a}"],
  ["[a](javascript:alert(1)) b", "{span a (javascript:alert(1)}) b"],
  ["[a](data:text/html,x)", "{span a (data:text/html,x)}"],
  ["[a](//x.org) [b](/c)", "{span a (//x.org)} {span b (/c)}"],
  ["![alt](https://x.org/i.png)", "{link https://x.org/i.png alt}"],
  ["see https://x.org/a, or not", "see {link https://x.org/a https://x.org/a}, or not"],
  ["[https://a.org](https://b.org)", "{link https://b.org/ https://a.org}"],
  ["<b onclick=x>", "<b onclick=x>"],
  ["a\nb", "a{br}b"],
]) {
  test(`inline: ${text}`, () => assert.equal(written(parseInline(text)), expected));
}

test("only absolute http and https addresses may be followed", () => {
  for (const bad of ["javascript:x", " JavaScript:x", "java\nscript:x", "file:///x", "http:x", "x", "https://"]) {
    assert.equal(safeUrl(bad), null, bad);
  }
  assert.equal(safeUrl("HTTPS://x.org"), "https://x.org/");
});

function outline(blocks) {
  return blocks.map((block) => {
    if (block.type === "code") return `code(${block.language}|${block.text})`;
    if (block.type === "list") {
      const items = block.items.map((item) => outline(item)).join(" ; ");
      return `${block.ordered ? `list ${block.start}` : "list"}[${items}]`;
    }
    if (block.type === "quote") return `quote[${outline(block.blocks)}]`;
    if (block.type === "table") {
      const rows = [block.head, ...block.rows].map((row) => row.map(written).join(","));
      return `table(${block.align}|${rows.join("/")})`;
    }
    if (block.type === "rule") return "rule";
    return `${block.type}${block.level ?? ""}(${written(block.inline)})`;
  }).join(" ");
}

for (const [text, expected] of [
  ["# A\n### B #\ntext\nmore\n\nnext", "heading1(A) heading3(B) paragraph(text{br}more) paragraph(next)"],
  ["- a\n- b\n  - c\n  - d\n- e", "list[paragraph(a) ; paragraph(b) list[paragraph(c) ; paragraph(d)] ; paragraph(e)]"],
  ["3. a\n4. b", "list 3[paragraph(a) ; paragraph(b)]"],
  ["1. a\n\n   more\n\n2. b", "list 1[paragraph(a) paragraph(more) ; paragraph(b)]"],
  ["1. a\n   ```py\n   x\n     y\n   ```", "list 1[paragraph(a) code(py|x\n  y)]"],
  ["```js\na\n\n<b>\n```\nc", "code(js|a\n\n<b>) paragraph(c)"],
  ["```\nnot ended", "code(|not ended)"],
  ["> a\n> - b\n\nc", "quote[paragraph(a) list[paragraph(b)]] paragraph(c)"],
  ["| a | b |\n|:-:|--:|\n| 1 | `x|y` |\n| 2 |", "table(center,right|a,b/1,{code x|y}/2,)"],
  ["a | b\n--- | ---\n1 \\| 2 | 3", "table(left,left|a,b/1 | 2,3)"],
  ["a | b, no table", "paragraph(a | b, no table)"],
  ["---\n* * *", "rule rule"],
  ["- [ ] a", "list[paragraph([ ] a)]"],
]) {
  test(`blocks: ${JSON.stringify(text)}`, () => assert.equal(outline(parseMarkdown(text)), expected));
}

test("hostile Markdown takes little time and stack", () => {
  const hostile = ["*a ", "**a ", "_a ", "`", "[", "[a](", "> ", "- ", "|", "~~a", "![", "<", "\\", "a|b\n-|-\n", "``a`"];
  for (const piece of hostile) {
    const begin = performance.now();
    parseMarkdown(piece.repeat(20_000));
    parseMarkdown(`${piece}\n`.repeat(5_000));
    const seconds = (performance.now() - begin) / 1000;
    assert.ok(seconds < 5, `${piece}: ${seconds} s`);
  }
});

test("events are whole however the stream is cut", () => {
  const stream = ': ping\n\ndata: {"a": 1}\n\nevent: x\ndata: b\ndata: c\n\n\ndata: [DONE]\n\n';
  const expected = ['{"a": 1}', "b\nc", "[DONE]"];
  for (const text of [stream, stream.replaceAll("\n", "\r\n")]) {
    for (let size = 1; size <= text.length; size += 1) {
      const parser = new SseParser();
      const found = [];
      for (let at = 0; at < text.length; at += size) found.push(...parser.push(text.slice(at, at + size)));
      // What follows a last carriage return is not known yet.
      found.push(...parser.push(":\n"));
      assert.deepEqual(found, expected, `pieces of ${size}`);
    }
  }
});

const METRICS = `# HELP vinfer:num_requests_running x
vinfer:num_requests_running{model_name="a"} 2.0
vinfer:num_requests_running{model_name="b\\"},{"} 3.0
vllm:num_requests_running{model_name="a"} 9.0
vllm:only_there 4
vinfer:n_total{model_name="a"} 1e+03
vinfer:t_bucket{le="0.1",model_name="a"} 1.0
vinfer:t_bucket{le="0.2",model_name="a"} 3.0
vinfer:t_bucket{le="+Inf",model_name="a"} 4.0
python_info{version="3"} 1.0
`;

test("metrics", () => {
  const metrics = parseMetrics(METRICS);
  assert.equal(total(metrics, "num_requests_running"), 5);
  assert.equal(total(metrics, "num_requests_running", 'b"},{'), 3);
  assert.equal(total(metrics, "num_requests_running", "c"), null);
  assert.equal(largest(metrics, "num_requests_running"), 3);
  assert.equal(total(metrics, "only_there"), 4);
  assert.equal(total(metrics, "nothing"), null);
  const later = parseMetrics(METRICS.replace("1e+03", "1100"));
  assert.equal(rate(metrics, later, "n_total", 2), 50);
  assert.equal(rate(later, metrics, "n_total", 2), 0);
});

test("quantiles are of what came between two scrapes", () => {
  const before = parseMetrics(METRICS);
  const after = parseMetrics(METRICS.replace('"} 3.0\nvinfer:t_bucket{le="+Inf",model_name="a"} 4.0', '"} 7.0\nvinfer:t_bucket{le="+Inf",model_name="a"} 8.0'));
  assert.equal(quantile(before, before, "t", 0.5), null);
  assert.ok(Math.abs(quantile(before, after, "t", 0.5) - 0.15) < 1e-9);
  // From nothing: 1 below 0.1, 2 to 0.2, 1 beyond.
  assert.equal(quantile(new Map(), before, "t", 0.25), 0.1);
  assert.equal(quantile(new Map(), before, "t", 1), 0.2);
});

test("fields that are empty are left out, others are of their type", () => {
  assert.deepEqual(chatBody(FORM, HI), { model: "m", messages: HI });
  const body = chatBody({
    ...FORM,
    ...{ system: "be short", temperature: "0", top_k: "3", stop: "a\n\nb", schema: '{"type": "object"}' },
    tools: '[{"name": "f"}, {"type": "function", "function": {"name": "g"}}]',
  }, HI);
  assert.deepEqual(body.messages, [{ role: "system", content: "be short" }, ...HI]);
  assert.deepEqual([body.temperature, body.top_k, body.stop], [0, 3, ["a", "b"]]);
  assert.deepEqual(body.response_format.json_schema, { name: "answer", schema: { type: "object" }, strict: true });
  assert.deepEqual(body.tools.map((tool) => tool.function.name), ["f", "g"]);
  assert.equal(streamed(body).stream_options.include_usage, true);
});

test("a wrong field is named", () => {
  for (const [field, value] of [["temperature", "warm"], ["schema", "{"], ["schema", "[]"], ["tools", "{}"], ["seed", "1e999"]]) {
    const isNamed = (error) => error instanceof FieldProblem && error.field === field;
    assert.throws(() => chatBody({ ...FORM, [field]: value }, HI), isNamed, field);
  }
});

test("images come before the text", () => {
  const image = { type: "image_url", image_url: { url: "data:x" } };
  assert.equal(userContent("a", []), "a");
  assert.deepEqual(userContent("a", ["data:x"]), [image, { type: "text", text: "a" }]);
  assert.deepEqual(userContent("", ["data:x"]), [image]);
});

test("an answer is put together, with its times", () => {
  const answer = new Answer(10);
  const push = (delta, finish_reason, seconds) => answer.apply({ choices: [{ delta, finish_reason }] }, seconds);
  push({ role: "assistant", content: "" }, null, 10.1);
  push({ reasoning_content: "hm" }, null, 10.5);
  push({ content: "a" }, null, 11);
  push({ content: "b" }, null, 11.5);
  push({}, "stop", 12);
  assert.equal(answer.tokensPerSecond, null);
  answer.apply({ choices: [], usage: { prompt_tokens: 3, completion_tokens: 5 } }, 12);
  assert.deepEqual([answer.text, answer.reasoning, answer.ttftSeconds, answer.tokensPerSecond], ["ab", "hm", 0.5, 4]);
  assert.deepEqual(answer.asMessage(), { role: "assistant", content: "ab" });
  assert.match(answer.summary(), /^first token after 500 ms · 4\.0 tokens\/s · 3 prompt \+ 5 tokens$/);
  assert.throws(() => answer.apply({ error: { message: "no" } }, 12), /^Error: no$/);
});

test("calls are put together by their index", () => {
  const answer = new Answer(0);
  const push = (piece) => answer.apply({ choices: [{ delta: { tool_calls: [piece] }, finish_reason: null }] }, 1);
  push({ index: 0, id: "x", function: { name: "f", arguments: "" } });
  push({ index: 0, function: { arguments: '{"a"' } });
  push({ index: 1, id: "y", function: { name: "g", arguments: "{}" } });
  push({ index: 0, function: { arguments: ": 1}" } });
  const { content, tool_calls: calls } = answer.asMessage();
  assert.equal(content, null);
  assert.deepEqual(calls.map((call) => [call.id, call.function.name, call.function.arguments]), [
    ["x", "f", '{"a": 1}'], ["y", "g", "{}"],
  ]);
});

test("a sample holds a placeholder only if a key is needed", () => {
  for (const kind of ["curl", "python", "javascript"]) {
    assert.ok(codeSample(kind, "http://h:1/", { model: "m" }, true).includes(KEY_PLACEHOLDER), kind);
    assert.ok(!codeSample(kind, "http://h:1/", { model: "m" }, false).includes(KEY_PLACEHOLDER), kind);
  }
});

test("the sample in JavaScript runs and sends the body", async () => {
  const body = { model: "m", messages: [{ role: "user", content: "it's `${1}` \"x\"\n</script> é \u2028" }], top_k: 2 };
  const sent = [];
  const fetched = async (url, { headers, body: text }) => {
    sent.push(url, headers.Authorization, JSON.parse(text));
    return { json: async () => ({ choices: [{ message: { content: "ok" } }] }) };
  };
  const AsyncFunction = (async () => {}).constructor;
  const run = new AsyncFunction("fetch", "console", codeSample("javascript", "http://h:1/", body, true));
  await run(fetched, { log() {} });
  assert.deepEqual(sent, ["http://h:1/v1/chat/completions", `Bearer ${KEY_PLACEHOLDER}`, body]);
});
