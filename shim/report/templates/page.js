"use strict";
// The page is complete without this: it only hides table rows that do not match the filter.
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const text = form.elements.namedItem("case");
  const boxes = [...form.querySelectorAll("input[type=checkbox]")];
  const said = document.getElementById("filter-result");

  const apply = () => {
    const wanted = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const hidden = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
    let cases = 0;
    for (const body of document.querySelectorAll("tbody[data-case]")) {
      const name = body.dataset.case.toLowerCase();
      body.hidden = !wanted.every((word) => name.includes(word));
      if (!body.hidden && body.dataset.counted !== undefined) cases += 1;
      for (const row of body.querySelectorAll("tr[data-contestant]")) {
        row.hidden = hidden.has(row.dataset.contestant);
      }
    }
    for (const section of document.querySelectorAll("section.group")) {
      section.hidden = ![...section.querySelectorAll("tbody[data-case]")].some((body) => !body.hidden);
    }
    said.textContent = cases === 1 ? "1 case shown" : `${cases} cases shown`;
  };

  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
})();
