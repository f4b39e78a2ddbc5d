// Builds DOM nodes from plain values. Text is always a text node: nothing here or elsewhere parses HTML.

/** Return the element with this id. */
export const byId = (id) => document.getElementById(id);

/** Build an element: `element("p", {className: "x"}, "text", node)`. Unknown names become attributes. */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Return a button that copies what `text` returns, and says so. */
export function copyButton(label, text) {
  const button = element("button", { type: "button" }, label);
  button.addEventListener("click", () => copy(button, text));
  return button;
}

/** Copy what `text` returns; the button shows for a moment whether it worked. */
export async function copy(button, text) {
  const label = button.textContent;
  let said = "Copied";
  try {
    await navigator.clipboard.writeText(text());
  } catch (error) {
    said = error.name === "FieldProblem" ? "Not copied" : "Copying was refused";
  }
  button.textContent = said;
  announce(said);
  setTimeout(() => (button.textContent = label), 1500);
}

/** Tell screen readers something, once. */
export function announce(text) {
  byId("live").textContent = text;
}
