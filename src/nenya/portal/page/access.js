// Names for what Bokeh draws without one, and figures by keyboard.
"use strict";
const access = (act) => {
  const names = {
    colour: "colours of UMAP and map", order: "order of the gallery", scale: "colour scales of the gallery",
    near_filtered: "similar cutouts within the filters", near_other: "similar cutouts from other granules only",
  };
  const inner = (root, found = []) => {
    for (const e of root.querySelectorAll("*")) {
      if (/^(SELECT|INPUT)$/.test(e.tagName) || e.getAttribute("role") === "slider" || e.classList.contains("noUi-handle")) found.push(e);
      if (e.shadowRoot) inner(e.shadowRoot, found);
    }
    return found;
  };
  const label = () => {
    for (const [name, text] of Object.entries(names))
      for (const root of document.querySelectorAll(`[data-root-name=${name}]`)) for (const e of inner(root)) if (e.getAttribute("aria-label") !== text) e.setAttribute("aria-label", text);
    for (const root of document.querySelectorAll("[data-root-name=span]")) {
      const handles = inner(root).filter((e) => e.classList.contains("noUi-handle"));
      handles.forEach((e, k) => e.setAttribute("aria-label", k ? "highest temperature of the colours, K" : "lowest temperature of the colours, K"));
    }
  };
  label();
  new MutationObserver(label).observe(document.body, {childList: true, subtree: true});
  for (const wait of [100, 500, 2000]) setTimeout(label, wait);
  document.addEventListener("focusin", label);
  for (const figure of document.querySelectorAll("[data-figure]")) figure.addEventListener("keydown", (event) => {
    if (event.target !== figure || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = {ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down", "+": "in", "-": "out", Enter: "choose"}[event.key];
    if (!key) return;
    event.preventDefault(); event.stopPropagation();
    act(`figure:${figure.dataset.figure} ${key}`);
  });
};
