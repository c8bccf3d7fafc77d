// The compare page: choices that send their form at once.
import "./wall.js";

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

// What a number of a table chose comes into sight.
document.addEventListener("htmx:after:swap", ({ detail: { ctx } }) => {
  const images = document.getElementById("images");
  if (images && ctx?.sourceElement?.closest?.(".pairs, .cm")) images.scrollIntoView({ block: "start" });
});
