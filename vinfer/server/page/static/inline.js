// Markdown within a line: emphasis, code, links. Pure: returns plain objects, never HTML.
//
// Text is hostile: each search for an end that fails is remembered, so that time stays linear.

const MAX_DEPTH = 8;
const DELIMITERS = [["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];
const WORD = /[\p{L}\p{N}]/u;
const BARE_URL = /https?:\/\/[^\s<>"`]+/y;

/** Return the address if it may be followed: an absolute http or https URL; else null. */
export function safeUrl(text) {
  if (!/^https?:\/\//i.test(text.trim())) return null;
  try {
    const url = new URL(text.trim());
    return url.protocol === "http:" || url.protocol === "https:" ? url.href : null;
  } catch {
    return null;
  }
}

/** Return nodes: {type, text} for text and code, {type, children} for emphasis, {type: "break"}, links. */
export function parseInline(text, depth = 0) {
  const nodes = [];
  const dead = new Set();
  let plain = "";
  const flush = () => {
    if (plain) nodes.push({ type: "text", text: plain });
    plain = "";
  };
  let at = 0;
  while (at < text.length) {
    const found = depth < MAX_DEPTH ? nodeAt(text, at, depth, dead) : null;
    if (found) {
      if (typeof found.node === "string") plain += found.node;
      else {
        flush();
        nodes.push(found.node);
      }
      at = found.end;
    } else {
      plain += text[at];
      at += 1;
    }
  }
  flush();
  return nodes;
}

function nodeAt(text, at, depth, dead) {
  const char = text[at];
  if (char === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) return { node: text[at + 1], end: at + 2 };
  if (char === "\n") return { node: { type: "break" }, end: at + 1 };
  if (char === "`") return codeAt(text, at, dead);
  if (char === "[") return linkAt(text, at, depth, dead);
  if (char === "!" && text[at + 1] === "[") return linkAt(text, at + 1, depth, dead);
  if (char === "h" && !WORD.test(text[at - 1] ?? "")) return bareUrlAt(text, at);
  if (char === "*" || char === "_" || char === "~") return emphasisAt(text, at, depth, dead);
  return null;
}

function codeAt(text, at, dead) {
  let ticks = "`";
  while (text[at + ticks.length] === "`") ticks += "`";
  let end = dead.has(ticks) ? -1 : text.indexOf(ticks, at + ticks.length);
  // Only a run of the same length ends it.
  while (end >= 0 && (text[end + ticks.length] === "`" || text[end - 1] === "`")) {
    end += 1;
    while (text[end] === "`") end += 1;
    end = text.indexOf(ticks, end);
  }
  if (end < 0) {
    dead.add(ticks);
    return { node: ticks, end: at + ticks.length };
  }
  const inside = text.slice(at + ticks.length, end).replace(/\n/g, " ");
  const trimmed = /^ .*[^ ].* $/.test(inside) ? inside.slice(1, -1) : inside;
  return { node: { type: "code", text: trimmed }, end: end + ticks.length };
}

function linkAt(text, at, depth, dead) {
  const middle = dead.has("](") ? -1 : text.indexOf("](", at);
  if (middle < 0) {
    dead.add("](");
    return null;
  }
  // Of `[a [b](c)`, the inner one is the link.
  if (text.lastIndexOf("[", middle) !== at) return null;
  const end = dead.has(")") ? -1 : text.indexOf(")", middle);
  if (end < 0) {
    dead.add(")");
    return null;
  }
  const label = text.slice(at + 1, middle);
  const [target] = text.slice(middle + 2, end).trim().replace(/^<(.*)>$/, "$1").split(/\s/);
  const href = safeUrl(target);
  const children = parseInline(label || target, depth + 1).flatMap(withoutLink);
  // A target that may not be followed is shown, not hidden behind its label.
  if (href === null) children.push({ type: "text", text: ` (${target})` });
  return { node: href === null ? { type: "span", children } : { type: "link", href, children }, end: end + 1 };
}

function withoutLink(node) {
  return node.type === "link" ? node.children : [node];
}

function bareUrlAt(text, at) {
  BARE_URL.lastIndex = at;
  const match = BARE_URL.exec(text);
  if (!match) return null;
  const written = match[0].replace(/[.,;:!?'")\]}*_]+$/, "");
  const href = safeUrl(written);
  if (href === null) return null;
  return { node: { type: "link", href, children: [{ type: "text", text: written }] }, end: at + written.length };
}

function emphasisAt(text, at, depth, dead) {
  for (const [mark, type] of DELIMITERS) {
    if (!text.startsWith(mark, at) || dead.has(mark)) continue;
    const start = at + mark.length;
    if (/\s/.test(text[start] ?? " ") || (mark[0] === "_" && WORD.test(text[at - 1] ?? ""))) continue;
    const end = closing(text, start + 1, mark);
    if (end < 0) {
      dead.add(mark);
      continue;
    }
    return { node: { type, children: parseInline(text.slice(start, end), depth + 1) }, end: end + mark.length };
  }
  // A run that opens nothing is text as a whole.
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return { node: text.slice(at, end), end };
}

function closing(text, from, mark) {
  for (let end = text.indexOf(mark, from); end >= 0; end = text.indexOf(mark, end + 1)) {
    if (/[\s\\]/.test(text[end - 1])) continue;
    const next = text[end + mark.length] ?? "";
    if (mark.length === 1 && (next === mark || text[end - 1] === mark)) continue;
    if (mark[0] === "_" && WORD.test(next)) continue;
    return end;
  }
  return -1;
}
