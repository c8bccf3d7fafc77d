// The compare page: choices that send their form at once.
import { isTyping } from "./app.js";
import "./wall.js";

// In a list that is not open each arrow chooses: there Enter sends the choice, and leaving it takes the choice back.
let byArrow = false;
document.addEventListener("pointerdown", () => (byArrow = false));
document.addEventListener("keydown", ({ target, key }) => {
  if (!target.matches?.("select[data-submit]")) return;
  byArrow = key !== "Enter";
  const chosen = [...target.options].find((option) => option.defaultSelected) ?? target.options[0];
  if (key === "Enter" && !chosen.selected) target.form.requestSubmit();
});
document.addEventListener("focusout", ({ target }) => {
  if (byArrow && target.matches?.("select[data-submit]")) target.form.reset();
});
document.addEventListener("change", ({ target }) => {
  if (target.matches("[data-submit]") && target.form && !byArrow) target.form.requestSubmit();
  if (target.id === "margin") target.form.requestSubmit();
});
// A choice that was left empty stays out of the address.
document.addEventListener("formdata", ({ target, formData }) => {
  if (target.getAttribute("action") !== "/compare") return;
  const entries = [...formData].filter(([, value]) => value !== "");
  for (const name of new Set(formData.keys())) formData.delete(name);
  for (const [name, value] of entries) formData.append(name, value);
});

// What a number of a table chose comes into sight.
document.addEventListener("htmx:after:swap", ({ detail: { ctx } }) => {
  const images = document.getElementById("images");
  if (images && ctx?.sourceElement?.closest?.(".pairs, .cm, #classes"))
    images.scrollIntoView({ block: "start" });
});

// From one field that differs to the next: by the buttons, and within the table by n and p or the arrows.
const STEPS = { n: 1, p: -1, ArrowDown: 1, ArrowUp: -1 };
let stoodAt = null; // the id of the row last gone to: the buttons take the focus from it

function goToDifference(step) {
  const rows = [...document.querySelectorAll("#config tr[data-differs]")];
  const at = rows.findIndex((row) => row.id === (document.activeElement?.closest?.("tr")?.id || stoodAt));
  const row = rows[at < 0 ? (step > 0 ? 0 : rows.length - 1) : (at + step + rows.length) % rows.length];
  stoodAt = row?.id ?? null;
  row?.focus();
  row?.scrollIntoView({ block: "nearest" });
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("#config [data-step]");
  if (!link) return;
  event.preventDefault();
  goToDifference(Number(link.dataset.step));
});
// Before the keys that hold on the whole page: n is "new run" elsewhere.
document.addEventListener(
  "keydown",
  (event) => {
    const step = STEPS[event.key];
    if (!step || isTyping(event) || !event.target.closest?.("#config")) return;
    goToDifference(step);
    event.preventDefault();
    event.stopPropagation();
  },
  true,
);
