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
      const absent = (cell) => cell === "-" || cell === "";
      // One rule for the whole column: a mixture of figures and words is sorted as words.
      const figures = rows.every((row) => absent(value(row, at)) || !Number.isNaN(Number(value(row, at))));
      rows.sort((a, b) => {
        const [x, y] = [value(a, at), value(b, at)];
        if (absent(x) !== absent(y)) return Number(absent(x)) - Number(absent(y));
        const order = figures ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
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
window.matchMedia("print").addEventListener("change", paint);
window.addEventListener("load", () => setTimeout(paint, 50));
