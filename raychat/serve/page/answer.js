// One answer as the page shows it: the model's text, chips for its tool calls, and a line about it.

import { spokenText } from "./api.js";
import { copyFrom, element, icon, iconButton, patch, sentence } from "./dom.js";
import { CHIP, markdown } from "./markdown.js";

// Return the empty view of an answer. name: of the model, as people call it. lane: which of the compared models it is.
// again: asks the model once more.
export function answerView(name, lane, again) {
  const body = element("div", { class: "body" });
  const note = element("div", { class: "note" });
  const head = element(
    "div",
    { class: "answer-head" },
    element("img", { src: "page/mark.svg", width: 24, height: 24, alt: "" }),
    element("span", { class: "lane" }, "AB"[lane]),
    element("span", { class: "model-name" }, name),
  );
  const section = element(
    "div",
    { class: "answer", role: "group", "aria-label": `Answer of ${name}` },
    head,
    element("div", { class: "answer-text" }, body, note),
  );
  return { section, body, note, name, again };
}

// Show what an answer has by now. busy: there is more to come.
export function drawAnswer(view, answer, busy) {
  const { text, chips } = shown(answer.parts);
  view.section.classList.toggle("busy", busy);
  view.section.setAttribute("aria-busy", String(busy));
  patch(view.body, markdown(text, chips));
  view.note.replaceChildren(...(busy ? [] : ending(view, answer)));
}

// Turn an answer's parts into text with a CHIP for every tool call. The server writes a call as <<48/2=24>> and names
// the part that each piece belongs to, so brackets that the model wrote itself stay text.
export function shown(parts) {
  const chips = [];
  let text = "";
  parts.forEach((part, i) => {
    if (part.type === "text") text += part.text.replaceAll(CHIP, "");
    else if (part.type === "python") {
      const result =
        parts[i + 1]?.type === "python_output" ? parts[i + 1].text.replace(/^=/, "").replace(/>>$/, "") : "";
      const calls = part.text.replace(/^<</, "").replace(/>>$/, "").split(">><<"); // several when one had no result
      chips.push(...calls.map((call, k) => chip(call, k === calls.length - 1 ? result : "")));
      text += CHIP.repeat(calls.length);
    }
  });
  return { text, chips };
}

function chip(expression, result) {
  const equals = result && element("b", {}, `= ${result}`);
  return element(
    "span",
    { class: "chip", title: "computed by the calculator" },
    icon("tool"),
    element("span", {}, expression),
    equals,
  );
}

// Return what stands under a finished answer: buttons and numbers, or why there is nothing to read.
function ending(view, answer) {
  const text = spokenText(answer);
  const again = iconButton("again", "Regenerate", view.again, { class: "icon-button again" });
  const copies = iconButton("copy", "Copy", () => copyFrom(copies, text));
  if (answer.failure) {
    const retry = element("button", { type: "button", class: "text-button again", onclick: view.again }, "Try again");
    return [element("div", { class: "failed" }, element("span", {}, sentence(answer.failure.message)), retry)];
  }
  const buttons = element("div", { class: "actions" }, ...(text ? [copies] : []), again);
  return [
    buttons,
    element("span", { class: "by" }, view.name),
    element("span", { class: "numbers" }, numbers(answer, text)),
  ];
}

function numbers(answer, text) {
  const facts = [];
  if (!answer.finish) facts.push(text ? "stopped" : "stopped before the first word");
  else if (!text.trim()) facts.push("the model had nothing to say");
  if (answer.finish === "length") facts.push("cut off at the length limit");
  if (answer.tokens) facts.push(`${answer.tokens} tokens`, `${(answer.tokens / answer.seconds).toFixed(0)} tokens/s`);
  return facts.join(" · ");
}
