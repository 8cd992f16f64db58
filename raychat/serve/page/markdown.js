// Markdown as models write it, turned into nodes: paragraphs, headings, lists, tables, quotes, code, bold, italics and
// links. Everything else, HTML included, stays text.

import { copyFrom, element, icon } from "./dom.js";

export const CHIP = "\uFFFC"; // Unicode's object replacement character: where a text holds a tool call
const MAX_DEPTH = 6; // of lists and quotes in each other; deeper ones are paragraphs

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const LINE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)(?:[-*+]|(\d{1,9})[.)])(?: +|$)/;

// A star between letters or digits is a multiplication more often than emphasis, unlike in CommonMark.
const INLINE = new RegExp(
  [
    /(?<ticks>`+)(?<code>[^`\n]+)\k<ticks>/,
    /\[(?<label>[^[\]\n]+)\]\((?<href>https?:\/\/[^\s()<>]+)\)/,
    /(?<url>https?:\/\/[^\s<>()\uFFFC]*[^\s<>().,;:!?'"*\uFFFC])/,
    /(?<![\w*])\*\*(?! )(?<bold>(?:[^*\n]|\*(?!\*))+)(?<! )\*\*(?!\w)/,
    /(?<![\w_])__(?! )(?<bold2>[^_\n]+)(?<! )__(?!\w)/,
    /(?<![\w*])\*(?! )(?<italic>[^*\n]+)(?<! )\*(?![\w*])/,
    /(?<![\w_])_(?! )(?<italic2>[^_\n]+)(?<! )_(?!\w)/,
    /~~(?<struck>[^~\n]+)~~/,
    /(?<newline>\n)/,
    new RegExp(`(?<chip>${CHIP})`),
  ]
    .map((rule) => rule.source)
    .join("|"),
  "g",
);

// Return the nodes of a text. chips: one node for every CHIP in the text, in order.
export function markdown(text, chips = []) {
  return blocks(text.split(/\r\n?|\n/), [...chips], 0);
}

function blocks(lines, chips, depth) {
  const nodes = [];
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [node, next] = block(lines, at, chips, depth);
    nodes.push(node);
    at = next;
  }
  return nodes;
}

