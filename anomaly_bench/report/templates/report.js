"use strict";
{
  // Table of records: clicking a header sorts by it, clicking again reverses the order.
  const table = document.getElementById("table"), body = table.tBodies[0], rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const order = new Intl.Collator(undefined, { numeric: true });

  function compare(first, second, column, sign) {
    const [a, b] = [first, second].map((row) => row.cells[column]);
    if (!("value" in a.dataset)) return sign * order.compare(a.textContent, b.textContent);
    if (a.dataset.value === "" || b.dataset.value === "") return (a.dataset.value === "") - (b.dataset.value === "");
    return sign * (a.dataset.value - b.dataset.value);
  }

  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const numeric = head.classList.contains("number");
    const next = { ascending: "descending", descending: "ascending" }[head.ariaSort] ?? (numeric ? "descending" : "ascending");
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", next);
    body.append(...rows.sort((a, b) => compare(a, b, column, next === "ascending" ? 1 : -1)));
  }));

  // Show the rows that match every search word and the chosen values.
  const form = document.getElementById("filters"), search = document.getElementById("search");
  const choices = [...form.querySelectorAll("select")], count = document.getElementById("count");
  const texts = new Map(rows.map((row) => [row, row.innerText.toLowerCase()]));

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const chosen = choices.every((choice) => !choice.value || row.cells[choice.dataset.column].textContent === choice.value);
      row.hidden = !chosen || !words.every((word) => texts.get(row).includes(word));
    }
    count.value = `${rows.filter((row) => !row.hidden).length} of ${rows.length} records`;
  }
  for (const event of ["input", "change"]) form.addEventListener(event, filter);
  form.addEventListener("reset", () => setTimeout(filter)); // once the fields are cleared
  form.addEventListener("submit", (event) => event.preventDefault());

  // Show only the chosen panel of each group.
  for (const choice of document.querySelectorAll("select[data-group]")) {
    const panels = [...document.querySelectorAll("[data-panel]")].filter((panel) => panel.dataset.panel === choice.dataset.group);
    const show = () => panels.forEach((panel) => { panel.hidden = panel.dataset.value !== choice.value; });
    choice.addEventListener("change", show);
    show();
  }

  // Legend checkboxes hide a method's lines, points and maps.
  for (const box of document.querySelectorAll("[data-legend] input")) {
    const section = box.closest("section");
    const parts = [...section.querySelectorAll(`.plot .series-${box.value}, .views .series-${box.value}`)];
    const show = () => parts.forEach((part) => { part.style.display = box.checked ? "" : "none"; });
    box.addEventListener("change", show);
  }

  // Ticked worst cases become the rows of a file of corrected labels, made here: the page needs no server.
  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
  for (const button of document.querySelectorAll("button[data-labels]")) {
    const boxes = [...button.closest("section").querySelectorAll(".tick input")];
    const ticked = () => new Map(boxes.filter((box) => box.checked).map((box) => [box.value, box.dataset.label]));
    for (const box of boxes) box.addEventListener("change", () => { button.disabled = !ticked().size; });
    button.addEventListener("click", () => {
      const rows = [...ticked()].map(([file, old]) => [file, "", "", "", old].map(quoted).join(","));
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([["file,label,mask,reason,old_label", ...rows, ""].join("\n")], { type: "text/csv" }));
      link.download = "labels.csv";
      link.click();
    });
  }
}
