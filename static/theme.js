// Applies the chosen theme before the first paint; without a choice the page follows the system.
try {
  const theme = localStorage.getItem("runoff-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is switched off: the system's theme stays.
}
