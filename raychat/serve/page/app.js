// The page: one conversation is open, with one model or two that answer it. This file holds what changes, and connects
// the parts; each part is a module beside it.

import { askForKey, fill, models, newAnswer, spokenText, textOf } from "./api.js";
import { browserStorage, ChatStore, messagesFor, newChat, saveMarkdown, titleOf } from "./chats.js";
import { runCommand, showHelp } from "./commands.js";
import { makeComposer } from "./composer.js";
import { announce, notice } from "./dom.js";
import { contextNote, counterpart, isBase, nameOf, showModels, showPickers, welcome } from "./models.js";
import { bindSettings, loadSettings, requestFields, saveSettings } from "./settings.js";
import { makeDrawer, openUnder, showChats } from "./sidebar.js";
import { followEnd, makeThread } from "./thread.js";

const $ = (id) => document.getElementById(id);

const storage = browserStorage();
const store = new ChatStore(storage);
const settings = loadSettings(storage);
let cards = []; // of the served models, the default first
let chat = newChat([]);
let running = null; // AbortController of the answers that are being generated

const cardOf = (id) => cards.find((card) => card.id === id);
const nameOfModel = (id) => (cardOf(id) ? nameOf(cardOf(id)) : id);

async function ask(question) {
  if (running) return;
  if (!cards.length) {
    if (!(await reach())) return composer.put(question);
    open(chat);
  }
  chat.exchanges.push({ question, answers: [] });
  await answerLast();
}

function answerLast() {
  const lanes = chat.models.map((_, lane) => lane);
  return answer(chat.exchanges.length - 1, lanes);
}

// Have the models of these lanes answer an exchange; one model's failure leaves the other's answer alone.
async function answer(index, lanes) {
  const here = chat;
  const exchange = here.exchanges[index];
  const controller = new AbortController();
  running = controller;
  for (const lane of lanes) exchange.answers[lane] = newAnswer(here.models[lane] ?? exchange.answers[lane].model);
  here.updated = Date.now();
  keep(here);
  thread.showFrom(here, index);
  composer.refresh();
  announce("Answering");
  await Promise.all(lanes.map((lane) => answerOf(here, index, lane, controller.signal)));
  if (store.has(here)) keep(here); // it may have been deleted meanwhile
  if (running !== controller) return; // dropped for another conversation or question
  running = null;
  composer.refresh();
  showContext();
  announce(lanes.map((lane) => spokenOrFailure(exchange.answers[lane])).join("\n"));
  if (exchange.answers.some((a) => a.failure?.status === 401)) askForKey($("key"), () => answer(index, lanes));
}

const spokenOrFailure = (a) => a.failure?.message ?? `${nameOfModel(a.model)}: ${spokenText(a) || "no answer"}`;

async function answerOf(here, index, lane, signal) {
  const filled = here.exchanges[index].answers[lane];
  const [path, said] = isBase(cardOf(filled.model))
    ? ["v1/completions", { prompt: here.exchanges[index].question }]
    : ["v1/chat/completions", { messages: messagesFor(here, lane, index, textOf) }];
  let frame = 0; // at most one drawing a frame, however many events come
  const draw = () => (frame ||= requestAnimationFrame(() => ((frame = 0), thread.draw(filled, true))));
  thread.draw(filled, true);
  await fill(filled, path, { model: filled.model, ...requestFields(settings), ...said }, signal, draw);
  cancelAnimationFrame(frame);
  thread.draw(filled, false);
}

// Keep a chat in the browser; without a question there is nothing to keep.
function keep(kept) {
  if (!kept.exchanges.length) return;
  try {
    store.save(kept);
  } catch {
    notice("The browser has no room for this conversation. Delete old ones, or save it: /save.", { error: true });
  }
  list();
}

// What commands and buttons do.
const page = {
  cards: () => cards,
  begin() {
    open(newChat(chat.models));
  },
  choose(lane, card) {
    $("model-list").hidePopover();
    chat.models[lane] = card.id;
    keep(chat);
    showAll();
  },
  compare(card) {
    if (!cards.length) throw new Error("there is no model yet");
    const [first, second] = chat.models;
    chat.models = second && !card ? [first] : [first, (card ?? counterpart(cardOf(first), cards)).id];
    keep(chat);
    showAll();
  },
  system: () => chat.system || "This conversation has no system prompt.",
  setSystem(text) {
    chat.system = text;
    keep(chat);
    return text ? "The system prompt is set for this conversation." : "This conversation has no system prompt now.";
  },
  settings: () => settings,
  set(changes) {
    Object.assign(settings, changes);
    saveSettings(storage, settings);
  },
  regenerate() {
    drop();
    if (!chat.exchanges.length) throw new Error("there is no question yet");
    chat.exchanges.at(-1).answers = [];
    answerLast();
  },
  undo() {
    drop();
    if (!chat.exchanges.length) throw new Error("there is no question yet");
    const [undone] = chat.exchanges.splice(-1);
    chat.exchanges.length ? keep(chat) : store.remove(chat);
    showAll();
    composer.put(undone.question);
  },
  rename: (title) => rename(chat, title),
  save: () => saveMarkdown(chat, spokenText),
  remove: () => remove(chat),
  openModels,
  openSettings,
  openHelp: () => $("help").showModal(),
};

