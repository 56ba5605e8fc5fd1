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
}
