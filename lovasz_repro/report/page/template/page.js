"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);

/* An element with text and children; text never becomes markup. */
function make(tag, text = "", children = []) {
  const element = document.createElement(tag);
  element.textContent = text;
  element.append(...children);
  return element;
}

/* -- where a number comes from: the runs of the table at the end, in a popover ----------------- */

const popover = one("#provenance");
let openedAt = 0; // where the page was scrolled to
const runRows = all("table.runs tbody tr").map((row) => [...row.cells].map((cell) => cell.textContent));
const runHeads = all("table.runs thead th").map((cell) => cell.textContent);

function describeRuns(numbers) {
  const rows = numbers.map((number) => runRows[number]);
  const shared = runHeads.map((head, i) => rows.every((row) => row[i] === rows[0][i]));
  const common = make("dl");
  const varied = make("table");
  const heads = make("tr");
  runHeads.forEach((head, i) => {
    if (shared[i]) common.append(make("dt", head), make("dd", rows[0][i]));
    else heads.append(Object.assign(make("th", head), { scope: "col" }));
  });
  varied.append(make("thead", "", [heads]), make("tbody", "", rows.map((row) =>
    make("tr", "", row.filter((_, i) => !shared[i]).map((text) => make("td", text))))));
  return rows.length > 1 ? [common, varied] : [common];
}

function openSource(button) {
  const { runs, command, about, n } = button.dataset;
  const numbers = runs ? runs.split(" ").map(Number) : [];
  popover.replaceChildren(make("p", about, []));
  popover.firstChild.className = "about";
  const value = button.textContent.trim();
  if (command) {
    popover.append(make("p", "Not yet run. This fills it:"), make("p", "", [make("code", command)]));
  } else {
    const many = numbers.length > 1 ? `${numbers.length} runs` : "one run";
    popover.append(make("p", n ? `${value}, over ${n} ${n === "1" ? "value" : "values"} of ${many}` : `${value}: ${many}`));
    popover.append(...describeRuns(numbers));
  }
  const close = make("button", "Close");
  close.type = "button";
  close.addEventListener("click", () => popover.hidePopover());
  popover.append(close);
  popover.showPopover({ source: button });
  openedAt = window.scrollY;
  placeBeside(button);
}

/* Below the number, or above it where there is more room; a narrow page has it at its foot. */
function placeBeside(button) {
  const at = button.getBoundingClientRect();
  const { innerWidth: width, innerHeight: height } = window;
  const narrow = width < 640;
  const below = height - at.bottom;
  const room = Math.max(below, at.top) - 16;
  popover.style.maxHeight = narrow ? "60vh" : `${Math.max(160, room)}px`;
  const size = popover.getBoundingClientRect();
  popover.style.left = narrow ? "0" : `${Math.max(8, Math.min(at.left, width - size.width - 8))}px`;
  popover.style.top = narrow ? `${height - size.height}px`
    : below >= size.height + 8 || below >= at.top ? `${at.bottom + 4}px` : `${at.top - size.height - 4}px`;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button.source");
  if (button) openSource(button);
});
// The event of a scroll that brought the number into view may come after it was opened.
window.addEventListener("scroll", () => {
  if (window.scrollY !== openedAt) popover.hidePopover();
}, { passive: true });

/* -- tables: sorted by any column within their blocks; arrow keys go from number to number ------ */

function sortBy(header) {
  const table = header.closest("table");
  const state = header.getAttribute("aria-sort");
  const next = { ascending: "descending", descending: null }[state] ?? (state ? null : "ascending");
  all("[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
  if (next) header.setAttribute("aria-sort", next);
  const key = (row) => {
    const { value } = row.cells[header.cellIndex].dataset;
    if (header.cellIndex === 0) return row.cells[0].textContent;
    return value === undefined ? null : Number(value);
  };
  for (const body of table.tBodies) {
    const rows = all("tr:not(.heading)", body);
    rows.forEach((row, i) => { row.dataset.order ??= i; });
    rows.sort((a, b) => {
      const natural = a.dataset.order - b.dataset.order;
      const [x, y] = [key(a), key(b)];
      if (!next || x === y) return natural;
      if (x === null || y === null) return x === null ? 1 : -1;
      const ascending = typeof x === "string" ? x.localeCompare(y) : x - y;
      return next === "ascending" ? ascending : -ascending;
    });
    body.append(...rows);
  }
}

all("button.sort").forEach((button) => button.addEventListener("click", () => sortBy(button.closest("th"))));

/* One stop of the Tab key for each table; its numbers are reached by arrows. */
all("table.numbers").forEach((table) => {
  const buttons = all("button.source", table);
  buttons.forEach((button, i) => { button.tabIndex = i ? -1 : 0; });
  table.addEventListener("keydown", (event) => {
    const from = event.target.closest("button.source");
    const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key] ?? [];
    if (!from || down === undefined) return;
    event.preventDefault();
    const to = nextNumber(table, from.closest("td"), down, right);
    if (!to) return;
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  });
});

function nextNumber(table, cell, down, right) {
  const rows = all("tbody tr:not(.heading)", table).filter((row) => row.offsetParent);
  let [r, c] = [rows.indexOf(cell.parentNode), cell.cellIndex];
  while (rows[r]?.cells[c]) {
    [r, c] = [r + down, c + right];
    const found = rows[r]?.cells[c] && one("button.source", rows[r].cells[c]);
    if (found) return found;
  }
  return null;
}

/* -- filters: what has a verdict and a scale that are ticked -------------------------------------- */

const filters = one("#filters");

