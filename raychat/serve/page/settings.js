// Sampling settings and theme: where they are kept, the dialog, and what a request says of them.

import { element } from "./dom.js";

const KEY = "raychat.settings"; // theme.js reads it too
const THEMES = ["auto", "light", "dark"];

// name: what it does, its limits and step. At `neutral` a setting asks for nothing and is left out of the request.
export const FIELDS = {
  temperature: {
    label: "Temperature",
    help: "0 always takes the likeliest token, higher is more varied",
    min: 0,
    max: 2,
    step: 0.1,
    initial: 0.7,
  },
  top_p: {
    label: "Top-p",
    help: "keeps the likeliest tokens up to this total probability",
    min: 0.05,
    max: 1,
    step: 0.05,
    initial: 1,
    neutral: 1,
  },
  top_k: {
    label: "Top-k",
    help: "keeps the k likeliest tokens; 0 keeps all",
    min: 0,
    max: 200,
    step: 1,
    whole: true,
    initial: 50,
    neutral: 0,
  },
  min_p: {
    label: "Min-p",
    help: "drops tokens less likely than this share of the likeliest",
    min: 0,
    max: 1,
    step: 0.05,
    initial: 0,
    neutral: 0,
  },
  max_tokens: { label: "Longest answer", help: "in tokens", min: 16, max: 2048, step: 16, whole: true, initial: 512 },
  seed: {
    label: "Seed",
    help: "the same seed gives the same answer; empty: a new one each time",
    whole: true,
    initial: null,
    neutral: null,
  },
};

const initial = () => ({
  theme: "auto",
  sidebar: true,
  ...Object.fromEntries(Object.entries(FIELDS).map(([name, field]) => [name, field.initial])),
});

// Return the settings that the browser keeps; a value that is out of its limits is the initial one.
export function loadSettings(storage) {
  const settings = initial();
  let kept;
  try {
    kept = JSON.parse(storage.getItem(KEY)) ?? {};
  } catch {
    kept = {};
  }
  for (const name of Object.keys(FIELDS)) if (checked(name, kept[name]) === null) settings[name] = kept[name];
  if (THEMES.includes(kept.theme)) settings.theme = kept.theme;
  settings.sidebar = kept.sidebar ?? settings.sidebar;
  return settings;
}

export function saveSettings(storage, settings) {
  document.documentElement.dataset.theme = settings.theme;
  try {
    storage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // no room: they last as long as the page
  }
}

// Return what is wrong with a value for a setting; null = nothing.
export function checked(name, value) {
  const field = FIELDS[name];
  if (!field) return `there is no setting ${name}; expected one of ${Object.keys(FIELDS).join(", ")}`;
  if (typeof value !== "number" || !Number.isFinite(value)) return `${name} should be a number`;
  if (value < field.min || value > field.max) return `${name} should be from ${field.min} to ${field.max}`;
  return field.whole && !Number.isSafeInteger(value) ? `${name} should be a whole number` : null;
}

// Return the settings as fields of a request.
export function requestFields(settings) {
  const asked = Object.entries(FIELDS).filter(([name, field]) => settings[name] !== field.neutral);
  return Object.fromEntries(asked.map(([name]) => [name, settings[name]]));
}

// Fill the dialog and keep it and `settings` equal. changed: called after every change.
export function bindSettings(dialog, settings, changed) {
  const rows = Object.entries(FIELDS).map(([name, field]) =>
    name === "seed" ? seedRow(settings, changed) : sliderRow(name, field, settings, changed),
  );
  const themes = THEMES.map((theme) => {
    const input = element("input", { type: "radio", name: "theme", value: theme, checked: settings.theme === theme });
    input.onchange = () => changed({ theme });
    return element("label", {}, input, element("span", {}, theme[0].toUpperCase() + theme.slice(1)));
  });
  dialog.querySelector("#fields").replaceChildren(...rows);
  dialog.querySelector("#themes").replaceChildren(...themes);
  dialog.querySelector("#reset").onclick = () => {
    changed({ ...initial(), sidebar: settings.sidebar });
    bindSettings(dialog, settings, changed);
  };
}

function sliderRow(name, { label, help, min, max, step }, settings, changed) {
  const output = element("output", {}, `${settings[name]}`);
  const input = element("input", {
    type: "range",
    id: `setting-${name}`,
    min,
    max,
    step,
    "aria-describedby": `help-${name}`,
  });
  input.value = settings[name];
  input.oninput = () => {
    output.textContent = input.value;
    changed({ [name]: Number(input.value) });
  };
  return element(
    "div",
    { class: "field" },
    element("label", { for: input.id }, label),
    output,
    input,
    element("small", { id: `help-${name}` }, help),
  );
}

function seedRow(settings, changed) {
  const input = element("input", {
    type: "number",
    id: "setting-seed",
    step: 1,
    placeholder: "any",
    "aria-describedby": "help-seed",
  });
  input.value = settings.seed ?? "";
  input.onchange = () => {
    const value = input.value === "" ? null : Number(input.value);
    if (value === null || checked("seed", value) === null) changed({ seed: value });
    else input.value = settings.seed ?? "";
  };
  return element(
    "div",
    { class: "field" },
    element("label", { for: input.id }, FIELDS.seed.label),
    input,
    element("small", { id: "help-seed" }, FIELDS.seed.help),
  );
}
