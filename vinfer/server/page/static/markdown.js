// Markdown to blocks: headings, lists, quotes, code, tables, rules, paragraphs. Pure: returns plain objects.

import { parseInline } from "./inline.js";

const MAX_DEPTH = 8;
const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const DASHES = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;

/** Return the blocks of a text; one that is cut off in the middle of a block gives what there is of it. */
export function parseMarkdown(text) {
  return parseBlocks(text.replace(/\r\n?/g, "\n").split("\n"), 0);
}

function parseBlocks(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [block, end] = blockAt(lines, at, depth);
    blocks.push(block);
    at = end;
  }
  return blocks;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line)) return codeAt(lines, at);
  const heading = HEADING.exec(line);
  if (heading) return [{ type: "heading", level: heading[1].length, inline: parseInline(heading[2]) }, at + 1];
  if (RULE.test(line)) return [{ type: "rule" }, at + 1];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return quoteAt(lines, at, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return listAt(lines, at, depth);
  if (isTable(lines, at)) return tableAt(lines, at);
  return paragraphAt(lines, at, depth);
}

function codeAt(lines, at) {
  const [, indent, fence, language] = FENCE.exec(lines[at]);
  const inside = [];
  let end = at + 1;
  while (end < lines.length && !isFenceEnd(lines[end], fence)) {
    inside.push(lines[end].startsWith(indent) ? lines[end].slice(indent.length) : lines[end].trimStart());
    end += 1;
  }
  return [{ type: "code", language: language.trim().split(/\s/)[0], text: inside.join("\n") }, end + 1];
}

function isFenceEnd(line, fence) {
  const found = line.trim();
  return found.length >= fence.length && found === fence[0].repeat(found.length);
}

function quoteAt(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inside = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [{ type: "quote", blocks: parseBlocks(inside, depth + 1) }, end];
}

function listAt(lines, at, depth) {
  const [, indent, marker] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(marker);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || item[1].length > indent.length + 1 || /\d/.test(item[2]) !== ordered || RULE.test(lines[end])) break;
    const width = item[1].length + item[2].length + 1;
    const inside = [item[3]];
    for (end += 1; end < lines.length && belongs(lines, end, item[1].length); end += 1) {
      inside.push(unindented(lines[end], width));
    }
    items.push(parseBlocks(inside, depth + 1));
    while (end < lines.length && !lines[end].trim() && ITEM.test(lines[end + 1] ?? "")) end += 1;
  }
  return [{ type: "list", ordered, start: ordered ? parseInt(marker, 10) : 1, items }, end];
}

/** Return whether a line continues an item whose marker stands after `indent` spaces. */
function belongs(lines, at, indent) {
  const line = lines[at];
  if (!line.trim()) return /^\s/.test(lines[at + 1] ?? "") && indentOf(lines[at + 1]) > indent + 1;
  if (indentOf(line) > indent + 1) return true;
  return lines[at - 1].trim() !== "" && !startsBlock(line);
}

function indentOf(line) {
  return line.length - line.trimStart().length;
}

function unindented(line, width) {
  return line.slice(Math.min(indentOf(line), width));
}

function startsBlock(line) {
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((form) => form.test(line));
}

function isTable(lines, at) {
  const dashes = lines[at + 1] ?? "";
  return lines[at].includes("|") && dashes.includes("-") && DASHES.test(dashes)
    && cells(dashes).length === cells(lines[at]).length;
}

function tableAt(lines, at) {
  const align = cells(lines[at + 1]).map((cell) => {
    if (cell.endsWith(":")) return cell.startsWith(":") ? "center" : "right";
    return "left";
  });
  const row = (line) => align.map((_, column) => parseInline(cells(line)[column] ?? ""));
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  return [{ type: "table", align, head: row(lines[at]), rows: lines.slice(at + 2, end).map(row) }, end];
}

/** Split a row at each bar that is neither escaped nor in code. */
function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  const found = [""];
  let inCode = false;
  for (let at = 0; at < inner.length; at += 1) {
    if (inner[at] === "`") inCode = !inCode;
    if (inner[at] === "\\" && inner[at + 1] === "|") {
      found[found.length - 1] += "|";
      at += 1;
    } else if (inner[at] === "|" && !inCode) found.push("");
    else found[found.length - 1] += inner[at];
  }
  return found.map((cell) => cell.trim());
}

function paragraphAt(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !isTable(lines, end)) {
    if (startsBlock(lines[end]) && (depth < MAX_DEPTH || FENCE.test(lines[end]))) break;
    end += 1;
  }
  const text = lines.slice(at, end).map((line) => line.trim()).join("\n");
  return [{ type: "paragraph", inline: parseInline(text) }, end];
}
