// Draws figures with plotly.js in the colours of the tokens; again on a change of theme, and with new points when the
// page's data-version changes: the chart stays, with its zoom. The numbers come as JSON from data-figure.
const figures = new WeakMap(); // .figure element -> the JSON that it shows
const probe = document.createElement("span"); // its computed colour is a token's; outside the body, which may be replaced
probe.hidden = true;
document.documentElement.append(probe);

/** The colour of a token as rgb(), with an opacity where wanted. */
function colour(token, opacity = 1) {
  probe.style.color = `var(--${token})`;
  const value = getComputedStyle(probe).color;
  return opacity === 1 ? value : value.replace(/^rgb\((.*)\)$/, `rgba($1, ${opacity})`);
}

function painted(trace) {
  const { color, fill } = trace.meta;
  const hue = colour(color);
  const made = { ...trace, line: { ...trace.line, color: hue } };
  if (fill) return { ...made, fillcolor: colour(color, fill) };
  const open = String(trace.marker.symbol).endsWith("open") || trace.marker.symbol === "x";
  made.marker = {
    ...trace.marker,
    color: hue,
    line: { ...trace.marker.line, color: open ? hue : colour("surface") },
  };
  return made;
}

function axis(own) {
  const faint = colour("ink-2");
  return {
    gridcolor: colour("line"),
    linecolor: colour("line-strong"),
    zeroline: false,
    tickfont: { size: 11, color: faint },
    automargin: true,
    showline: false,
    ...own,
    title: { ...own.title, font: { size: 11, color: faint }, standoff: 6 },
  };
}

function layout(own) {
  return {
    ...own,
    autosize: true,
    height: 230,
    showlegend: false,
    margin: { l: 44, r: 14, t: 10, b: 40 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
    hoverlabel: {
      bgcolor: colour("surface"),
      bordercolor: colour("line-strong"),
      font: { color: colour("ink"), size: 12 },
    },
    xaxis: axis({ showgrid: false, showline: true, ...own.xaxis }),
    yaxis: axis(own.yaxis ?? {}),
  };
}

const CONFIG = { displayModeBar: false, responsive: true, showTips: false };

function draw(element) {
  const figure = figures.get(element);
  const place = element.firstElementChild;
  if (!figure || !place) return;
  window.Plotly.react(place, figure.data.map(painted), layout(figure.layout), CONFIG);
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", element.dataset.label ?? "");
}

async function load(element) {
  const { version, figure: address } = element.dataset;
  try {
    const answer = await fetch(address, { headers: { Accept: "application/json" } });
    if (!answer.ok) return;
    const figure = await answer.json();
    if (element.dataset.version !== version || element.dataset.figure !== address) return; // a newer one is on its way
    figures.set(element, figure);
    draw(element);
  } catch {
    // The connection is lost; the page says so, and the next version brings the points.
  }
}

const watcher = new MutationObserver((changes) => {
  for (const element of new Set(changes.map((change) => change.target))) load(element);
});

function begin() {
  for (const element of document.querySelectorAll(".figure[data-figure]")) {
    if (element.dataset.watched) continue;
    element.dataset.watched = "yes";
    watcher.observe(element, { attributes: true, attributeFilter: ["data-version", "data-figure"] });
    load(element);
  }
}

function redraw() {
  document.querySelectorAll(".figure[data-figure]").forEach(draw);
}

document.addEventListener("runoff:theme", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
document.addEventListener("htmx:after:swap", begin);
begin();
