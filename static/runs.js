// The runs page: ticks, the bar that says what they can be used for, columns, kept views, and the keys j, k and x.
import { isTyping } from "./app.js";
import { showToast } from "./toasts.js";

const ticks = () => [...document.querySelectorAll(".c-tick [name=run]")];
const chosen = () => ticks().filter((tick) => tick.checked);
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

function clear() {
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

// j and k walk down and up the rows, x ticks the row that has the focus, Esc clears the ticks.
function walk(step) {
  const rows = [...document.querySelectorAll("[data-row]")];
  const at = rows.indexOf(document.activeElement?.closest?.("[data-row]"));
  const row =
    rows[at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + step))];
  row?.querySelector(".c-name a.strong")?.focus();
  row?.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  if (isTyping(event) || document.querySelector("dialog[open]")) return;
  if (event.key === "j" || event.key === "k") walk(event.key === "j" ? 1 : -1);
  if (event.key === "x") event.target.closest?.("[data-row]")?.querySelector("[name=run]").click();
  if (event.key === "Escape" && chosen().length) clear();
});
showSelection();

// A search that can't be read leaves the rows as they are and says why; one that can takes the complaint away.
document.addEventListener("htmx:finally:request", ({ detail: { ctx } }) => {
  if (ctx.sourceElement.id === "poller" || ctx.response?.status >= 400) return;
  if (ctx.target?.id === "main") document.getElementById("search-problem")?.replaceChildren();
});

// What this browser keeps: the chosen columns, and views. Where storage is switched off, nothing is kept.
function kept(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function keep(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // the address still has it
  }
}

const COLUMNS = "runoff-columns";
const boxes = () => [...document.querySelectorAll("#columns-form [name=columns]")];
const shownColumns = () =>
  new URLSearchParams(location.search).getAll("columns").join(",").split(",").filter(Boolean);

function tickColumns(names) {
  for (const box of boxes()) box.checked = names.length ? names.includes(box.value) : "usual" in box.dataset;
}

document.addEventListener("click", ({ target }) => {
  if (target.closest?.("[data-dialog=columns-dialog]")) tickColumns(shownColumns());
  if (target.closest?.("[data-usual-columns]")) tickColumns([]);
  if (target.closest?.("[data-dialog=views-dialog]")) listViews();
});
document.addEventListener("submit", ({ target }) => {
  if (target.id !== "columns-form") return;
  const isUsual = boxes().every((box) => box.checked === "usual" in box.dataset);
  keep(
    COLUMNS,
    isUsual
      ? []
      : boxes()
          .filter((box) => box.checked)
          .map((box) => box.value),
  );
});

/** An address that names no columns gets those that were chosen last. */
function rememberColumns() {
  const columns = kept(COLUMNS, []);
  if (!Array.isArray(columns) || !columns.length || shownColumns().length) return;
  const address = new URLSearchParams(location.search);
  address.set("columns", columns.join(","));
  location.replace(`/runs?${address}`);
}
rememberColumns();

// Views: a name and the address behind it.
const VIEWS = "runoff-views";
const LEFT_OUT = ["page", "until"];

function keptViews() {
  const views = kept(VIEWS, []);
  return Array.isArray(views)
    ? views.filter((view) => typeof view?.name === "string" && typeof view?.search === "string")
    : [];
}

function viewLine(view) {
  const list = document.getElementById("views");
  const line = document.createElement("li");
  line.className = "row tight";
  const link = document.createElement("a");
  link.href = `/runs?${view.search}`;
  link.textContent = view.name;
  const remove = document.createElement("button");
  Object.assign(remove, { type: "button", className: "btn quiet small push", textContent: "×" });
  remove.setAttribute("aria-label", list.dataset.remove.replace("{name}", view.name));
  remove.addEventListener("click", () => {
    keep(
      VIEWS,
      keptViews().filter((other) => other.name !== view.name),
    );
    listViews();
    document.getElementById("view-name").focus();
  });
  line.append(link, remove);
  return line;
}

function listViews() {
  const views = keptViews();
  document.getElementById("views").replaceChildren(...views.map(viewLine));
  document.getElementById("no-views").hidden = views.length > 0;
}

document.addEventListener("submit", (event) => {
  if (event.target.id !== "save-view") return;
  event.preventDefault();
  const field = document.getElementById("view-name");
  const address = new URLSearchParams(location.search);
  for (const name of LEFT_OUT) address.delete(name);
  const view = { name: field.value.trim(), search: address.toString() };
  if (!view.name) return;
  keep(
    VIEWS,
    [...keptViews().filter((other) => other.name !== view.name), view].sort((a, b) =>
      a.name.localeCompare(b.name),
    ),
  );
  field.value = "";
  listViews();
});
