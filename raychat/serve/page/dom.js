// Building and changing the document. Text becomes text nodes, so nothing here can turn a string into markup.

// Return a new element. A name that the element has is a property (onclick, textContent), any other an attribute.
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

// Return an icon of the sprite in index.html.
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

// Return a button that shows an icon; its label is for screen readers and the tooltip.
export function iconButton(name, label, onclick, properties = {}) {
  return element(
    "button",
    { type: "button", class: "icon-button", title: label, "aria-label": label, onclick, ...properties },
    icon(name),
  );
}

// Make a box show these nodes and keep every old node that still fits, so that a selection, the focus and a sideways
// scroll in it survive while an answer grows.
export function patch(box, nodes) {
  const old = [...box.childNodes];
  nodes.forEach((node, i) => {
    if (!old[i]) box.append(node);
    else if (!patchNode(old[i], node)) old[i].replaceWith(node);
  });
  old.slice(nodes.length).forEach((node) => node.remove());
}

function patchNode(old, node) {
  if (old.nodeName !== node.nodeName) return false;
  if (old.nodeType === Node.TEXT_NODE) {
    if (node.data.startsWith(old.data)) old.appendData(node.data.slice(old.data.length));
    else old.data = node.data;
    return true;
  }
  if (!sameAttributes(old, node)) return false;
  patch(old, [...node.childNodes]);
  return true;
}

function sameAttributes(a, b) {
  return (
    a.attributes.length === b.attributes.length && [...a.attributes].every((x) => b.getAttribute(x.name) === x.value)
  );
}

// Copy a text. Browsers offer the clipboard only to https and localhost; elsewhere an old command still works.
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = element("textarea", { value: text, class: "offscreen" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// Copy, and show on the button that it is done.
export async function copyFrom(button, text) {
  await copy(text);
  button.replaceChildren(icon("check"));
  announce("Copied");
  setTimeout(() => button.replaceChildren(icon("copy")), 1200);
}

export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// Have a screen reader say something once.
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

// Return a message of a program as the beginning of a sentence.
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

let noticeTimer = 0;

// Show a short message above the input for a few seconds; an error stays until the next one. undo: offer to take back.
export function notice(text, { error = false, undo = null } = {}) {
  const box = document.getElementById("notice");
  const hide = () => (box.hidden = true);
  const button =
    undo &&
    element(
      "button",
      {
        type: "button",
        class: "text-button",
        onclick: () => {
          undo();
          hide();
        },
      },
      "Undo",
    );
  box.replaceChildren(element("span", {}, sentence(text)), button ?? iconButton("close", "Close this message", hide));
  box.classList.toggle("error", error);
  box.hidden = false;
  clearTimeout(noticeTimer);
  if (!error) noticeTimer = setTimeout(hide, 6000);
}
