// The message box: sending, stopping, and the list of commands that a slash opens.

import { COMMANDS, matching } from "./commands.js";
import { element } from "./dom.js";

// Wire the message box. actions: send(text), stop(), isRunning(), editLast().
export function makeComposer(form, list, actions) {
  const input = form.querySelector("textarea");
  const button = form.querySelector("button");
  let chosen = 0; // index in the list of commands

  function refresh() {
    const running = actions.isRunning();
    input.style.height = "auto";
    input.style.height = `${input.scrollHeight}px`;
    form.classList.toggle("running", running);
    button.disabled = !running && !input.value.trim();
    button.title = running ? "Stop (Escape)" : "Send";
    button.setAttribute("aria-label", running ? "Stop" : "Send");
    showCommands();
  }

  function showCommands() {
    const names = matching(input.value);
    chosen = Math.max(0, Math.min(chosen, names.length - 1));
    list.hidden = names.length === 0;
    list.replaceChildren(...names.map((name, i) => commandRow(name, i === chosen, () => take(name))));
    list.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" });
    if (list.hidden) input.removeAttribute("aria-activedescendant");
    else input.setAttribute("aria-activedescendant", `command-${names[chosen]}`);
  }

  // Complete a command; one without an argument runs at once.
  function take(name) {
    put(`/${name}${COMMANDS[name].argument ? " " : ""}`);
    if (!COMMANDS[name].argument) form.requestSubmit();
  }

  function put(text) {
    input.value = text;
    input.focus();
    refresh();
  }

  function submit() {
    const text = input.value;
    if (actions.isRunning()) return actions.stop();
    if (!text.trim()) return;
    put("");
    actions.send(text);
  }

  function moveOrTake(event) {
    const names = matching(input.value);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) chosen = (chosen + step + names.length) % names.length;
    else if (event.key === "Tab" || (event.key === "Enter" && !names.includes(input.value.slice(1))))
      return take(names[chosen]) ?? true;
    else if (event.key === "Escape") return put("") ?? true;
    else return false;
    showCommands();
    return true;
  }

  input.addEventListener("keydown", (event) => {
    if (event.isComposing || event.shiftKey || event.altKey) return;
    const idle = !actions.isRunning();
    if (!list.hidden && moveOrTake(event)) event.stopPropagation();
    else if (event.key === "Enter") idle && submit();
    else if (event.key === "ArrowUp" && !input.value && idle) actions.editLast();
    else return;
    event.preventDefault();
  });
  input.addEventListener("input", () => {
    chosen = 0;
    refresh();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  refresh();
  return { refresh, put, focus: () => input.focus(), placeholder: (text) => (input.placeholder = text) };
}

function commandRow(name, selected, onclick) {
  const { argument, help } = COMMANDS[name];
  const typed = element(
    "span",
    { class: "command" },
    `/${name}`,
    argument ? element("span", { class: "soft" }, ` ${argument}`) : null,
  );
  const row = element(
    "li",
    { id: `command-${name}`, role: "option", "aria-selected": String(selected), onclick },
    typed,
    element("span", { class: "soft" }, help),
  );
  row.onmousedown = (event) => event.preventDefault(); // the focus stays in the message box
  return row;
}
