
"use strict";
// --- tables: a click on a header sorts by it upwards, then downwards, then as it was -------------------------------

// The first number in a cell such as "≤ 1,234.5" or "0.25 ± 0.01"; undefined cells come last in both directions.
function numberIn(text) {
  const found = text.replace(/,/g, "").match(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
  return found ? Number(found[0]) : NaN;
}

function sorted(rows, column, isNumber, sign) {
  const keyed = rows.map((row) => {
    const text = row.cells[column].textContent;
    const value = isNumber ? numberIn(text) : text;
    return { row, value, last: isNumber ? Number.isNaN(value) : text === "" || text === "-" };
  });
  const order = isNumber ? (a, b) => a - b : (a, b) => a.localeCompare(b, undefined, { numeric: true });
  keyed.sort((a, b) => a.last - b.last || (a.last ? 0 : sign * order(a.value, b.value)));
  return keyed.map((one) => one.row);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const asWritten = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const next = { ascending: "descending", descending: null }[header.getAttribute("aria-sort")];
      const direction = next === undefined ? "ascending" : next;
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      if (direction) header.setAttribute("aria-sort", direction);
      const sign = direction === "descending" ? -1 : 1;
      body.append(...(direction ? sorted(asWritten, column, header.classList.contains("number"), sign) : asWritten));
    });
  });
}

// --- figures: a cell tells its numbers under the pointer, at a touch, and with the keyboard ------------------------

const tip = document.getElementById("tip");
const MARGIN = 8;
let told = null;

function hide() {
  if (told) told.classList.remove("told");
  told = null;
  tip.hidden = true;
}

// Above the cell, or below it where there is no room, and never outside the window.
function place() {
  const box = told.getBoundingClientRect();
  const left = box.left + box.width / 2 - tip.offsetWidth / 2;
  const above = box.top - tip.offsetHeight - MARGIN;
  const most = document.documentElement.clientWidth - tip.offsetWidth - MARGIN;
  const top = above >= MARGIN ? above : Math.min(box.bottom + MARGIN, window.innerHeight - tip.offsetHeight - MARGIN);
  tip.style.transform = `translate(${Math.round(Math.max(MARGIN, Math.min(left, most)))}px, ${Math.round(top)}px)`;
}

function tell(cell) {
  if (told === cell) return;
  hide();
  told = cell;
  told.classList.add("told");
  tip.textContent = cell.dataset.tip;
  tip.hidden = false;
  place();
}

// The next cell in a direction: the nearest, where a step aside counts as two ahead.
function neighbour(cell, x, y) {
  const centre = (one) => {
    const box = one.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  const [x0, y0] = centre(cell);
  let best = null;
  let least = Infinity;
  for (const other of cell.ownerSVGElement.querySelectorAll("[data-tip]:not(.tile)")) {
    const [x1, y1] = centre(other);
    const ahead = (x1 - x0) * x + (y1 - y0) * y;
    const distance = ahead + 2 * Math.abs((x1 - x0) * y + (y1 - y0) * x);
    if (ahead > 0.5 && distance < least) [best, least] = [other, distance];
  }
  return best;
}

const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// Tab leads to a chart once; the arrow keys lead on from cell to cell.
function enter(cell) {
  for (const other of cell.ownerSVGElement.querySelectorAll("[tabindex]")) other.setAttribute("tabindex", "-1");
  cell.setAttribute("tabindex", "0");
  cell.focus();
}

const cellOf = (event) => event.target.closest("[data-tip]");

for (const chart of document.querySelectorAll(".chart svg")) {
  for (const cell of chart.querySelectorAll("[data-tip]")) cell.setAttribute("aria-label", cell.dataset.tip);
  const first = chart.querySelector("[data-tip]:not(.tile)");
  if (first) first.setAttribute("tabindex", "0");
  chart.addEventListener("pointerover", (event) => (cellOf(event) ? tell(cellOf(event)) : hide()));
  chart.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
  chart.addEventListener("focusin", (event) => cellOf(event) && tell(cellOf(event)));
  chart.addEventListener("focusout", hide);
  chart.addEventListener("keydown", (event) => {
    const next = DIRECTIONS[event.key] && neighbour(event.target, ...DIRECTIONS[event.key]);
    if (DIRECTIONS[event.key]) event.preventDefault();
    if (next) enter(next);
  });
}
document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
document.addEventListener("pointerdown", (event) => !event.target.closest(".chart svg [data-tip]") && hide());
// What the keyboard chose stays while the page scrolls to it; what the pointer chose is no longer under it.
const follow = () => told && (told === document.activeElement ? place() : hide());
window.addEventListener("scroll", follow, { passive: true, capture: true });
