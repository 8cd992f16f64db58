// The served models: their cards, in groups, and the list to choose one from.

import { element, icon } from "./dom.js";

const NEARLY_FULL = 0.85; // of the context
const STAGES = ["base", "mid", "sft", "rl"]; // in their order

// Return a name for people: "tiny · sft", and the step of a saved one.
export function nameOf(card) {
  const stage = card.run ? `${card.run} · ${card.stage}` : card.id;
  return card.latest === false ? `${stage} · step ${card.step}` : stage;
}

// Return how much of the context a conversation fills after these answers, that of the fuller model; "" = unknown.
export function contextNote(answers, cardOf) {
  const counted = answers.filter((answer) => answer.tokens);
  const used = Math.max(0, ...counted.map((answer) => answer.promptTokens + answer.tokens));
  const length = cardOf(counted[0]?.model)?.max_model_len;
  if (!used || !length) return "";
  return `${used} of ${length} tokens of context${used > NEARLY_FULL * length ? ", nearly full" : ""}`;
}

export const isBase = (card) => card?.stage === "base";

// Group cards for the list: [{run, stages: [{stage, cards}]}], the last stage first, the newest step first.
export function grouped(cards) {
  const runs = new Map();
  for (const card of cards) {
    const run = card.run ?? "models";
    const stage = card.stage ?? card.id;
    if (!runs.has(run)) runs.set(run, new Map());
    const stages = runs.get(run);
    stages.set(stage, [...(stages.get(stage) ?? []), card]);
  }
  const newest = (a, b) => Number(b.latest ?? 0) - Number(a.latest ?? 0) || (b.step ?? 0) - (a.step ?? 0);
  return [...runs].map(([run, stages]) => ({
    run,
    stages: [...stages]
      .sort(([a], [b]) => STAGES.indexOf(b) - STAGES.indexOf(a))
      .map(([stage, found]) => ({ stage, cards: found.sort(newest) })),
  }));
}

// Return the model that is most worth comparing a model with: the stage before it, else its first step, else any other.
export function counterpart(card, cards) {
  const ofRun = cards.filter((other) => other.run === card.run && other.id !== card.id);
  const before = ofRun.filter(
    (other) => other.latest && STAGES.indexOf(other.stage) < STAGES.indexOf(card.stage) && !isBase(other),
  );
  const latestBefore = before.sort((a, b) => STAGES.indexOf(b.stage) - STAGES.indexOf(a.stage))[0];
  const firstStep = ofRun.filter((other) => other.stage === card.stage).sort((a, b) => a.step - b.step)[0];
  return latestBefore ?? firstStep ?? cards.find((other) => other.id !== card.id) ?? card;
}

// Show a button for each of the chosen models; it opens the list.
export function showPickers(box, names, open) {
  const pickers = names.map((name, lane) => {
    const label = names.length > 1 ? `${"AB"[lane]}: ${name}` : name;
    const properties = { type: "button", class: "picker", "aria-haspopup": "dialog", title: "Choose the model" };
    return element("button", { ...properties, onclick: () => open(lane) }, element("span", {}, label), icon("open"));
  });
  box.replaceChildren(...pickers);
}

// Fill the popover with the models; `choose` gets the card that is clicked.
export function showModels(box, cards, current, choose) {
  const groups = grouped(cards).map(({ run, stages }) => {
    const title = element("h2", { class: "group-title" }, run === "models" ? "Models" : `Run ${run}`);
    return element("section", {}, title, ...stages.map((stage) => stageRows(stage, current, choose)));
  });
  box.replaceChildren(...groups);
}

function stageRows({ stage, cards }, current, choose) {
  const [first, ...steps] = cards;
  const mark = (card) => (card.id === current ? "true" : undefined);
  const hint = first.latest
    ? `step ${first.step}, the newest`
    : first.step !== undefined && first.step !== null
      ? `step ${first.step}`
      : "";
  const row = element(
    "button",
    { type: "button", class: "model-row", "aria-current": mark(first), onclick: () => choose(first) },
    element("span", {}, stage),
    element("span", { class: "soft" }, hint),
    icon("check"),
  );
  const chips = steps
    .filter((card) => !(first.latest && card.step === first.step))
    .map((card) =>
      element(
        "button",
        {
          type: "button",
          class: "step",
          "aria-current": mark(card),
          "aria-label": `${stage}, step ${card.step}`,
          onclick: () => choose(card),
        },
        `${card.step}`,
      ),
    );
  return element(
    "div",
    { class: "stage" },
    row,
    chips.length
      ? element("div", { class: "steps" }, element("span", { class: "soft" }, "saved steps"), ...chips)
      : null,
  );
}

// Return what an empty conversation shows, with the first questions that this model is known to answer.
export function welcome(card, ask) {
  const [title, about] = isBase(card)
    ? ["Begin a text.", "A base model continues what you write."]
    : ["What shall we talk about?", "A model trained from scratch with raychat."];
  const buttons = (card?.suggestions ?? []).map((idea) => element("button", { type: "button", onclick: () => ask(idea) }, idea));
  const mark = element("img", { src: "page/mark.svg", width: 56, height: 56, alt: "" });
  return element(
    "div",
    { class: "welcome" },
    mark,
    element("h1", {}, title),
    element("p", { class: "soft" }, about),
    element("div", { class: "ideas" }, ...buttons),
  );
}
