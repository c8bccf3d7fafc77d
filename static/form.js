// The form of a new run: which of "Command" and "API call" is shown stays chosen while the form is checked.
// Everything else (checking, sweeps, layers) is the server's; the form works without this file.
const chosen = {};

function show(group, id) {
  for (const part of document.querySelectorAll(`[data-in="${group}"]`)) part.hidden = part.id !== id;
  for (const button of document.querySelectorAll(`[data-group="${group}"]`)) {
    button.setAttribute("aria-pressed", String(button.dataset.show === id));
  }
}

document.addEventListener("click", ({ target }) => {
  const button = target.closest?.("[data-show]");
  if (!button) return;
  chosen[button.dataset.group] = button.dataset.show;
  show(button.dataset.group, button.dataset.show);
});

document.addEventListener("htmx:after:swap", () => {
  for (const [group, id] of Object.entries(chosen)) show(group, id);
});

// "Go to the field" opens what hides the field and puts the cursor in it.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.('#summary a[href^="#"]');
  const field = link && document.getElementById(link.hash.slice(1));
  if (!field) return;
  event.preventDefault();
  const details = field.closest("details");
  if (details) details.open = true;
  field.scrollIntoView({ block: "center" });
  field.focus();
});
