// One finger moves the page, also over figures, unless a tool is chosen: by the button, or in a figure's toolbar.
"use strict";
const touch = (page) => {
  const button = document.getElementById("touch");
  if (!button || !matchMedia("(pointer: coarse)").matches) return;
  button.hidden = false;
  const known = new WeakSet();
  let selects = false;
  const apply = (toolbar) => {
    for (const tool of toolbar.tools)
      if (tool.type === "BoxSelectTool") tool.active = selects;
      else if (/^(LassoSelect|Pan|WheelZoom)Tool$/.test(tool.type)) tool.active = false;
  };
  const figures = () => [...page.all_models].filter((model) => model.type === "Figure" || model.type === "Plot");
  const look = () => { for (const plot of figures()) if (!known.has(plot)) { known.add(plot); apply(plot.toolbar); } };
  look();
  let waiting = false;
  page.on_change(() => {  // more histograms come later
    if (!waiting) { waiting = true; setTimeout(() => { waiting = false; look(); }, 300); }
  });
  button.addEventListener("click", () => {
    selects = !selects;
    button.setAttribute("aria-pressed", String(selects));
    figures().forEach((plot) => apply(plot.toolbar));
  });
};
