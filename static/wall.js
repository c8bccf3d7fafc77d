// Walls of images: arrows go from tile to tile and from row to row, Home and End to the ends; left and right go through the
// images once one is open; Esc closes it. An image that opens
// gets the focus; closing gives it back to its tile.
document.addEventListener("keydown", (event) => {
  const detail = document.getElementById("detail");
  if (event.key === "Escape" && detail) detail.querySelector('[rel="up"]').click();
  if (event.target.matches?.("input, select, textarea, [role=tab]")) return;
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step && detail) {
    detail.querySelector(step > 0 ? '[rel="next"]' : '[rel="prev"]')?.click();
    event.preventDefault();
    return;
  }
  const tiles = [...(event.target.closest?.(".wall")?.querySelectorAll("a.tile") ?? [])];
  const at = tiles.indexOf(event.target.closest?.("a.tile"));
  if (at < 0) return;
  const columns = tiles.findIndex((tile) => tile.offsetTop > tiles[0].offsetTop);
  const wide = columns < 0 ? tiles.length : columns;
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + wide, ArrowUp: at - wide, Home: 0, End: tiles.length - 1 };
  if (!(event.key in to)) return;
  tiles[to[event.key]]?.focus();
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
