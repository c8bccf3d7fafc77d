// Walls of images: arrows go from tile to tile, or through the images once one is open; Esc closes it. An image that opens
// gets the focus; closing gives it back to its tile.
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

let open = document.getElementById("detail")?.dataset.closeTo ?? null;
document.addEventListener("htmx:after:swap", () => {
  const detail = document.getElementById("detail");
  const now = detail?.dataset.closeTo ?? null;
  if (now && now !== open) detail.focus();
  if (!now && open) document.getElementById(open)?.focus();
  open = now;
});
