// The import form: drop zone, a name from the file's, and the progress of the upload. Without this file the form works too.
import { refresh } from "./live.js";
import { showToast } from "./toasts.js";

const form = () => document.querySelector("form[data-upload]");

function suggestedName(fileName) {
  const stem = fileName.replace(/\.(zip|tar|tgz|tar\.gz)$/i, "");
  return stem
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-")
    .replace(/^-+|-+$/g, "")
    .slice(0, 64);
}

function megabytes(bytes) {
  return bytes < 1e5 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function showChosen() {
  const [file] = document.getElementById("import-file").files;
  document.querySelector("[data-chosen]").textContent = file ? `${file.name}, ${megabytes(file.size)}` : "";
  const name = document.getElementById("import-name");
  if (file && (!name.value || name.dataset.suggested === name.value)) {
    name.value = suggestedName(file.name);
    name.dataset.suggested = name.value;
  }
}

document.addEventListener("change", ({ target }) => target.id === "import-file" && showChosen());

// Dragging over the zone marks it; a file that misses it is not opened in place of the page.
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    const zone = event.target.closest?.("[data-drop]");
    document.querySelector("[data-drop]")?.classList.toggle("over", kind === "dragover" && Boolean(zone));
    if (kind !== "dragleave") event.preventDefault();
    if (kind !== "drop" || !zone || !event.dataTransfer.files.length) return;
    document.getElementById("import-file").files = event.dataTransfer.files;
    showChosen();
  });
}

function showProgress(share, words) {
  const box = form().querySelector("[data-progress]");
  box.hidden = share === null;
  form().querySelector("[data-abort]").hidden = share === null;
  form().querySelector("[type=submit]").disabled = share !== null;
  if (share === null) return;
  box.querySelector("progress").value = share;
  box.querySelector("[data-words]").textContent = words;
  box.querySelector("[data-percent]").textContent = `${Math.floor(100 * share)} %`;
}

/** Puts the form of an answer in place of ours: with its errors, or empty. The chosen file stays where it can. */
function replaceForm(html, keepFile) {
  const fresh = new DOMParser().parseFromString(html, "text/html").querySelector("form[data-upload]");
  if (!fresh) return false;
  const files = document.getElementById("import-file").files;
  form().replaceWith(document.importNode(fresh, true));
  if (keepFile) document.getElementById("import-file").files = files;
  showChosen();
  form().querySelector('[aria-invalid="true"]')?.focus();
  return true;
}

/** The sentence of an error page. */
function detailOf(html) {
  return new DOMParser().parseFromString(html, "text/html").querySelector("main h1 + p")?.textContent;
}

function send(sent) {
  const request = new XMLHttpRequest();
  const words = sent.dataset.sending.replace("{name}", document.getElementById("import-file").files[0].name);
  request.open("POST", sent.action);
  request.setRequestHeader("Accept", "text/html");
  request.upload.addEventListener("progress", ({ loaded, total }) =>
    showProgress(total ? loaded / total : 0, words),
  );
  request.addEventListener("load", () => {
    showProgress(null);
    const fine = request.status < 400;
    if (!replaceForm(request.responseText, !fine))
      showToast(detailOf(request.responseText) || sent.dataset.lost, "alert");
    else if (fine) showToast(sent.dataset.sent, "check");
    refresh();
  });
  request.addEventListener("error", () => {
    showProgress(null);
    showToast(sent.dataset.lost, "alert");
  });
  request.addEventListener("abort", () => showProgress(null));
  sent.querySelector("[data-abort]").addEventListener("click", () => request.abort(), { once: true });
  showProgress(0, words);
  request.send(new FormData(sent));
}

document.addEventListener("submit", (event) => {
  if (!event.target.matches("form[data-upload]")) return;
  event.preventDefault();
  send(event.target);
});