function filter() {
  const ticked = (name) => new Set(all(`input[name=${name}]:checked`, filters).map((box) => box.value));
  const [scales, verdicts] = [ticked("scale"), ticked("verdict")];
  const known = new Set(all("input[name=scale]", filters).map((box) => box.value));
  const of = (text) => text.split(" ").some((scale) => scales.has(scale) || !known.has(scale));
  let shown = 0;
  for (const claim of all(".claim")) {
    claim.hidden = !claim.dataset.pairs.split(" ").some((pair) => {
      const [scale, verdict] = pair.split(":");
      return of(scale) && verdicts.has(verdict);
    });
    shown += !claim.hidden;
    all("li[data-verdict]", claim).forEach((set) => {
      set.hidden = !(of(set.dataset.scale) && verdicts.has(set.dataset.verdict));
    });
    all(".evidence", claim).forEach((part) => {
      part.hidden = all("li[data-verdict]", part).every((set) => set.hidden);
    });
  }
  all("figure[data-scale], tbody[data-scale]").forEach((part) => { part.hidden = !of(part.dataset.scale); });
  all("[data-block]").forEach((block) => {
    block.hidden = all("tbody", block).every((body) => body.hidden);
  });
  const total = all(".claim").length;
  one("#filtered").textContent = shown === total ? `All ${total} statements are shown.`
    : `${shown} of ${total} statements are shown.`;
}

filters.addEventListener("change", filter);
filters.addEventListener("reset", () => setTimeout(filter));
filters.addEventListener("submit", (event) => event.preventDefault());
filter(); /* a browser may have kept boxes unticked from before */

/* -- contents: open where there is room, and marked where one reads ------------------------------ */

const menu = one("#menu");
const wide = window.matchMedia("(min-width: 70rem)");
const settle = () => { menu.open = wide.matches; };
wide.addEventListener("change", settle);
settle();
all(".toc a").forEach((link) => link.addEventListener("click", () => { if (!wide.matches) menu.open = false; }));

const headings = all(".toc a").map((link) => [link, document.getElementById(link.hash.slice(1))]);
function mark() {
  const passed = headings.filter(([, heading]) => heading.getBoundingClientRect().top < 120);
  const [current] = passed.at(-1) ?? headings[0];
  headings.forEach(([link]) => link.toggleAttribute("aria-current", link === current));
}
window.addEventListener("scroll", mark, { passive: true });
mark();

/* -- a printed page has what was folded ----------------------------------------------------------- */

let folded = [];
window.addEventListener("beforeprint", () => {
  folded = all("main details:not([open])");
  folded.forEach((part) => { part.open = true; });
});
window.addEventListener("afterprint", () => folded.forEach((part) => { part.open = false; }));

/* -- Sec. 4.1: the bias, the mask and the losses --------------------------------------------------- */

const text = one("#bias-data")?.textContent;
if (text) {
  const { b, losses, label, features, plot: [left, right, top, bottom] } = JSON.parse(text);
  const slider = one("#bias");
  const signed = (value, digits) => value.toFixed(digits).replace("-", "−").replace(/^−(0(\.0*)?)$/, "$1");
  const ranges = Object.fromEntries(Object.entries(losses).map(([name, values]) =>
    [name, [Math.min(...values), Math.max(...values)]]));

  const paint = (id, colour) => {
    const canvas = one(id);
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    for (let i = 0; i < label.length; i++) image.data.set([...colour(i), 255], 4 * i);
    context.putImageData(image, 0, 0);
  };
  const grey = (value) => [value, value, value];
  const [low, high] = [Math.min(...features), Math.max(...features)];
  paint("#bias-label", (i) => grey(255 * label[i]));
  paint("#bias-features", (i) => grey(255 * (features[i] - low) / (high - low || 1)));

  const move = () => {
    const step = (b.at(-1) - b[0]) / (b.length - 1);
    const at = Math.round((Number(slider.value) - b[0]) / step);
    const bias = b[at];
    const inside = features.map((feature) => feature > -bias);
    let [hits, misses, alarms] = [0, 0, 0];
    inside.forEach((is, i) => { if (label[i]) { if (is) hits++; else misses++; } else if (is) alarms++; });
    const union = hits + misses + alarms;
    const jaccard = union ? (misses + alarms) / union : 0;
    const colours = { hit: [240, 240, 240], miss: [0, 114, 178], alarm: [213, 94, 0], rest: [20, 20, 20] };
    paint("#bias-mask", (i) => colours[label[i] ? (inside[i] ? "hit" : "miss") : (inside[i] ? "alarm" : "rest")]);
    const said = `${hits} pixels found, ${misses} missed, ${alarms} false alarms; Jaccard loss of this image ${(100 * jaccard).toFixed(2)} %`;
    one("#bias-mask").setAttribute("aria-label", `The mask: ${said}`);
    one("#bias-image").textContent = said;
    one("#bias-value").textContent = signed(bias, 2);
    slider.setAttribute("aria-valuetext", signed(bias, 2));
    const x = left + (right - left) * at / (b.length - 1);
    one("#bias-line").setAttribute("d", `M${x} ${top}V${bottom}`);
    for (const [name, values] of Object.entries(losses)) {
      const [lowest, highest] = ranges[name];
      const relative = highest > lowest ? (values[at] - lowest) / (highest - lowest) : 0;
      const dot = one(`circle[data-loss="${name}"]`);
      dot.setAttribute("cx", x);
      dot.setAttribute("cy", bottom - (bottom - top) * relative);
      const row = one(`.bias-table tr[data-loss="${name}"]`);
      one(".value", row).textContent = values[at].toFixed(4);
      one(".above", row).textContent = (values[at] - lowest).toFixed(4);
    }
  };
  slider.addEventListener("input", move);
  all(".bias-table .to").forEach((button) => button.addEventListener("click", () => {
    slider.value = b[button.dataset.index];
    move();
  }));
  move();
}