// Return the block that begins at a line, and the line after it.
function block(lines, at, chips, depth) {
  const [line] = lines.slice(at, at + 1);
  if (FENCE.test(line)) return fence(lines, at, chips);
  const heading = HEADING.exec(line);
  if (heading) {
    const level = Math.min(heading[1].length + 2, 6); // h1 and h2 are the page's own
    return [element(`h${level}`, {}, ...inline(heading[2].replace(/ +#* *$/, ""), chips)), at + 1];
  }
  if (LINE.test(line)) return [element("hr"), at + 1];
  if (isTable(lines, at)) return table(lines, at, chips);
  if (depth < MAX_DEPTH && QUOTE.test(line)) return quote(lines, at, chips, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return list(lines, at, chips, depth);
  return paragraph(lines, at, chips);
}

function fence(lines, at, chips) {
  const [, ticks, language] = FENCE.exec(lines[at]);
  let end = at + 1;
  while (end < lines.length && !closes(lines[end].trim(), ticks)) end += 1;
  const code = element("code", {}, written(lines.slice(at + 1, end).join("\n"), chips));
  const button = element(
    "button",
    { type: "button", class: "icon-button copy-code", title: "Copy code", "aria-label": "Copy code" },
    icon("copy"),
  );
  button.onclick = () => copyFrom(button, code.textContent);
  const head = element("div", { class: "code-head" }, element("span", {}, language || "code"), button);
  return [element("div", { class: "code-block" }, head, element("pre", { tabIndex: 0 }, code)), end + 1];
}

const closes = (line, ticks) => line.length >= ticks.length && line === ticks[0].repeat(line.length);

function quote(lines, at, chips, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [element("blockquote", {}, ...blocks(inner, chips, depth + 1)), end];
}

function list(lines, at, chips, depth) {
  const [, indent, number] = ITEM.exec(lines[at]);
  const same = (line) => {
    const found = ITEM.exec(line ?? "");
    return found && found[1] === indent && (found[2] === undefined) === (number === undefined) ? found : null;
  };
  const items = [];
  for (let found; (found = same(lines[at]));) {
    const inner = [lines[at].slice(found[0].length)];
    const margin = new RegExp(`^ {0,${found[0].length}}`);
    for (at += 1; at < lines.length && indentOf(lines, at) > indent.length; at++)
      inner.push(lines[at].replace(margin, ""));
    while (at + 1 < lines.length && !lines[at].trim() && (same(lines[at + 1]) || !lines[at + 1].trim())) at += 1;
    const [first, ...rest] = blocks(inner, chips, depth + 1);
    items.push(
      element("li", {}, ...(first?.nodeName === "P" ? [...first.childNodes, ...rest] : first ? [first, ...rest] : [])),
    );
  }
  return [element(number === undefined ? "ul" : "ol", number > 1 ? { start: Number(number) } : {}, ...items), at];
}

// Return the indent of a line; an empty line has that of the next one.
function indentOf(lines, at) {
  while (at < lines.length && !lines[at].trim()) at += 1;
  return at < lines.length ? lines[at].search(/\S/) : 0;
}

const cells = (line) =>
  line
    .trim()
    .replace(/^\||\|$/g, "")
    .split("|")
    .map((cell) => cell.trim());

function isTable(lines, at) {
  const rule = lines[at + 1];
  if (!lines[at].includes("|") || !rule?.includes("-")) return false;
  return cells(rule).every((cell) => /^:?-+:?$/.test(cell)) && cells(rule).length === cells(lines[at]).length;
}

function table(lines, at, chips) {
  const aligned = cells(lines[at + 1]).map((rule) =>
    rule.endsWith(":") ? (rule.startsWith(":") ? "center" : "right") : undefined,
  );
  const row = (line, tag) =>
    element(
      "tr",
      {},
      ...aligned.map((align, i) => element(tag, { class: align }, ...inline(cells(line)[i] ?? "", chips))),
    );
  const head = element("thead", {}, row(lines[at], "th"));
  const rows = [];
  for (at += 2; at < lines.length && lines[at].includes("|"); at++) rows.push(row(lines[at], "td"));
  return [
    element("div", { class: "table", tabIndex: 0 }, element("table", {}, head, element("tbody", {}, ...rows))),
    at,
  ];
}

function paragraph(lines, at, chips) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !interrupts(lines, end)) end += 1;
  return [
    element(
      "p",
      {},
      ...inline(
        lines
          .slice(at, end)
          .map((line) => line.trim())
          .join("\n"),
        chips,
      ),
    ),
    end,
  ];
}

// Tell whether a line ends the paragraph above it. A numbered list does only when it begins at 1, since a sentence may
// have a line that begins with "1986." in it.
function interrupts(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  return (
    [FENCE, HEADING, LINE, QUOTE].some((rule) => rule.test(line)) ||
    (item && (item[2] ?? "1") === "1") ||
    isTable(lines, at)
  );
}

// Return the nodes of a text inside a block.
function inline(text, chips) {
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > at) nodes.push(document.createTextNode(text.slice(at, match.index)));
    nodes.push(span(match.groups, match[0], chips));
    at = match.index + match[0].length;
  }
  if (at < text.length) nodes.push(document.createTextNode(text.slice(at)));
  return nodes;
}

function span(found, whole, chips) {
  if (found.code !== undefined) return element("code", {}, written(found.code, chips));
  if (found.newline) return element("br");
  if (found.chip) return chips.shift() ?? document.createTextNode(CHIP);
  if (found.url ?? found.href)
    return link(found.url ?? found.href, found.label ? inline(found.label, chips) : [found.url]);
  const [tag, inner] = found.struck
    ? ["del", found.struck]
    : (found.bold ?? found.bold2) !== undefined
      ? ["strong", found.bold ?? found.bold2]
      : ["em", found.italic ?? found.italic2];
  return element(tag, {}, ...inline(inner, chips));
}

function link(href, children) {
  return element("a", { href, target: "_blank", rel: "noopener noreferrer" }, ...children);
}

// Return a text in which tool calls are written out: code has no room for chips.
function written(text, chips) {
  return text.replaceAll(CHIP, () => chips.shift()?.textContent ?? CHIP);
}
