{
  // Show only the chosen panel of each group.
  for (const choice of document.querySelectorAll("select[data-group]")) {
    const panels = [...document.querySelectorAll("[data-panel]")].filter((panel) => panel.dataset.panel === choice.dataset.group);
    const show = () => panels.forEach((panel) => { panel.hidden = panel.dataset.value !== choice.value; });
    choice.addEventListener("change", show);
    show();
  }
}
