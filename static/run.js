// The run page: the epoch slider says its number while it moves, the log stays at its end and can be searched.
import "./wall.js";

const log = () => document.getElementById("log-text");
let atEnd = true;

function follow() {
  const text = log();
  if (text && atEnd) text.scrollTop = text.scrollHeight;
}

document.addEventListener(
  "scroll",
  ({ target }) => {
    if (target === log()) atEnd = target.scrollHeight - target.scrollTop - target.clientHeight < 24;
  },
  true,
);

/** Marks the lines that hold the words, and shows the first of them. */
function search() {
  const field = document.getElementById("log-search");
  const found = document.getElementById("log-found");
  const words = field.value.trim().toLowerCase();
  CSS.highlights?.delete("log");
  found.textContent = "";
  const node = log().firstChild;
  if (!words || !node) return;
  const text = node.nodeValue.toLowerCase();
  const ranges = [];
  for (let at = text.indexOf(words); at >= 0; at = text.indexOf(words, at + words.length)) {
    const range = new Range();
    range.setStart(node, at);
    range.setEnd(node, at + words.length);
    ranges.push(range);
  }
  found.textContent = ranges.length ? field.dataset.found.replace("{n}", ranges.length) : field.dataset.none;
  if (!ranges.length) return;
  CSS.highlights?.set("log", new Highlight(...ranges));
  const box = ranges.at(-1).getBoundingClientRect();
  atEnd = false;
  log().scrollTop += box.top - log().getBoundingClientRect().top - log().clientHeight / 2;
}

document.addEventListener("input", ({ target }) => {
  if (target.id === "log-search") search();
  if (target.id === "ep") document.querySelector("[data-epoch]").textContent = target.value;
});

// The newest epoch is not written into the address: a running run's page then goes on with its newest answers.
document.addEventListener("htmx:config:request", ({ detail: { ctx } }) => {
  const slider = document.getElementById("ep");
  if (slider && ctx.request.body?.get?.("epoch") === slider.dataset.last) ctx.request.body.delete("epoch");
});

document.addEventListener("htmx:after:swap", follow);
follow();
