// Lines in the corner: put there by the server's answers or by a module; each leaves by itself unless it is being read.
const LIFE = 8000;
const leaving = new WeakMap();

function element(name, attributes = {}) {
  const made = document.createElementNS(
    name === "svg" || name === "use" ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml",
    name,
  );
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Shows a line. `stays` keeps it until it is removed by its caller. */
export function showToast(text, icon = "info", { stays = false, href = null, action = "" } = {}) {
  const toast = element("div", { class: "toast", "data-toast": "" });
  const picture = element("svg", { class: "icon", "aria-hidden": "true" });
  picture.append(element("use", { href: `#i-${icon}` }));
  const words = element("span");
  words.textContent = text;
  toast.append(picture, words);
  if (href) {
    const link = element("a", { class: "btn small", href });
    link.textContent = action;
    toast.append(link);
  }
  if (stays) toast.dataset.stays = "";
  document.getElementById("toasts").append(toast);
  return toast;
}

setInterval(() => {
  const now = performance.now();
  for (const toast of document.querySelectorAll("#toasts > [data-toast]:not([data-stays])")) {
    if (!leaving.has(toast) || toast.matches(":hover, :focus-within")) leaving.set(toast, now + LIFE);
    else if (now > leaving.get(toast)) toast.remove();
  }
}, 500);
