// What every page needs: theme, dialogs, toasts, copying, keys. A page's own gestures are in a file of its own.
import "./live.js";
import { showToast } from "./toasts.js";

const root = document.documentElement;

function isDark() {
  const chosen = root.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function toggleTheme() {
  root.dataset.theme = isDark() ? "light" : "dark";
  try {
    localStorage.setItem("runoff-theme", root.dataset.theme);
  } catch {
    // Storage is switched off: the choice lasts as long as the page.
  }
  document.dispatchEvent(new CustomEvent("runoff:theme"));
}

async function copy(button) {
  const text = button.dataset.copy || location.href;
  try {
    await navigator.clipboard.writeText(text);
    showToast(button.dataset.copied, "check");
  } catch {
    window.prompt(button.dataset.copied, text); // no clipboard without https: show it, marked, to be copied by hand
  }
}

/** Opens the dialog that a button names; `data-fill` holds the texts and values of its slots. */
function openDialog(button) {
  const dialog = document.getElementById(button.dataset.dialog);
  for (const [name, text] of Object.entries(JSON.parse(button.dataset.fill ?? "{}"))) {
    const slot = dialog.querySelector(`[data-slot="${name}"]`);
    if (slot instanceof HTMLInputElement) slot.value = text;
    else slot.textContent = text;
  }
  dialog.showModal();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-theme-toggle], [data-dialog], [data-close], [data-copy]");
  if (!button || button.getAttribute("aria-disabled") === "true") return;
  if ("themeToggle" in button.dataset) toggleTheme();
  if (button.dataset.dialog) openDialog(button);
  if ("close" in button.dataset) button.closest("dialog")?.close();
  if ("copy" in button.dataset) copy(button);
});

// A click beside a dialog closes it; closing gives the focus back to what opened it.
document.addEventListener("pointerdown", ({ target, clientX, clientY }) => {
  if (!(target instanceof HTMLDialogElement)) return;
  const box = target.getBoundingClientRect();
  const inside = clientX >= box.left && clientX <= box.right && clientY >= box.top && clientY <= box.bottom;
  if (!inside) target.close();
});

// Fields that were left empty stay out of the address.
document.addEventListener("htmx:config:request", ({ detail: { ctx } }) => {
  if (!ctx.sourceElement.matches?.("form[data-lean]")) return;
  for (const [name, value] of Array.from(ctx.request.body)) if (value === "") ctx.request.body.delete(name);
});
document.addEventListener("formdata", ({ target, formData }) => {
  if (!target.matches("form[data-lean]")) return;
  for (const [name, value] of Array.from(formData)) if (value === "") formData.delete(name);
});

/** Whether letters typed now belong to a field. */
export function isTyping(event) {
  const inField = event.target.matches?.(
    'input:not([type="checkbox"], [type="radio"], [type="range"]), select, textarea, [contenteditable]',
  );
  return inField || event.ctrlKey || event.metaKey || event.altKey;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && event.target.matches?.("input[type=search]")) {
    event.preventDefault(); // else the browser empties the field
    event.target.blur();
  }
  if (isTyping(event) || document.querySelector("dialog[open]")) return;
  const wanted = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (!wanted || wanted.closest("[hidden]")) return;
  event.preventDefault();
  if (wanted.matches("input, select, textarea")) wanted.focus();
  else wanted.click();
});

// What a swap takes away had the focus: then what is around it gets it, never the page as a whole.
let around = []; // ids of what holds the focus, from the inside out
document.addEventListener("htmx:before:swap", () => {
  around = [];
  for (let at = document.activeElement; at && at !== document.body; at = at.parentElement)
    if (at.id) around.push(at.id);
});
document.addEventListener("htmx:after:swap", () => {
  if (document.activeElement && document.activeElement !== document.body) return;
  const place = around.map((id) => document.getElementById(id)).find(Boolean);
  if (!place) return;
  if (place.tabIndex < 0) place.tabIndex = -1;
  place.focus({ preventScroll: true });
});

// Arrow keys walk through the tabs of a list and choose; Home and End go to its ends.
document.addEventListener("keydown", (event) => {
  const tab = event.target.closest?.('[role="tab"]');
  const tabs = [...(tab?.closest('[role="tablist"]')?.querySelectorAll('[role="tab"]') ?? [])];
  const at = tabs.indexOf(tab);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (to === undefined || at < 0) return;
  const next = tabs[(to + tabs.length) % tabs.length];
  event.preventDefault();
  next.focus();
  next.click();
});
