"""Write static/vendor/plotly.css: the style rules that the vendored plotly.js puts into the page when it is loaded.

Under ``style-src 'self'`` the browser refuses them, so they are taken out once, in a Chromium without that policy, and
linked as a file. Run it when the bundle changes: ``python scripts/plotly_css.py`` (needs the ``dev`` extra and Chromium;
``CHROMIUM`` names the executable where it isn't /usr/bin/chromium).
"""

from __future__ import annotations

import os
from pathlib import Path

from playwright.sync_api import sync_playwright

VENDOR = Path(__file__).resolve().parent.parent / "static" / "vendor"
BUNDLE = VENDOR / "plotly-basic.min.js"
RULES = "() => [...document.getElementById('plotly.js-style-global').sheet.cssRules].map((rule) => rule.cssText)"


def plotly_rules() -> list[str]:
    """The rules in the order in which they stand in the page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.add_script_tag(path=BUNDLE)
        rules: list[str] = page.evaluate(RULES)
        browser.close()
    return rules


def main() -> None:
    rules = plotly_rules()
    (VENDOR / "plotly.css").write_text("\n".join(rules) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
