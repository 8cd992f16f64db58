// Conversations, and where the browser keeps them.
//
// A chat is a list of exchanges: a question, and one answer from each of the chat's models (two when it compares).

import { download } from "./dom.js";

const PREFIX = "raychat.chat.";
const TITLE_LENGTH = 60;

export function newChat(models) {
  const now = Date.now();
  const id = `${now.toString(36)}${Math.random().toString(36).slice(2, 8)}`; // randomUUID needs https or localhost
  return { id, title: "", created: now, updated: now, system: "", models, exchanges: [] };
}

export function titleOf(chat) {
  const question = chat.exchanges[0]?.question.replace(/\s+/g, " ").trim() ?? "";
  return (
    chat.title || (question.length > TITLE_LENGTH ? `${question.slice(0, TITLE_LENGTH)}…` : question) || "New chat"
  );
}

// Chats in localStorage, one entry each, so that two tabs do not overwrite each other's.
export class ChatStore {
  constructor(storage) {
    this.storage = storage;
  }

  // Return all chats, the one changed last first.
  list() {
    const keys = Array.from({ length: this.storage.length }, (_, i) => this.storage.key(i));
    const chats = keys.filter((key) => key.startsWith(PREFIX)).map((key) => parsed(this.storage.getItem(key)));
    return chats.filter((chat) => chat !== null).sort((a, b) => b.updated - a.updated);
  }

  // Keep a chat. Throws when the browser has no room for it.
  save(chat) {
    this.storage.setItem(PREFIX + chat.id, JSON.stringify(chat));
  }

  has(chat) {
    return this.storage.getItem(PREFIX + chat.id) !== null;
  }

  remove(chat) {
    this.storage.removeItem(PREFIX + chat.id);
  }
}

// Return a stored chat; null for an entry that is not one, which does no harm to the others.
function parsed(text) {
  try {
    const chat = JSON.parse(text);
    return Array.isArray(chat.exchanges) && Array.isArray(chat.models) && typeof chat.id === "string" ? chat : null;
  } catch {
    return null;
  }
}

// Return localStorage; a browser that forbids it gets one that lasts as long as the page.
export function browserStorage() {
  try {
    localStorage.setItem("raychat.probe", "");
    localStorage.removeItem("raychat.probe");
    return localStorage;
  } catch (error) {
    return error.name === "QuotaExceededError" ? localStorage : new MemoryStorage();
  }
}

class MemoryStorage {
  items = new Map();
  get length() {
    return this.items.size;
  }
  key(i) {
    return [...this.items.keys()][i];
  }
  getItem(key) {
    return this.items.get(key) ?? null;
  }
  setItem(key, text) {
    this.items.set(key, text);
  }
  removeItem(key) {
    this.items.delete(key);
  }
}

// Return the conversation as messages for one of the chat's models, ending with the question of exchange `last`.
export function messagesFor(chat, lane, last, textOf) {
  const messages = chat.system ? [{ role: "system", content: chat.system }] : [];
  for (const { question, answers } of chat.exchanges.slice(0, last)) {
    const answer = answers[lane] ?? answers[0]; // a model that joined later continues the first one's conversation
    const content = answer && textOf(answer);
    if (content) messages.push({ role: "user", content: question }, { role: "assistant", content });
  }
  return [...messages, { role: "user", content: chat.exchanges[last].question }];
}

// Return the conversation as Markdown.
export function asMarkdown(chat, spokenText) {
  const turns = chat.exchanges.flatMap(({ question, answers }) => [
    `**You**\n\n${question}`,
    ...answers.map((answer) => `**${answer.model}**\n\n${spokenText(answer) || "(no answer)"}`),
  ]);
  const system = chat.system ? [`**System prompt**\n\n${chat.system}`] : [];
  return [`# ${titleOf(chat)}`, ...system, ...turns].join("\n\n") + "\n";
}

const fileName = (chat) =>
  titleOf(chat)
    .replace(/[^\p{L}\p{N}]+/gu, "-")
    .slice(0, 40) || "chat";

// Download a conversation for people to read.
export const saveMarkdown = (chat, spokenText) =>
  download(`${fileName(chat)}.md`, "text/markdown", asMarkdown(chat, spokenText));

// Download a conversation for programs: everything that the browser keeps of it.
export const exportJson = (chat) =>
  download(`${fileName(chat)}.json`, "application/json", JSON.stringify(chat, null, 2));
