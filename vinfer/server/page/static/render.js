// Parsed Markdown as DOM nodes.

import { copyButton, element } from "./dom.js";
import { parseMarkdown } from "./markdown.js";

const SIMPLE = { strong: "strong", em: "em", del: "del", span: "span" };

/** Shows a Markdown text that grows; blocks that have not changed keep their nodes. */
export class MarkdownView {
  node = element("div", { className: "markdown" });
  #shown = [];

  show(text) {
    const blocks = parseMarkdown(text).map((block) => [JSON.stringify(block), block]);
    let same = 0;
    while (same < blocks.length && blocks[same][0] === this.#shown[same]) same += 1;
    while (this.node.children.length > same) this.node.lastChild.remove();
    this.node.append(...blocks.slice(same).map(([, block]) => blockNode(block)));
    this.#shown = blocks.map(([key]) => key);
  }
}

function blockNode(block) {
  switch (block.type) {
    case "heading":
      // Below the heading of the message, which is of level 3.
      return element(`h${Math.min(6, Math.max(4, block.level + 2))}`, {}, ...inlineNodes(block.inline));
    case "code":
      return codeNode(block);
    case "quote":
      return element("blockquote", {}, ...block.blocks.map(blockNode));
    case "list":
      return listNode(block);
    case "table":
      return tableNode(block);
    case "rule":
      return element("hr");
    default:
      return element("p", {}, ...inlineNodes(block.inline));
  }
}

function codeNode({ language, text }) {
  const name = language || "code";
  const pre = element("pre", { tabIndex: 0, role: "region", "aria-label": `${name} block` }, element("code", {}, text));
  const bar = element("div", { className: "bar" }, element("span", {}, name), copyButton("Copy", () => text));
  return element("div", { className: "code" }, bar, pre);
}

function listNode({ ordered, start, items }) {
  const nodes = items.map((blocks) => {
    const [first, ...rest] = blocks;
    // The first paragraph of an item stands beside its marker.
    const head = first?.type === "paragraph" ? inlineNodes(first.inline) : first ? [blockNode(first)] : [];
    return element("li", {}, ...head, ...rest.map(blockNode));
  });
  return element(ordered ? "ol" : "ul", ordered ? { start } : {}, ...nodes);
}

function tableNode({ align, head, rows }) {
  const row = (tag, cells) =>
    element("tr", {}, ...cells.map((cell, at) => element(tag, { className: align[at] }, ...inlineNodes(cell))));
  const table = element("table", {},
    element("thead", {}, row("th", head)), element("tbody", {}, ...rows.map((cells) => row("td", cells))));
  return element("div", { className: "wide", tabIndex: 0, role: "region", "aria-label": "Table" }, table);
}

function inlineNodes(nodes) {
  return nodes.map((node) => {
    if (node.type === "text") return document.createTextNode(node.text);
    if (node.type === "code") return element("code", {}, node.text);
    if (node.type === "break") return element("br");
    if (node.type === "link") {
      return element("a", { href: node.href, target: "_blank", rel: "noopener noreferrer" }, ...inlineNodes(node.children));
    }
    return element(SIMPLE[node.type], {}, ...inlineNodes(node.children));
  });
}
