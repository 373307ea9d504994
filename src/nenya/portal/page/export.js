// The script of the exported page: one geometry or range per view; rows that pass all of them are selected and drawn.
"use strict";
const SETTINGS = JSON.parse(document.getElementById("settings").textContent);

const inside = (g, x, y) => {
  if (g.type === "rect") return x >= Math.min(g.x0, g.x1) && x <= Math.max(g.x0, g.x1) &&
    (y === undefined || (y >= Math.min(g.y0, g.y1) && y <= Math.max(g.y0, g.y1)));
  let odd = false;
  for (let i = 0, j = g.x.length - 1; i < g.x.length; j = i++)
    if ((g.y[i] > y) !== (g.y[j] > y) && x < (g.x[j] - g.x[i]) * (y - g.y[i]) / (g.y[j] - g.y[i]) + g.x[i]) odd = !odd;
  return odd;
};

// A click, a box without area and a line of two points select nothing, and change nothing.
const isShape = (g, plane) => g.type === "rect" ? g.x0 !== g.x1 && (!plane || g.y0 !== g.y1) :
  g.type === "poly" && g.x.length > 2;

const selected = (data, filters) => {
  const chosen = [];
  for (let i = 0; i < data.index.length; i++) {
    let keep = true;
    for (const [view, g] of filters) {
      const plane = SETTINGS.planes[view.plane];
      if (plane === undefined) keep = inside(g, data[view.column][i]);
      else {
        const x = data[plane[0]][i], y = data[plane[1]][i];
        keep = view.plane === "map" ? [-360, 0, 360].some((turn) => inside(g, x + turn, y)) : inside(g, x, y);
      }
      if (!keep) break;
    }
    if (keep) chosen.push(i);
  }
  return chosen;
};

const drawPlane = (page, name, g, none) => {
  page.get_model_by_name(`front ${name}`).visible = none;  // the grey density behind it stays
  const outline = page.get_model_by_name(`outline ${name}`);
  if (g === undefined) outline.data = {xs: [], ys: []};
  else if (g.type === "rect") outline.data = {xs: [[g.x0, g.x1, g.x1, g.x0]], ys: [[g.y0, g.y0, g.y1, g.y1]]};
  else outline.data = {xs: [Array.from(g.x)], ys: [Array.from(g.y)]};
};

const drawChart = (page, number, g, values, chosen) => {
  const range = page.get_model_by_name(`range ${number}`), bars = page.get_model_by_name(`bars ${number}`);
  if (g !== undefined) range.setv({left: Math.min(g.x0, g.x1), right: Math.max(g.x0, g.x1)});
  range.visible = g !== undefined;
  const left = bars.data.left, n = left.length, sums = new Array(n).fill(0);
  const low = left[0], width = bars.data.right[0] - left[0];
  for (const i of chosen) {
    const value = values[i];
    if (Number.isFinite(value)) sums[Math.min(n - 1, Math.max(0, Math.floor((value - low) / width)))]++;
  }
  const total = Math.max(1, sums.reduce((a, b) => a + b, 0));
  bars.data = Object.assign({}, bars.data, {chosen: sums.map((s) => s / total)});
  const tallest = 100 * Math.max(...bars.data.chosen, ...bars.data.whole);
  const share = tallest < 10 ? tallest.toPrecision(2) : tallest.toFixed(0);
  page.get_model_by_name(`axis ${number}`).axis_label = `${SETTINGS.charts[number][2]}; bars up to ${share} %`;
};

document.addEventListener("DOMContentLoaded", async () => {
  await Bokeh.embed.embed_items(SETTINGS.docs, [SETTINGS.item]);
  const page = Bokeh.documents[0], rows = page.get_model_by_name("rows"), filters = new Map();
  longitudes(page);
  const views = [
    ...Object.keys(SETTINGS.planes).map((plane) => ({plane, figure: plane, said: plane})),
    ...SETTINGS.charts.map(([column, figure], number) => ({column, figure, number, said: column})),
  ];
  let marked = [];
  // Tools of the figures change the marked rows too, such as a key or a click that clears them: filters decide alone.
  rows.selected.properties.indices.change.connect(() => {
    if (rows.selected.indices !== marked) rows.selected.indices = marked;
  });
  const draw = () => {
    const none = filters.size === 0, chosen = selected(rows.data, filters);
    marked = none ? [] : chosen;
    rows.selected.indices = marked;
    for (const view of views) {
      if (view.plane) drawPlane(page, view.plane, filters.get(view), none);
      else drawChart(page, view.number, filters.get(view), rows.data[view.column], chosen);
    }
    document.getElementById("said").textContent = `${chosen.length} of ${rows.data.index.length} cutouts of the sample` +
      (none ? "" : ` selected (red); filters: ${[...filters.keys()].map((view) => view.said).join(", ")}`);
  };
  for (const view of views) page.get_model_by_name(view.figure).on_event("selectiongeometry", (event) => {
    if (!event.final || !isShape(event.geometry, view.plane)) return;
    filters.set(view, event.geometry);
    draw();
  });
  document.getElementById("reset").onclick = () => { filters.clear(); draw(); };
});
