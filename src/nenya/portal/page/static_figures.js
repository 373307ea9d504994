// UMAP, map and histograms on canvases: density of all rows, points of the page's rows, shapes that are drawn by hand.
"use strict";
const nenyaTicks = (low, high, most) => {
  const raw = (high - low) / Math.max(1, most), power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step && ticks.length < 50; k++) ticks.push(+(k * step).toPrecision(12));
  return ticks;
};
const nenyaCanvas = (canvas, draw) => {
  const box = {wide: 0, tall: 0, ctx: canvas.getContext("2d")};
  new ResizeObserver(() => {
    const {width, height} = canvas.getBoundingClientRect(), ratio = devicePixelRatio || 1;
    if (!width || !height) return;
    box.wide = width; box.tall = height;
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    box.ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    draw();
  }).observe(canvas);
  return box;
};
const nenyaStyle = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const nenyaPlane = (canvas, name, data, app) => {
  const spec = data.planes[name], {x, y, home} = spec, isMap = name === "map";
  const M = {left: 44, right: 8, top: 8, bottom: 34};
  let view = null, mode = app.touch ? "look" : "box", drag = null, pointed = null, shade = null, shadeOf = "";
  const inner = () => [box.wide - M.left - M.right, box.tall - M.top - M.bottom];
  const whole = () => {
    const [w, h] = inner();
    return {x: (home[0] + home[1]) / 2, y: (home[2] + home[3]) / 2, s: Math.max((home[1] - home[0]) / w, (home[3] - home[2]) / h)};
  };
  const now = () => view || whole();
  const px = (v, X) => M.left + (X - v.x) / v.s + inner()[0] / 2, py = (v, Y) => M.top - (Y - v.y) / v.s + inner()[1] / 2;
  const ux = (v, P) => (P - M.left - inner()[0] / 2) * v.s + v.x, uy = (v, P) => -(P - M.top - inner()[1] / 2) * v.s + v.y;
  const turns = (v) => {
    if (!isMap) return [0];
    const [w] = inner(), low = v.x - v.s * w / 2, high = v.x + v.s * w / 2;
    return [-720, -360, 0, 360, 720].filter((turn) => turn + 180 >= low && turn - 180 <= high);
  };
  const land = isMap && data.given.land ? {points: data.as(Int16Array, data.given.land.points), starts: data.given.land.starts} : null;

  const density = () => {
    const colour = nenyaStyle("--rest");
    if (shade && shadeOf === colour) return shade;
    const [w, h] = spec.cells, image = new ImageData(w, h), rgb = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    for (let i = 0; i < w * h; i++) {
      const value = spec.density[i], at = 4 * ((h - 1 - Math.floor(i / w)) * w + i % w);
      image.data.set([...rgb, value ? 60 + Math.round(0.6 * value) : 0], at);
    }
    shade = document.createElement("canvas"); shade.width = w; shade.height = h; shadeOf = colour;
    shade.getContext("2d").putImageData(image, 0, 0);
    return shade;
  };
  const shape = (v, f, turn) => {
    const {ctx} = box;
    const xs = f.k === "box" ? [f.x[0], f.x[1], f.x[1], f.x[0]] : f.x, ys = f.k === "box" ? [f.y[0], f.y[0], f.y[1], f.y[1]] : f.y;
    ctx.beginPath();
    xs.forEach((X, i) => ctx[i ? "lineTo" : "moveTo"](px(v, X + turn), py(v, ys[i])));
    ctx.closePath();
  };
  const axes = (v) => {
    const {ctx} = box, [w, h] = inner();
    ctx.fillStyle = nenyaStyle("--ink"); ctx.strokeStyle = nenyaStyle("--line"); ctx.lineWidth = 1;
    ctx.strokeRect(M.left + 0.5, M.top + 0.5, w - 1, h - 1);
    ctx.font = "11px " + nenyaStyle("--font"); ctx.textAlign = "center"; ctx.textBaseline = "top";
    for (const tick of nenyaTicks(ux(v, M.left), ux(v, M.left + w), w / 70))
      ctx.fillText(isMap ? String(((tick + 180) % 360 + 360) % 360 - 180) : String(tick), px(v, tick), M.top + h + 4);
    ctx.fillText(spec.titles[0], M.left + w / 2, M.top + h + 18);
    ctx.textAlign = "right"; ctx.textBaseline = "middle";
    for (const tick of nenyaTicks(uy(v, M.top + h), uy(v, M.top), h / 50))
      if (!isMap || Math.abs(tick) <= 90) ctx.fillText(String(tick), M.left - 5, py(v, tick));
    ctx.save(); ctx.translate(9, M.top + h / 2); ctx.rotate(-Math.PI / 2); ctx.textAlign = "center";
    ctx.fillText(spec.titles[1], 0, 0); ctx.restore();
  };
  const points = (v, mask, filtered) => {
    const {ctx} = box, [w, h] = inner(), far = turns(v), at = [];
    for (let i = 0; i < data.n; i++) for (const turn of far) {
      const X = px(v, x[i] + turn), Y = py(v, y[i]);
      if (X >= M.left && X <= M.left + w && Y >= M.top && Y <= M.top + h) at.push([i, X, Y]);
    }
    const seen = at.filter(([i]) => mask[i]), size = Math.min(11, Math.max(3, 11 * (40 / Math.max(1, seen.length)) ** 0.25));
    if (filtered) { ctx.fillStyle = nenyaStyle("--rest"); for (const [i, X, Y] of at) if (!mask[i]) ctx.fillRect(X - 1, Y - 1, 2, 2); }
    const colour = app.colour();
    if (colour.kind === "count" && seen.length > 3000) {
      const step = 4, across = Math.ceil(w / step), cells = new Map();
      for (const [, X, Y] of seen) { const cell = Math.floor((Y - M.top) / step) * across + Math.floor((X - M.left) / step); cells.set(cell, (cells.get(cell) || 0) + 1); }
      const most = Math.max(...cells.values());
      for (const [cell, count] of cells) {
        ctx.fillStyle = colour.palette[Math.round((colour.palette.length - 1) * (most > 1 ? Math.log(count) / Math.log(most) : 1))];
        ctx.fillRect(M.left + cell % across * step, M.top + Math.floor(cell / across) * step, step, step);
      }
      return most;
    }
    for (const [i, X, Y] of seen) { ctx.fillStyle = colour.of(i); ctx.fillRect(X - size / 2, Y - size / 2, size, size); }
    return 0;
  };
  const ring = (v, i, radius, colour, cross) => {
    const {ctx} = box;
    for (const turn of turns(v)) for (const [style, width] of [[nenyaStyle("--paper"), 5], [colour, 2.5]]) {
      const X = px(v, x[i] + turn), Y = py(v, y[i]);
      ctx.strokeStyle = style; ctx.lineWidth = width; ctx.beginPath();
      if (cross) { ctx.moveTo(X - radius, Y); ctx.lineTo(X + radius, Y); ctx.moveTo(X, Y - radius); ctx.lineTo(X, Y + radius); }
      else ctx.arc(X, Y, radius, 0, 7);
      ctx.stroke();
    }
  };
  const draw = () => {
    if (!box.wide || !app.ready()) return;
    const {ctx} = box, v = now(), [w, h] = inner(), {mask, filters} = app.shown();
    ctx.clearRect(0, 0, box.wide, box.tall);
    ctx.save(); ctx.beginPath(); ctx.rect(M.left, M.top, w, h); ctx.clip();
    if (land) for (const turn of turns(v)) {
      ctx.fillStyle = nenyaStyle("--land"); ctx.strokeStyle = nenyaStyle("--rest"); ctx.lineWidth = 0.7; ctx.beginPath();
      for (let k = 0; k + 1 < land.starts.length; k++) for (let p = land.starts[k]; p < land.starts[k + 1]; p++)
        ctx[p === land.starts[k] ? "moveTo" : "lineTo"](px(v, land.points[2 * p] / 100 + turn), py(v, land.points[2 * p + 1] / 100));
      ctx.fill("evenodd"); ctx.stroke();
    }
    ctx.imageSmoothingEnabled = false;
    for (const turn of turns(v)) ctx.drawImage(density(), px(v, home[0] + turn), py(v, home[3]), (home[1] - home[0]) / v.s, (home[3] - home[2]) / v.s);
    const most = points(v, mask, filters.length > 0);
    ctx.strokeStyle = nenyaStyle("--mark"); ctx.lineWidth = 2;
    for (const f of filters) if (f.p === name) for (const turn of isMap ? [-360, 0, 360] : [0]) { shape(v, f, turn); ctx.stroke(); }
    if (drag && drag.shape) { shape(v, drag.shape, 0); ctx.stroke(); }
    const marks = app.marks();
    for (const i of marks.near) ring(v, i, 5, nenyaStyle("--mark"), false);
    if (marks.chosen !== null) ring(v, marks.chosen, 10, nenyaStyle("--mark"), true);
    if (marks.pointed !== null) ring(v, marks.pointed, 8, nenyaStyle("--ink"), false);
    ctx.restore();
    axes(v);
    app.drawn(name, most);
  };
  const box = nenyaCanvas(canvas, draw);

  const nearest = (X, Y, reach) => {
    const v = now(), {mask} = app.shown();
    let best = null, least = reach * reach;
    for (const turn of turns(v)) for (let i = 0; i < data.n; i++) {
      if (!mask[i]) continue;
      const d = (px(v, x[i] + turn) - X) ** 2 + (py(v, y[i]) - Y) ** 2;
      if (d < least) { least = d; best = i; }
    }
    return best;
  };
  const keep = (v) => { view = v; app.zoomed(name, v ? [v.x, v.y, v.s] : null); draw(); };
  const zoom = (factor, X, Y) => {
    const v = now(), s = Math.min(whole().s * 2, Math.max(whole().s / 500, v.s * factor));
    keep({x: ux(v, X) - (X - M.left - inner()[0] / 2) * s, y: uy(v, Y) + (Y - M.top - inner()[1] / 2) * s, s});
  };
  const move = (dx, dy) => {
    const v = now(), most = isMap ? 360 : Infinity;
    keep({x: Math.max(-most, Math.min(most, v.x - dx * v.s)), y: v.y + dy * v.s, s: v.s});
  };
  const fingers = new Map();
  const at = (event) => { const r = canvas.getBoundingClientRect(); return [event.clientX - r.left, event.clientY - r.top]; };
  canvas.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, at(event));
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    const [X, Y] = at(event);
    drag = {from: [X, Y], last: [X, Y], path: [[X, Y]], shape: null};
    app.point(null);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [X, Y] = at(event);
    if (fingers.size === 2 && fingers.has(event.pointerId) && mode !== "look") {
      const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, place]) => place), before = fingers.get(event.pointerId);
      const apart = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]);
      zoom(apart(before) / Math.max(1, apart([X, Y])), (X + other[0]) / 2, (Y + other[1]) / 2);
      fingers.set(event.pointerId, [X, Y]); drag = null;
      return;
    }
    if (!drag) { if (event.pointerType === "mouse") app.point(nearest(X, Y, 12), event.clientX, event.clientY); return; }
    const v = now();
    if (mode === "move" || (mode === "look" && event.pointerType === "mouse")) move(X - drag.last[0], Y - drag.last[1]);
    else if (mode === "box") drag.shape = {k: "box", p: name, x: [ux(v, drag.from[0]), ux(v, X)].sort((a, b) => a - b), y: [uy(v, drag.from[1]), uy(v, Y)].sort((a, b) => a - b)};
    else if (mode === "lasso") { drag.path.push([X, Y]); drag.shape = {k: "poly", p: name, x: drag.path.map((p) => ux(v, p[0])), y: drag.path.map((p) => uy(v, p[1]))}; }
    drag.last = [X, Y];
    draw();
  });
  const end = (event) => {
    fingers.delete(event.pointerId);
    if (!drag || event.type === "pointercancel") { drag = null; draw(); return; }
    const [X, Y] = at(event), still = Math.hypot(X - drag.from[0], Y - drag.from[1]) < 6 && drag.path.length < 6, made = drag.shape;
    drag = null;
    if (still) { const i = nearest(X, Y, event.pointerType === "mouse" ? 14 : 26); if (i !== null) app.choose(i); else draw(); return; }
    if (made && (made.k === "box" ? made.x[0] < made.x[1] && made.y[0] < made.y[1] : made.x.length > 2)) {
      const step = Math.ceil(made.x.length / 80);
      if (made.k === "poly") { made.x = made.x.filter((_, i) => i % step === 0); made.y = made.y.filter((_, i) => i % step === 0); }
      for (const axis of ["x", "y"]) made[axis] = made[axis].map((value) => +value.toPrecision(5));
      app.filter(made);
    } else draw();
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("pointerleave", () => { if (!drag) app.point(null); });
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); const [X, Y] = at(event); zoom(event.deltaY > 0 ? 1.25 : 0.8, X, Y); }, {passive: false});
  canvas.addEventListener("keydown", (event) => {
    const step = {ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60]}[event.key], middle = [M.left + inner()[0] / 2, M.top + inner()[1] / 2];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (step) move(...step);
    else if (event.key === "+") zoom(0.8, ...middle);
    else if (event.key === "-") zoom(1.25, ...middle);
    else if (event.key === "Enter") { const i = nearest(...middle, 1e6); if (i !== null) app.choose(i); }
    else return;
    event.preventDefault(); event.stopPropagation();
  });
  const setMode = (wanted) => { mode = wanted; canvas.classList.toggle("scrolls", mode === "look"); };
  setMode(mode);
  return {draw, setMode, mode: () => mode, zoom: (factor) => zoom(factor, M.left + inner()[0] / 2, M.top + inner()[1] / 2), whole: () => keep(null), show: (z) => { view = z ? {x: z[0], y: z[1], s: z[2]} : null; }};
};

