// The conversation: its questions and answers, editing a question, and scrolling that leaves the reader alone.

import { answerView, drawAnswer } from "./answer.js";
import { copyFrom, element, iconButton } from "./dom.js";

// Return the view of a conversation in `log`. actions: edit(index, question), again(index, lane), name(model id).
export function makeThread(log, scroll, actions) {
  const views = new Map(); // of every answer that is shown

  function addExchange(exchange, index) {
    const answers = element("div", { class: "answers", "data-lanes": String(exchange.answers.length) });
    exchange.answers.forEach((answer, lane) => {
      const view = answerView(actions.name(answer.model), lane, () => actions.again(index, lane));
      views.set(answer, view);
      answers.append(view.section);
      drawAnswer(view, answer, false);
    });
    log.append(element("article", { class: "exchange" }, question(exchange, index, actions), answers));
  }

  return {
    // Show a whole conversation from its beginning.
    show(chat) {
      views.clear();
      log.replaceChildren();
      chat.exchanges.forEach(addExchange);
      scroll.toEnd();
    },
    // Show the exchanges from one on; those above stay as they are.
    showFrom(chat, index) {
      [...log.querySelectorAll(".exchange")].slice(index).forEach((old) => old.remove());
      log.querySelector(".welcome")?.remove();
      chat.exchanges.slice(index).forEach((exchange, i) => addExchange(exchange, index + i));
      scroll.toEnd();
    },
    // Show what an answer has by now.
    draw(answer, busy) {
      if (views.has(answer)) drawAnswer(views.get(answer), answer, busy);
      scroll.grew();
    },
    edit(index) {
      log.querySelectorAll(".exchange")[index]?.querySelector(".edit").click();
    },
  };
}

function question(exchange, index, actions) {
  const bubble = element("div", { class: "bubble" }, exchange.question);
  const copies = iconButton("copy", "Copy the question", () => copyFrom(copies, exchange.question));
  const edit = iconButton("edit", "Edit the question", () => box.replaceChildren(...editor(exchange.question, close)), {
    class: "icon-button edit",
  });
  const row = [element("div", { class: "actions" }, copies, edit), bubble];
  const box = element("div", { class: "question", role: "group", "aria-label": "Your question" }, ...row);
  const close = (text) => {
    box.replaceChildren(...row);
    if (text === null) edit.focus();
    else actions.edit(index, text);
  };
  return box;
}

// Return a form for a question's text; `close` gets the new text, or null.
function editor(text, close) {
  const area = element("textarea", {
    value: text,
    rows: Math.min(8, text.split("\n").length + 1),
    "aria-label": "Edit the question",
  });
  const save = () => area.value.trim() && close(area.value.trim());
  area.onkeydown = (event) => {
    if (event.key === "Escape") close(null);
    else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) save();
    else return;
    event.preventDefault();
    event.stopPropagation(); // Escape would also stop an answer
  };
  requestAnimationFrame(() => area.focus());
  const cancel = element("button", { type: "button", class: "text-button", onclick: () => close(null) }, "Cancel");
  const ask = element("button", { type: "button", class: "solid", onclick: save }, "Ask again");
  const hint = element("span", { class: "soft" }, "What follows is removed.");
  return [element("div", { class: "editor" }, area, element("div", { class: "editor-foot" }, hint, cancel, ask))];
}

// Keep the end of a growing text in view until the reader scrolls up; then leave the reader there.
export function followEnd(box, button) {
  let follows = true;
  let top = 0;
  const distance = () => box.scrollHeight - box.scrollTop - box.clientHeight;
  box.addEventListener("scroll", () => {
    if (box.scrollTop < top - 1)
      follows = distance() < 2; // upwards: the reader, or a text that became shorter
    else if (distance() < 24) follows = true;
    top = box.scrollTop;
    button.hidden = distance() < 80;
  });
  const toEnd = () => {
    follows = true;
    box.scrollTop = box.scrollHeight;
    button.hidden = true;
  };
  const grew = () => {
    if (follows) box.scrollTop = box.scrollHeight;
    button.hidden = distance() < 80;
  };
  new ResizeObserver(grew).observe(box); // a keyboard on a phone, a turned screen
  button.onclick = toEnd;
  return { toEnd, grew };
}
