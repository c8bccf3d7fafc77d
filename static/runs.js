// The runs page: the keys j, k and x, and the complaint about a search. Each other part has a module.
import { isTyping } from "./app.js";
import "./columns.js";
import { chosen, clear } from "./selection.js";
import "./views.js";

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

// A search that can't be read leaves the rows as they are and says why; one that can takes the complaint away.
document.addEventListener("htmx:finally:request", ({ detail: { ctx } }) => {
  if (ctx.sourceElement.id === "poller" || ctx.response?.status >= 400) return;
  if (ctx.target?.id === "main") document.getElementById("search-problem")?.replaceChildren();
});
