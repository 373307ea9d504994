// Sizes of the panels: splitters between them, by mouse and keyboard, and one panel at a time over the whole page.
"use strict";
const layout = () => {
  const main = document.querySelector("main"), kept = "nenya_panels";
  const sizes = {columns: [34, 35, 31], rows: [51, 49]};
  try {
    const found = JSON.parse(localStorage.getItem(kept));
    for (const axis of Object.keys(sizes))
      if (found[axis].length === sizes[axis].length && found[axis].every((n) => n >= 10 && n <= 90)) sizes[axis] = found[axis];
  } catch (error) { /* nothing kept, or nothing may be */ }
  const bars = [...main.querySelectorAll("[role=separator]")];
  const apply = () => {
    for (const axis of Object.keys(sizes)) main.style.setProperty("--" + axis, sizes[axis].map((n) => `minmax(0, ${n}fr)`).join(" 6px "));
    for (const bar of bars) bar.setAttribute("aria-valuenow", Math.round(sizes[bar.dataset.axis].slice(0, +bar.dataset.split + 1).reduce((a, b) => a + b)));
  };
  const move = (bar, by) => {
    const list = sizes[bar.dataset.axis], k = +bar.dataset.split;
    const step = Math.max(12 - list[k], Math.min(by, list[k + 1] - 12));
    list[k] += step; list[k + 1] -= step;
    apply();
    try { localStorage.setItem(kept, JSON.stringify(sizes)); } catch (error) { /* only for this page then */ }
  };
  for (const bar of bars) {
    const across = bar.dataset.axis === "columns";
    let last = null;
    bar.addEventListener("pointerdown", (event) => { last = across ? event.clientX : event.clientY; bar.setPointerCapture(event.pointerId); event.preventDefault(); bar.focus(); });
    bar.addEventListener("pointermove", (event) => {
      if (last === null) return;
      const here = across ? event.clientX : event.clientY, box = main.getBoundingClientRect();
      move(bar, 100 * (here - last) / (across ? box.width : box.height));
      last = here;
    });
    bar.addEventListener("pointerup", () => { last = null; });
    bar.addEventListener("keydown", (event) => {
      const by = {ArrowLeft: -2, ArrowUp: -2, ArrowRight: 2, ArrowDown: 2}[event.key];
      if (by) { move(bar, by); event.preventDefault(); event.stopPropagation(); }
    });
  }
  apply();

  const sections = [...main.querySelectorAll("section")];
  let under = sections[0];
  const enlarge = (section) => {
    const large = section && !section.classList.contains("large");
    for (const other of sections) {
      other.classList.toggle("large", large && other === section);
      const button = other.querySelector(".enlarge");
      if (button) button.setAttribute("aria-pressed", String(large && other === section));
    }
  };
  for (const section of sections) {
    section.addEventListener("mouseenter", () => { under = section; });
    section.addEventListener("focusin", () => { under = section; });
    section.addEventListener("dblclick", (event) => {
      if (!event.composedPath().some((e) => /^(BUTTON|INPUT|SELECT|OPTION|LABEL|A|TR|SUMMARY|TEXTAREA)$/.test(e.tagName || ""))) enlarge(section);
    });
    const button = section.querySelector(".enlarge");
    if (button) button.addEventListener("click", () => enlarge(section));
  }
  return {
    toggle: () => enlarge(under),
    restore: () => { const large = main.querySelector(".large"); if (large) enlarge(large); return large !== null; },
  };
};