function send(text) {
  $("notice").hidden = true;
  if (!text.startsWith("/")) return void ask(text.trim());
  try {
    const said = runCommand(page, text.trim());
    if (said) notice(said);
  } catch (error) {
    notice(error.message, { error: true });
    composer.put(text);
  }
}

// End the answers that are being generated, and show no more of them.
function drop() {
  running?.abort();
  running = null;
}

function open(opened) {
  drop();
  chat = opened;
  const served = chat.models.filter(cardOf);
  if (cards.length) chat.models = served.length ? served : [cards[0].id];
  drawer.rest();
  showAll();
  composer.focus();
}

function edit(index, question) {
  drop();
  chat.exchanges.splice(index);
  ask(question);
}

function rename(renamed, title) {
  renamed.title = title;
  keep(renamed);
  showTitle();
}

function remove(removed) {
  store.remove(removed);
  if (removed.id === chat.id) open(newChat(chat.models));
  else list();
  if (removed.exchanges.length) notice(`Deleted: ${titleOf(removed)}`, { undo: () => (keep(removed), open(removed)) });
}

function showAll() {
  thread.show(chat);
  if (!chat.exchanges.length) $("log").replaceChildren(welcome(cardOf(chat.models[0]), ask));
  const base = chat.models.length > 0 && chat.models.every((id) => isBase(cardOf(id)));
  composer.placeholder(base ? "Begin a text; the base model continues it…" : "Say something…");
  composer.refresh();
  $("log").classList.toggle("comparing", chat.models.length > 1);
  $("compare").disabled = !cards.length;
  $("compare").setAttribute("aria-pressed", String(chat.models.length > 1));
  if (cards.length) showPickers($("models"), chat.models.map(nameOfModel), openModels);
  showContext();
  showTitle();
  list();
}

function showTitle() {
  document.title = chat.exchanges.length ? `${titleOf(chat)} · raychat` : "raychat";
}

// The chat that is open is the one in memory; a stored copy of it may be older.
function list() {
  const others = store.list().filter((stored) => stored.id !== chat.id);
  const all = chat.exchanges.length ? [...others, chat].sort((a, b) => b.updated - a.updated) : others;
  showChats($("chats"), all, chat, $("menu"), {
    open,
    rename,
    remove,
    save: (saved) => saveMarkdown(saved, spokenText),
  });
}

// The newest steps of a run that is still being trained appear when the list is opened.
async function openModels(lane) {
  const show = () => {
    showModels($("model-list"), cards, chat.models[lane], (card) => page.choose(lane, card));
    $("model-list").querySelector("[aria-current]")?.focus();
  };
  openUnder($("model-list"), $("models").children[lane], show);
  const newest = await models().catch(() => cards);
  if (JSON.stringify(newest) === JSON.stringify(cards)) return;
  cards = newest;
  show();
}

function openSettings() {
  $("system").value = chat.system;
  bindSettings($("settings"), settings, (changes) => page.set(changes));
  $("settings").showModal();
}

function showContext() {
  $("context").textContent = contextNote(chat.exchanges.at(-1)?.answers ?? [], cardOf);
}

const drawer = makeDrawer(settings, page.set);
const scroll = followEnd($("scroller"), $("to-end"));
const thread = makeThread($("log"), scroll, {
  name: nameOfModel,
  edit,
  again: (index, lane) => running || answer(index, [lane]),
});
const composer = makeComposer($("form"), $("commands"), {
  send,
  stop: () => running?.abort(),
  isRunning: () => running !== null,
  editLast: () => thread.edit(chat.exchanges.length - 1),
});

$("fresh").onclick = page.begin;
$("compare").onclick = () => page.compare(null);
$("open-settings").onclick = openSettings;
$("system").oninput = () => page.setSystem($("system").value.trim());

document.addEventListener("keydown", (event) => {
  const over = event.target.closest("dialog, [popover]"); // Escape closes these, and nothing else
  const typing = over || event.target.closest("input, textarea");
  const shortcut = (event.ctrlKey || event.metaKey) && event.shiftKey;
  if (event.key === "Escape" && running && !over) running.abort();
  else if (event.key === "Escape" && drawer.isOver()) drawer.show(false);
  else if (event.key === "/" && !typing) composer.focus();
  else if (shortcut && event.code === "KeyO") page.begin();
  else if (shortcut && event.code === "KeyS") drawer.toggle();
  else return;
  event.preventDefault();
});
// What there is of an answer survives a reload. Phones only send the second event.
for (const leaving of ["beforeunload", "pagehide"])
  addEventListener(leaving, () => {
    if (running) keep(chat);
    drop();
  });
addEventListener("storage", list); // another tab has changed the conversations

// Fetch the cards of the models, or say why not. Return whether there is a model.
async function reach() {
  try {
    cards = await models();
  } catch (error) {
    if (error.status === 401) askForKey($("key"), start);
    else notice(error.message, { error: true });
  }
  return cards.length > 0;
}

async function start() {
  showHelp($("help-list"));
  saveSettings(storage, settings);
  await reach();
  open(newChat([]));
  const asked = new URLSearchParams(location.search).get("q"); // /?q=Hello asks when the page opens
  if (asked) ask(asked);
}
start();
