// The runs page: views, which are a name and the address behind it.
import { keep, kept } from "./kept.js";

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

document.addEventListener("click", ({ target }) => {
  if (target.closest?.("[data-dialog=views-dialog]")) listViews();
});
