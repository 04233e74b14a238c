"use strict";
// Sort a table by a column: figures by their value, words by the alphabet, what is missing last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, at) => row.cells[at].dataset.value ?? row.cells[at].textContent.trim();
  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [x, y] = [value(a, at), value(b, at)];
        const [p, q] = [Number.parseFloat(x), Number.parseFloat(y)];
        const missing = Number(x === "-" || x === "") - Number(y === "-" || y === "");
        if (missing) return missing;
        const order = Number.isNaN(p) || Number.isNaN(q) ? x.localeCompare(y) : p - q;
        return down ? -order : order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
// Axes and legends take the ink of the page, in light and in dark.
function paint() {
  if (!window.Bokeh) return;
  const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  for (const page of window.Bokeh.documents) {
    for (const name of THEMED) {
      const model = page.get_model_by_name(name);
      if (!model) continue;
      if (name.endsWith("-legend")) {
        model.label_text_color = ink;
      } else {
        model.axis_label_text_color = ink;
        model.major_label_text_color = ink;
        model.axis_line_color = model.major_tick_line_color = model.minor_tick_line_color = ink;
      }
    }
  }
}
const dark = window.matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", paint);
window.addEventListener("load", () => setTimeout(paint, 50));
