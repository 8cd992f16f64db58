// A classic script in the head: it runs before the first paint, so a chosen theme does not flash the other one.
try {
  document.documentElement.dataset.theme = JSON.parse(localStorage.getItem("raychat.settings"))?.theme ?? "auto";
} catch {
  // no storage, or not ours: the theme of the system
}
