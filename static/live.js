// The one live mechanism: asks for the page again (a 304 when nothing is new) and lets times run in between.
// How often the server decides: while something is live about once a second, else rarely; never while the tab is hidden.
import { showToast } from "./toasts.js";

const LIVE_MS = 1000;
const IDLE_MS = 5000;
const ANNOUNCE_MS = 10000;

let askedAt = performance.now();
let lostToast = null;

/** Ask for news of this page at once. */
export function refresh() {
  const poller = document.getElementById("poller");
  if (!poller) return;
  askedAt = performance.now();
  window.htmx.trigger(poller, "poll", {}, false);
}

function isDue() {
  const live = document.getElementById("top-status")?.dataset.live === "true";
  return performance.now() - askedAt >= (live ? LIVE_MS : IDLE_MS);
}

setInterval(() => {
  if (document.visibilityState !== "visible") return;
  tick();
  if (isDue()) refresh();
}, 200);
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && refresh());
document.addEventListener("poll-now", refresh); // sent by the answer to an action

document.addEventListener("htmx:error", ({ detail: { ctx } }) => {
  if (ctx?.sourceElement?.id !== "poller" || lostToast?.isConnected) return;
  lostToast = showToast(document.getElementById("toasts").dataset.lost, "alert", { stays: true });
});
document.addEventListener("htmx:after:request", ({ detail: { ctx } }) => {
  if (ctx.sourceElement.id === "poller") lostToast?.remove();
});

// Seconds that are left count down from when they arrived; the server's clock and the browser's need not agree.
const deadlines = new WeakMap();

function words(seconds) {
  const whole = Math.ceil(seconds);
  if (whole <= 59) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  const minutes = Math.round(whole / 60);
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

function countDown(element) {
  const { left, over } = element.dataset;
  let known = deadlines.get(element);
  if (known?.left !== left)
    deadlines.set(element, (known = { left, at: performance.now() + 1000 * Number(left) }));
  const seconds = (known.at - performance.now()) / 1000;
  const text = seconds > 0 ? element.dataset.words.replace("{time}", words(seconds)) : over;
  if (element.textContent !== text) element.textContent = text;
}

// Times are written in the browser's own zone; the exact one is in the title.
const UNITS = [
  ["day", 86400],
  ["hour", 3600],
  ["minute", 60],
];

function localTime(element) {
  const language = document.documentElement.lang;
  const at = new Date(element.dateTime);
  if (Number.isNaN(at.getTime())) return;
  const exact = at.toLocaleString(language, { dateStyle: "medium", timeStyle: "medium" });
  let text = exact;
  if (element.dataset.time === "relative") {
    const seconds = (at - Date.now()) / 1000;
    const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? ["second", 1];
    text = new Intl.RelativeTimeFormat(language, { numeric: "auto" }).format(
      Math.round(seconds / size),
      unit,
    );
  }
  if (element.title !== exact) element.title = exact;
  if (element.textContent !== text) element.textContent = text;
}

function tick() {
  document.querySelectorAll("[data-left]").forEach(countDown);
  document.querySelectorAll("time[data-time]").forEach(localTime);
}

// What a page marks with data-announce is read out politely, at most every ten seconds.
let announced = "";
setInterval(() => {
  const text =
    (document.querySelector("main [data-announce]") ?? document.getElementById("top-status"))?.innerText
      .replace(/\s+/g, " ")
      .trim() ?? "";
  if (announced && text && text !== announced) document.getElementById("announcer").textContent = text;
  announced = text;
}, ANNOUNCE_MS);

window.htmx.registerExtension("runoff", {
  // a time that did not change keeps the words that the browser gave it
  htmx_before_morph_node: (_element, { oldNode, newNode }) =>
    !(
      oldNode instanceof HTMLTimeElement &&
      newNode instanceof HTMLTimeElement &&
      oldNode.dateTime === newNode.dateTime
    ),
});
document.addEventListener("htmx:after:swap", tick);
tick();
