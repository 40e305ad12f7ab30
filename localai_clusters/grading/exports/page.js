"use strict";
const table = document.getElementById("grades");
const rows = [...table.tBodies];
const find = document.getElementById("find"), outcome = document.getElementById("outcome");
const flagged = document.getElementById("flagged"), counting = document.getElementById("counting");
const shown = document.getElementById("shown"), open = document.getElementById("open");
const texts = rows.map(row => row.textContent.toLowerCase());

function filter() {
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  rows.forEach((row, i) => {
    const data = row.dataset;
    const visible = words.every(word => texts[i].includes(word)) && (!outcome.value || data.outcome === outcome.value)
      && (!flagged.checked || data.flags !== "0") && (!counting.checked || data.counts === "yes");
    row.hidden = !visible;
    count += visible;
  });
  shown.textContent = count === rows.length ? `${count} files` : `${count} of ${rows.length} files`;
}

function sort(head) {
  const key = head.dataset.key, down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const numeric = key === "points" || key === "flags";
  const value = row => numeric ? (row.dataset[key] === "" ? -1 : Number(row.dataset[key])) : row.dataset[key];
  const order = rows.map((row, i) => [value(row), i, row]);
  order.sort((a, b) => (numeric ? a[0] - b[0] : a[0].localeCompare(b[0])) * (down ? -1 : 1) || a[1] - b[1]);
  table.append(...order.map(item => item[2]));
}

for (const head of table.tHead.rows[0].cells) head.addEventListener("click", () => sort(head));
for (const control of [find, outcome, flagged, counting]) control.addEventListener("input", filter);
open.addEventListener("click", () => {
  const opening = open.textContent === "open all";
  for (const row of rows) if (!row.hidden) row.querySelector("details").open = opening;
  open.textContent = opening ? "close all" : "open all";
});
filter();
