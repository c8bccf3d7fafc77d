// Walls of images: arrows go from tile to tile and from row to row, Home and End to the ends; left and right go through the
// images once one is open; Esc closes it. An image that opens gets the focus; closing gives it back to its tile. In a matrix
// the arrows go from number to number.

/** The next link of a matrix in a direction, over cells that have none; null at its edge. */
function nextNumber(link, right, down) {
  const cell = link.closest("td");
  const rows = [...cell.closest("tbody").rows];
  let [row, column] = [rows.indexOf(cell.parentElement), cell.cellIndex];
  for (;;) {
    const next = rows[(row += down)]?.cells[(column += right)];
    if (!next) return null;
    const found = next.querySelector("a");
    if (found) return found;
  }
}

const DIRECTIONS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
document.addEventListener("keydown", (event) => {
  const link = event.target.closest?.(".cm td > a");
  if (!link || !(event.key in DIRECTIONS)) return;
  nextNumber(link, ...DIRECTIONS[event.key])?.focus();
  event.preventDefault();
});

document.addEventListener("keydown", (event) => {
  const detail = document.getElementById("detail");
  if (event.key === "Escape" && detail) detail.querySelector('[rel="up"]').click();
  if (event.target.matches?.("input, select, textarea, [role=tab], .cm a")) return;
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
  const to = {
    ArrowRight: at + 1,
    ArrowLeft: at - 1,
    ArrowDown: at + wide,
    ArrowUp: at - wide,
    Home: 0,
    End: tiles.length - 1,
  };
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

// Of a wall, a matrix, a list of tabs the Tab key stops at one: where the focus is, else at the current one, else at the first.
const ONE_STOP = ".wall, .cm, [role=tablist]";

function keepOneStop(group) {
  const links = [...group.querySelectorAll("a")];
  const isStop = [
    (link) => link === document.activeElement,
    (link) => link.matches("[aria-current], [aria-selected=true]"),
    () => true,
  ];
  const stop = isStop.map((wanted) => links.find(wanted)).find(Boolean);
  for (const link of links) link.tabIndex = link === stop ? 0 : -1;
}

document.addEventListener("focusin", ({ target }) => {
  const group = target.closest?.(ONE_STOP);
  if (group) keepOneStop(group);
});

// More tiles: the first of them gets the focus.
let before = null;
document.addEventListener("click", ({ target }) => {
  before = target.closest?.("[data-more]") ? document.querySelectorAll(".wall a.tile").length : null;
});
document.addEventListener("htmx:after:swap", () => {
  const tiles = document.querySelectorAll(".wall a.tile");
  if (before !== null && tiles.length > before) {
    tiles[before].focus();
    before = null;
  }
  document.querySelectorAll(ONE_STOP).forEach(keepOneStop);
});
document.querySelectorAll(ONE_STOP).forEach(keepOneStop);
