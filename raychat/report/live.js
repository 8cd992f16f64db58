// Bring the page up to date: replace the parts that changed, so that the reader keeps the place and what is open.
const EVERY_MS = 3000;
const main = document.querySelector("main");

function update(html) {
  const fresh = document.createElement("main");
  fresh.innerHTML = html;
  for (const part of fresh.children) {
    const shown = part.id && document.getElementById(part.id);
    if (shown && shown.open) part.open = true;
  }
  if (fresh.children.length !== main.children.length || [...fresh.children].some((part, i) => part.id !== main.children[i].id)) {
    main.replaceChildren(...fresh.children);
    return;
  }
  [...fresh.children].forEach((part, i) => {
    if (!part.isEqualNode(main.children[i])) main.children[i].replaceWith(part);
  });
}

async function ask() {
  try {
    const answer = await fetch("body");
    if (answer.ok) update(await answer.text());
    document.body.classList.toggle("away", !answer.ok);
  } catch {
    document.body.classList.add("away");
  }
  setTimeout(ask, EVERY_MS);
}

setTimeout(ask, EVERY_MS);
