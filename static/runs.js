// The runs page: ticks, the bar that says what they can be used for, and the keys j, k and x.
import { isTyping } from "./app.js";

const MOST_COMPARED = 8; // as many as there are colours, markers and dashes
const ticks = () => [...document.querySelectorAll(".c-tick [name=run]")];
const chosen = () => ticks().filter((tick) => tick.checked);
const words = (element, n) => (n === 1 ? element.dataset.one : element.dataset.many).replace("{n}", n.toLocaleString("en-US"));
const ids = (list, what) => [...new Set(list.flatMap((tick) => what(tick).split(",").filter(Boolean)))];

function nameAll(list, others) {
  const names = list.slice(0, 3).map((tick) => tick.dataset.name);
  if (list.length > names.length) names.push(others.replace("{n}", list.length - names.length));
  return new Intl.ListFormat(document.documentElement.lang, { type: "conjunction" }).format(names);
}

/** The runs that the compare page gets: of each group one, as the page brings in its repeats by itself. */
function toCompare(list) {
  const alone = list.length === 1;
  return ids(list, (tick) => (alone ? tick.dataset.comparable : tick.dataset.comparable.split(",")[0]));
}

function showSelection() {
  const bar = document.getElementById("selection");
  if (!bar) return;
  const list = chosen();
  const all = ids(list, (tick) => tick.value);
  const comparable = toCompare(list);
  bar.hidden = all.length === 0;
  const selectAll = document.getElementById("select-all");
  if (selectAll) {
    selectAll.checked = list.length > 0 && list.length === ticks().length;
    selectAll.indeterminate = list.length > 0 && !selectAll.checked;
  }
  if (bar.hidden) return;
  bar.querySelector("[data-count]").textContent = words(bar, all.length);
  const dialog = document.getElementById("delete-dialog");
  const text = dialog.querySelector("[data-words]");
  const names = nameAll(list, text.dataset.others);
  bar.querySelector("[data-names]").textContent = names;
  text.textContent = text.dataset.words.replace("{names}", names);
  for (const element of document.querySelectorAll("#delete-dialog [data-one], #tag-dialog [data-one]")) element.textContent = words(element, all.length);

  const compare = bar.querySelector("[data-compare]");
  const enough = comparable.length >= 2 && comparable.length <= MOST_COMPARED;
  compare.setAttribute("aria-disabled", String(!enough));
  compare.title = enough ? "" : comparable.length < 2 ? bar.dataset.tooFew : bar.dataset.tooMany;
  if (enough) compare.href = `/compare?${new URLSearchParams(comparable.map((id) => ["run", id]))}`;
  else compare.removeAttribute("href");
}

document.addEventListener("change", ({ target }) => {
  if (target.id === "select-all") for (const tick of ticks()) tick.checked = target.checked;
  if (target.id === "select-all" || target.matches(".c-tick [name=run]")) showSelection();
});
document.addEventListener("click", ({ target }) => {
  if (!target.closest?.("[data-clear]")) return;
  for (const tick of chosen()) tick.checked = false;
  showSelection();
});
document.addEventListener("htmx:after:swap", showSelection);
document.addEventListener("htmx:finally:request", ({ detail: { ctx } }) => {
  if (ctx.sourceElement.matches?.("form[data-closes]") && ctx.response?.status < 400) ctx.sourceElement.closest("dialog").close();
});

// j and k walk down and up the rows, x ticks the row that has the focus, Esc clears the ticks.
function walk(step) {
  const rows = [...document.querySelectorAll("[data-row]")];
  const at = rows.indexOf(document.activeElement?.closest?.("[data-row]"));
  const row = rows[at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + step))];
  row?.querySelector(".c-name a.strong")?.focus();
  row?.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  if (isTyping(event) || document.querySelector("dialog[open]")) return;
  if (event.key === "j" || event.key === "k") walk(event.key === "j" ? 1 : -1);
  if (event.key === "x") event.target.closest?.("[data-row]")?.querySelector("[name=run]").click();
  if (event.key === "Escape" && chosen().length) {
    for (const tick of chosen()) tick.checked = false;
    showSelection();
  }
});
showSelection();
