// The runs page: ticked runs, and the bar that says what can be done with them.
import { showToast } from "./toasts.js";

const ticks = () => [...document.querySelectorAll(".c-tick [name=run]")];
export const chosen = () => ticks().filter((tick) => tick.checked);
const words = (element, n) =>
  (n === 1 ? element.dataset.one : element.dataset.many).replace("{n}", n.toLocaleString("en-US"));
const ids = (list, what) => [...new Set(list.flatMap((tick) => what(tick).split(",").filter(Boolean)))];

let everything = null; // ids of all runs that match, over all pages, once they were asked for

function nameAll(list, count, others) {
  const names = list.slice(0, 3).map((tick) => tick.dataset.name);
  if (count > names.length) names.push(others.replace("{n}", (count - names.length).toLocaleString("en-US")));
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
  const ticked = ids(list, (tick) => tick.value);
  const all = everything ?? ticked;
  const comparable = everything ?? toCompare(list);
  bar.hidden = all.length === 0;
  const selectAll = document.getElementById("select-all");
  if (selectAll) {
    selectAll.checked = list.length > 0 && list.length === ticks().length;
    selectAll.indeterminate = list.length > 0 && !selectAll.checked;
  }
  document.getElementById("all-matching").value = everything?.join(",") ?? "";
  const archived = new URLSearchParams(location.search).get("archived") === "true";
  for (const button of bar.querySelectorAll("[data-when]"))
    button.hidden = (button.dataset.when === "archived") !== archived;
  if (bar.hidden) return;
  const more = bar.querySelector("[data-all-matching]");
  const matching = Number(document.querySelector("[data-matching]").dataset.matching);
  more.hidden = Boolean(everything) || !selectAll?.checked || matching <= ticked.length;
  more.textContent = more.dataset.words.replace("{n}", matching.toLocaleString("en-US"));
  bar.querySelector("[data-count]").textContent = words(bar, all.length);
  const dialog = document.getElementById("delete-dialog");
  const text = dialog.querySelector("[data-words]");
  const names = nameAll(list, everything ? all.length : list.length, text.dataset.others);
  bar.querySelector("[data-names]").textContent = names;
  text.textContent = text.dataset.words.replace("{names}", names);
  for (const element of document.querySelectorAll("#delete-dialog [data-one], #tag-dialog [data-one]"))
    element.textContent = words(element, all.length);

  const compare = bar.querySelector("[data-compare]");
  const enough = comparable.length >= 2 && comparable.length <= Number(bar.dataset.mostCompared);
  compare.setAttribute("aria-disabled", String(!enough));
  compare.title = enough ? "" : comparable.length < 2 ? bar.dataset.tooFew : bar.dataset.tooMany;
  if (enough) compare.href = `/compare?${new URLSearchParams(comparable.map((id) => ["run", id]))}`;
  else compare.removeAttribute("href");
}

export function clear() {
  everything = null;
  for (const tick of chosen()) tick.checked = false;
  showSelection();
}

async function selectEverything() {
  const answer = await fetch(`/runs/matching${location.search}`);
  const body = await answer.json();
  if (answer.ok) everything = body;
  else showToast(body.detail, "alert");
  showSelection();
}

document.addEventListener("change", ({ target }) => {
  if (target.id === "select-all") for (const tick of ticks()) tick.checked = target.checked;
  if (target.id !== "select-all" && !target.matches(".c-tick [name=run]")) return;
  everything = null;
  showSelection();
});
document.addEventListener("click", ({ target }) => {
  if (target.closest?.("[data-clear]")) clear();
  if (target.closest?.("[data-all-matching]")) selectEverything();
});

// What was chosen over all pages belongs to one address, and is gone once something was done with it.
let chosenAt = location.search;
document.addEventListener("htmx:after:swap", ({ detail: { ctx } }) => {
  if (location.search !== chosenAt || ctx?.target?.id === "toasts") everything = null;
  chosenAt = location.search;
  showSelection();
});
document.addEventListener("htmx:finally:request", ({ detail: { ctx } }) => {
  if (ctx.sourceElement.matches?.("form[data-closes]") && ctx.response?.status < 400)
    ctx.sourceElement.closest("dialog").close();
});
showSelection();
