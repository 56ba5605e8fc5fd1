{
  // Legend checkboxes hide a method's lines, points and maps, and its row where a heat map has one for each method.
  for (const box of document.querySelectorAll("[data-legend] input")) {
    const section = box.closest("section");
    const parts = [...section.querySelectorAll(`.plot .series-${box.value}, .views .series-${box.value}`)];
    for (const heat of section.querySelectorAll(".by-method tbody")) parts.push(heat.rows[box.value]);
    const show = () => parts.forEach((part) => { part.style.display = box.checked ? "" : "none"; });
    box.addEventListener("change", show);
  }

  // Choices of a trait tick the methods that have all of them, and list only these.
  for (const section of document.querySelectorAll("section.setup")) {
    const choices = [...section.querySelectorAll("select[data-trait]")], labels = [...section.querySelectorAll("[data-legend] label")];
    const show = () => labels.forEach((label) => {
      const box = label.querySelector("input");
      const chosen = choices.every((choice) => !choice.value || label.dataset[choice.dataset.trait] === choice.value);
      label.hidden = !chosen;
      if (box.checked !== chosen) box.click();
    });
    for (const choice of choices) choice.addEventListener("change", show);
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
