// The compare page: choices that send their form at once, arrows through the wall, Esc closes the image that is open.
document.addEventListener("change", ({ target }) => {
  if (target.matches("[data-submit]") && target.form) target.form.requestSubmit();
  if (target.id === "margin") target.form.requestSubmit();
});
// A choice that was left empty stays out of the address.
document.addEventListener("formdata", ({ target, formData }) => {
  if (target.getAttribute("action") !== "/compare") return;
  const entries = [...formData].filter(([, value]) => value !== "");
  for (const name of new Set(formData.keys())) formData.delete(name);
  for (const [name, value] of entries) formData.append(name, value);
});

document.addEventListener("keydown", (event) => {
  const detail = document.getElementById("detail");
  if (event.key === "Escape" && detail) detail.querySelector('[rel="up"]').click();
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step || event.target.matches?.("input, select, textarea, [role=tab]")) return;
  if (detail) {
    detail.querySelector(step > 0 ? '[rel="next"]' : '[rel="prev"]')?.click();
    event.preventDefault();
    return;
  }
  const tiles = [...(event.target.closest?.(".wall")?.querySelectorAll("a.tile") ?? [])];
  if (!tiles.length) return;
  tiles[tiles.indexOf(event.target) + step]?.focus();
  event.preventDefault();
});

// What a number of a table chose comes into sight; an image that opens gets the focus, its tile gets it back.
let open = document.getElementById("detail")?.dataset.closeTo ?? null;
document.addEventListener("htmx:after:swap", ({ detail: { ctx } }) => {
  const source = ctx?.sourceElement;
  const images = document.getElementById("images");
  if (images && source?.closest?.(".pairs, .cm")) images.scrollIntoView({ block: "start" });
  const detail = document.getElementById("detail");
  const now = detail?.dataset.closeTo ?? null;
  if (now && now !== open) detail.focus();
  if (!now && open) document.getElementById(open)?.focus();
  open = now;
});