const nenyaChart = (canvas, column, app) => {
  const [low, high] = column.ends, bins = column.bins, M = {left: 8, right: 8, top: 4, bottom: 18}, total = Math.max(1, column.counts.reduce((a, b) => a + b, 0));
  let drag = null, last = "";
  const wide = () => box.wide - M.left - M.right, px = (v) => M.left + (v - low) / (high - low) * wide(), ux = (X) => low + (X - M.left) / wide() * (high - low);
  const draw = () => {
    if (!box.wide || !app.ready()) return;
    const {ctx} = box, {mask, count, filters} = app.shown(), sums = new Array(bins).fill(0), h = box.tall - M.top - M.bottom;
    for (let i = 0; i < mask.length; i++) {
      const value = column.values[i];
      if (mask[i] && Number.isFinite(value)) sums[Math.min(bins - 1, Math.max(0, Math.floor((value - low) / (high - low) * bins)))]++;
    }
    const all = Math.max(1, sums.reduce((a, b) => a + b, 0)), top = Math.max(...column.counts.map((c) => c / total), ...sums.map((c) => c / all)) || 1;
    ctx.clearRect(0, 0, box.wide, box.tall);
    const bars = (values, sum, colour, inset) => {
      ctx.fillStyle = colour;
      values.forEach((value, k) => { const tall = value / sum / top * h; ctx.fillRect(M.left + k * wide() / bins + inset, M.top + h - tall, wide() / bins - 2 * inset, tall); });
    };
    bars(column.counts, total, nenyaStyle("--rest"), 0);
    if (count) bars(sums, all, nenyaStyle("--accent"), wide() / bins * 0.2);
    const f = drag ? {v: drag} : filters.find((g) => g.k === "range" && g.n === column.name);
    if (f) {
      ctx.strokeStyle = nenyaStyle("--mark"); ctx.lineWidth = 1.5;
      for (const [a, b] of f.v[0] <= f.v[1] ? [f.v] : [[low, f.v[1]], [f.v[0], high]]) {
        const from = Math.max(M.left, px(a)), to = Math.min(M.left + wide(), px(b));
        if (to >= from) ctx.strokeRect(from, M.top + 0.5, Math.max(1, to - from), h);
      }
    }
    ctx.fillStyle = nenyaStyle("--ink"); ctx.font = "11px " + nenyaStyle("--font"); ctx.textAlign = "center"; ctx.textBaseline = "top";
    for (const tick of nenyaTicks(low, high, wide() / 60)) ctx.fillText(String(tick), px(tick), M.top + h + 4);
    const share = 100 * top;
    last = `bars up to ${share < 10 ? share.toPrecision(2) : share.toFixed(0)} %`;
    app.labelled(column.name, last);
  };
  const box = nenyaCanvas(canvas, draw);
  const at = (event) => ux(event.clientX - canvas.getBoundingClientRect().left);
  let from = null;
  canvas.addEventListener("pointerdown", (event) => { if (!event.button) { from = at(event); canvas.setPointerCapture(event.pointerId); } });
  canvas.addEventListener("pointermove", (event) => { if (from !== null) { drag = [from, at(event)].sort((a, b) => a - b); draw(); } });
  canvas.addEventListener("pointerup", () => {
    const made = drag;
    from = drag = null;
    if (!made || Math.abs(px(made[1]) - px(made[0])) < 5) { draw(); return; }
    // Beyond the outer bars the range is open; of whole numbers it ends at them.
    let [a, b] = made;
    if (column.whole) { a = Math.ceil(a); b = Math.floor(b); if (a > b) a = b = Math.round((made[0] + made[1]) / 2); }
    a = +a.toPrecision(5); b = +b.toPrecision(5);
    if (made[0] <= low) a = +column.values.reduce((m, v) => v < m ? v : m, a).toPrecision(9);
    if (made[1] >= high) b = +column.values.reduce((m, v) => v > m ? v : m, b).toPrecision(9);
    app.filter({k: "range", n: column.name, v: [a, b]});
  });
  canvas.addEventListener("pointercancel", () => { from = drag = null; draw(); });
  return {draw};
};
