"use strict";
// The page is complete without this: it only hides rows that do not match the filter, and sorts tables.
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const chosen = (name) => form.elements.namedItem(name)?.value ?? "";
  const boxes = [...form.querySelectorAll("input[type=checkbox]")];
  const said = document.getElementById("filter-result");

  const apply = () => {
    const wanted = chosen("case").toLowerCase().split(/\s+/).filter(Boolean);
    const hidden = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
    let cases = 0;
    for (const part of document.querySelectorAll("[data-case]")) {
      const name = part.dataset.case.toLowerCase();
      const of = (key) => !chosen(key) || part.dataset[key] === chosen(key);
      part.hidden = !(wanted.every((word) => name.includes(word)) && of("op") && of("direction"));
      if (!part.hidden && part.dataset.counted !== undefined) cases += 1;
    }
    for (const part of document.querySelectorAll("[data-contestant]")) {
      part.hidden = hidden.has(part.dataset.contestant);
    }
    for (const section of document.querySelectorAll("section.group")) {
      section.hidden = ![...section.querySelectorAll("[data-case]")].some((part) => !part.hidden);
    }
    said.textContent = cases === 1 ? "1 case shown" : `${cases} cases shown`;
  };

  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
})();

(() => {
  const value = (row, column) => Number(row.cells[column].dataset.value ?? Infinity);

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      heading.ariaSort = column ? "none" : "ascending";
      button.addEventListener("click", () => {
        const up = heading.ariaSort !== "ascending";
        for (const other of headings) other.ariaSort = "none";
        heading.ariaSort = up ? "ascending" : "descending";
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => value(a, column) - value(b, column) || 0);
        table.tBodies[0].append(...(up ? rows : rows.reverse()));
      });
    });
  }
})();
