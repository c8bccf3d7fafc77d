// The runs page: which columns are shown. An address that names no columns gets those that were chosen last.
import { keep, kept } from "./kept.js";

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

function rememberColumns() {
  const columns = kept(COLUMNS, []);
  if (!Array.isArray(columns) || !columns.length || shownColumns().length) return;
  const address = new URLSearchParams(location.search);
  address.set("columns", columns.join(","));
  location.replace(`/runs?${address}`);
}
rememberColumns();
