// The commands of the message box: /new, /set temperature 0.2 and so on.

import { element } from "./dom.js";
import { checked, FIELDS } from "./settings.js";

// name: what may follow, what it does, and how. `page` is what app.js can do. A command returns what to tell the user.
export const COMMANDS = {
  new: { help: "begin a new conversation", run: (page) => page.begin() },
  model: {
    argument: "id",
    help: "choose the model",
    run: (page, id) => (id ? page.choose(0, find(page, id)) : page.openModels(0)),
  },
  compare: {
    argument: "id",
    help: "ask a second model too; again: one model",
    run: (page, id) => page.compare(id ? find(page, id) : null),
  },
  system: {
    argument: "[text|none]",
    help: "set the system prompt; alone: show it",
    run: (page, text) => (text ? page.setSystem(text === "none" ? "" : text) : page.system()),
  },
  set: { argument: "[name value]", help: "change how tokens are sampled; alone: list the settings", run: set },
  regenerate: { help: "answer the last question again", run: (page) => page.regenerate() },
  undo: { help: "remove the last question and its answer", run: (page) => page.undo() },
  rename: { argument: "title", help: "name this conversation", run: (page, title) => page.rename(title) },
  save: { help: "download this conversation as Markdown", run: (page) => page.save() },
  delete: { help: "delete this conversation", run: (page) => page.remove() },
  settings: { help: "all settings", run: (page) => page.openSettings() },
  help: { help: "commands and keys", run: (page) => page.openHelp() },
};

function find(page, id) {
  const cards = page.cards();
  const found = cards.find((card) => card.id === id);
  if (!found) throw new Error(`there is no model ${id}; expected one of ${cards.map((card) => card.id).join(", ")}`);
  return found;
}

function set(page, text) {
  const shown = (name, value) => `${name} is ${value === FIELDS[name].neutral ? "none" : value}`;
  if (!text) return Object.keys(FIELDS).map((name) => shown(name, page.settings()[name])).join(", ");
  const [name, value] = text.split(/\s+/);
  const number = value === "none" ? FIELDS[name]?.neutral : Number(value || NaN);
  const wrong = number === null ? null : checked(name, number);
  if (wrong) throw new Error(wrong);
  page.set({ [name]: number });
  return shown(name, number);
}

// Return the commands whose name begins with what is typed; none once an argument is being typed.
export function matching(text) {
  const typed = /^\/(\w*)$/.exec(text);
  return typed ? Object.keys(COMMANDS).filter((name) => name.startsWith(typed[1])) : [];
}

// Run a message as a command and return what to tell the user. Throws an error that says why it cannot be run.
export function runCommand(page, message) {
  const [, name, argument] = /^\/(\S*)\s*([\s\S]*)$/.exec(message);
  if (!Object.hasOwn(COMMANDS, name))
    throw new Error(`there is no command /${name}; /help lists them. A space in front sends it as text`);
  return COMMANDS[name].run(page, argument.trim());
}

const KEYS = {
  Enter: "send",
  "Shift + Enter": "new line",
  Escape: "stop the answer; close what is open",
  "↑": "in an empty box: edit the last question",
  "/": "to the message box; in it: a command",
  "Ctrl + Shift + O": "new conversation",
  "Ctrl + Shift + S": "show or hide conversations",
};

// Fill the list of the help dialog.
export function showHelp(list) {
  const commands = Object.entries(COMMANDS).map(([name, { argument, help }]) => [
    argument ? `/${name} ${argument}` : `/${name}`,
    help,
  ]);
  const rows = (pairs) =>
    pairs.flatMap(([name, help]) => [element("dt", {}, element("kbd", {}, name)), element("dd", {}, help)]);
  list.replaceChildren(element("dl", {}, ...rows(commands)), element("dl", {}, ...rows(Object.entries(KEYS))));
}
