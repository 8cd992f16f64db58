// The list of conversations, and the small menus of the page.

import { exportJson, titleOf } from "./chats.js";
import { element, iconButton } from "./dom.js";

// Show the conversations. actions: open(chat), rename(chat, title), remove(chat), save(chat).
export function showChats(list, chats, current, menu, actions) {
  const rows = chats.map((chat) => chatRow(chat, chat.id === current.id, menu, actions));
  list.replaceChildren(
    ...(rows.length
      ? rows
      : [element("li", { class: "soft none" }, "Conversations that you begin stay here, in this browser.")]),
  );
}

function chatRow(chat, isCurrent, menu, actions) {
  const title = titleOf(chat);
  const open = element(
    "button",
    {
      type: "button",
      class: "chat-title",
      title,
      "aria-current": isCurrent ? "page" : undefined,
      onclick: () => actions.open(chat),
    },
    title,
  );
  const more = iconButton(
    "more",
    `Rename, save or delete: ${title}`,
    () =>
      showMenu(menu, more, [
        ["Rename", () => row.replaceChildren(renamer(title, (text) => actions.rename(chat, text)))],
        ["Save as Markdown", () => actions.save(chat)],
        ["Export as JSON", () => exportJson(chat)],
        ["Delete", () => actions.remove(chat)],
      ]),
    { class: "icon-button more", "aria-haspopup": "menu" },
  );
  const row = element("li", { class: isCurrent ? "current" : undefined }, open, more);
  return row;
}

const NARROW = matchMedia("(max-width: 56rem)"); // as in style.css: the conversations lie over the page

// Show and hide the conversations. On a wide window `keep` remembers which; on a narrow one they lie over the page.
export function makeDrawer(settings, keep) {
  const [shower, hider, page] = ["show-sidebar", "hide-sidebar", "page"].map((id) => document.getElementById(id));
  const isShown = () => document.body.classList.contains("with-sidebar");
  const put = (shown) => {
    document.body.classList.toggle("with-sidebar", shown);
    shower.setAttribute("aria-expanded", String(shown));
    page.inert = shown && NARROW.matches;
  };
  const rest = () => put(!NARROW.matches && settings.sidebar);
  const show = (shown) => {
    if (!NARROW.matches) keep({ sidebar: shown });
    put(shown);
    (shown ? hider : shower).focus();
  };
  shower.onclick = () => show(true);
  hider.onclick = document.getElementById("shade").onclick = () => show(false);
  NARROW.onchange = rest;
  return { rest, show, toggle: () => show(!isShown()), isOver: () => page.inert };
}

// Return a field for a title; `done` gets the new title, or the old one.
function renamer(title, done) {
  const input = element("input", { value: title, "aria-label": "Title of the conversation" });
  let ended = false; // leaving the field after Enter or Escape says nothing new
  const end = (text) => {
    if (!ended) done(text);
    ended = true;
  };
  input.onkeydown = (event) => {
    if (event.key === "Enter") end(input.value.trim() || title);
    else if (event.key === "Escape") end(title);
    else return;
    event.stopPropagation();
  };
  input.onblur = () => end(input.value.trim() || title);
  requestAnimationFrame(() => input.select());
  return input;
}

// Open a menu under a button. items: [label, what it does].
export function showMenu(menu, button, items) {
  const rows = items.map(([label, run]) =>
    element("button", { type: "button", role: "menuitem", onclick: () => (menu.hidePopover(), run()) }, label),
  );
  menu.setAttribute("role", "menu");
  menu.replaceChildren(...rows);
  menu.onkeydown = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    rows[(rows.indexOf(document.activeElement) + step + rows.length) % rows.length].focus();
  };
  openUnder(menu, button, () => rows[0].focus());
}

// Open a popover under a button, inside the window. fill: puts in what it shows.
export function openUnder(popover, button, fill) {
  popover.showPopover();
  fill();
  const { left, bottom, top } = button.getBoundingClientRect();
  const below = bottom + 6 + popover.offsetHeight < innerHeight;
  popover.style.left = `${Math.max(8, Math.min(left, innerWidth - popover.offsetWidth - 8))}px`;
  popover.style.top = `${below ? bottom + 6 : Math.max(8, top - popover.offsetHeight - 6)}px`;
}
