// Rows of a page without a server: columns, filters, and the view as the text of a link.
"use strict";
const nenyaData = (given) => {
  const bytes = (text) => {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  };
  const as = (Kind, text) => new Kind(bytes(text).buffer);
  const rows = as(Int32Array, given.rows), n = rows.length;
  const numbers = new Map(given.numbers.map((c) => [c.name, {...c, values: as(Float32Array, c.values)}]));
  const classes = new Map(given.classes.map((c) => [c.name, {...c, codes: as(Int16Array, c.codes)}]));
  const seconds = given.seconds ? as(Float64Array, given.seconds) : null;
  const granules = given.granules ? as(Int32Array, given.granules) : null;
  const keys = given.keys ? {names: given.keys.names, file: as(Int32Array, given.keys.file), type: as(Int8Array, given.keys.type), idx: as(Float64Array, given.keys.idx)} : null;
  const pictures = given.pictures ? {...given.pictures, there: bytes(given.pictures.there)} : null;
  const placeOf = new Map();
  rows.forEach((row, i) => placeOf.set(row, i));
  const planes = {};
  for (const [name, p] of Object.entries(given.planes))
    planes[name] = {...p, x: numbers.get(p.axes[0]).values, y: numbers.get(p.axes[1]).values, density: bytes(p.density)};

  const inside = (f, x, y) => {
    if (f.k === "box") return x >= f.x[0] && x <= f.x[1] && y >= f.y[0] && y <= f.y[1];
    let odd = false;
    for (let i = 0, j = f.x.length - 1; i < f.x.length; j = i++)
      if ((f.y[i] > y) !== (f.y[j] > y) && x < (f.x[j] - f.x[i]) * (y - f.y[i]) / (f.y[j] - f.y[i]) + f.x[i]) odd = !odd;
    return odd;
  };
  const slot = (f) => f.k === "box" || f.k === "poly" ? f.p : f.k === "range" || f.k === "class" ? `${f.k} ${f.n}` : f.k;
  const keeps = (f, tags) => {
    if (f.k === "box" || f.k === "poly") {
      const {x, y} = planes[f.p], turns = f.p === "map" ? [0, 360, -360] : [0];
      return (i) => turns.some((turn) => inside(f, x[i] + turn, y[i]));
    }
    if (f.k === "range") {
      const {values} = numbers.get(f.n), [low, high] = f.v.map(Math.fround);  // as exact as the values
      return low <= high ? (i) => values[i] >= low && values[i] <= high : (i) => values[i] >= low || values[i] <= high;
    }
    if (f.k === "class") {
      const c = classes.get(f.n), wanted = new Set(f.v.map((label) => c.labels.indexOf(label)));
      return (i) => wanted.has(c.codes[i]);
    }
    if (f.k === "tag") { const set = tags.get(f.v) || new Set(); return (i) => set.has(rows[i]); }
    const set = new Set(f.v);
    return (i) => set.has(rows[i]);
  };
  const chosen = (filters, tags) => {
    const tests = filters.map((f) => keeps(f, tags)), mask = new Uint8Array(n);
    let count = 0;
    for (let i = 0; i < n; i++) if (tests.every((test) => test(i))) { mask[i] = 1; count++; }
    return {mask, count};
  };

  const short = (v) => Number.isInteger(v) && Math.abs(v) < 1e6 ? String(v) : String(+v.toPrecision(4));
  const lons = (v) => short(((v + 180) % 360 + 360) % 360 - 180);
  const said = (f) => {
    if (f.t) return f.t;
    const where = f.p === "map" ? "map" : "UMAP";
    if (f.k === "box") return f.p === "map" ? `map: ${lons(f.x[0])} to ${lons(f.x[1])} °E, ${short(f.y[0])} to ${short(f.y[1])} °N` : `UMAP: a box`;
    if (f.k === "poly") return `${where}: a lasso`;
    if (f.k === "range") return `${numbers.get(f.n).short}: ${short(f.v[0])} to ${short(f.v[1])}`;
    if (f.k === "class") return `${classes.get(f.n).short}: ${f.v.slice(0, 4).join(", ")}${f.v.length > 4 ? " ..." : ""}`;
    return f.k === "tag" ? `tag: ${f.v}` : `${f.v.length} cutouts`;
  };

  // A link is untrusted: whatever does not fit this page makes it invalid as a whole.
  const number = (v) => { if (typeof v !== "number" || !Number.isFinite(v)) throw new Error("a number"); return +v.toPrecision(9); };
  const word = (v) => { if (typeof v !== "string" || v.length > 200) throw new Error("a text"); return v; };
  const list = (v, most, of) => { if (!Array.isArray(v) || v.length > most) throw new Error("a list"); return v.map(of); };
  const checked = (f) => {
    const title = f.t === undefined ? {} : {t: word(f.t)};
    if (f.k === "box" || f.k === "poly") {
      if (!Object.hasOwn(planes, f.p)) throw new Error("a figure");
      const x = list(f.x, 400, number), y = list(f.y, 400, number);
      if (x.length !== y.length || x.length < (f.k === "box" ? 2 : 3)) throw new Error("a shape");
      return {k: f.k, p: f.p, x, y, ...title};
    }
    if (f.k === "range") {
      if (!numbers.has(f.n)) throw new Error("a column");
      const v = list(f.v, 2, number);
      if (v.length !== 2) throw new Error("a range");
      return {k: "range", n: f.n, v, ...title};
    }
    if (f.k === "class") {
      const c = classes.get(f.n);
      if (!c || !f.v.every((v) => c.labels.includes(v))) throw new Error("a class");
      return {k: "class", n: f.n, v: list(f.v, 64, word), ...title};
    }
    if (f.k === "tag") return {k: "tag", v: word(f.v)};
    if (f.k === "rows") return {k: "rows", v: list(f.v, 500, (r) => { if (!placeOf.has(r)) throw new Error("a row"); return r; }), ...title};
    throw new Error("a filter");
  };
  const colours = () => ["count", ...classes.keys(), ...[...numbers.keys()].filter((name) => !classes.has(name) && !numbers.get(name).label)];
  const orders = () => ["random", "table", ...given.charts.flatMap((name) => [`${name}-`, `${name}+`])];
  const plain = () => ({f: [], c: "count", r: null, o: "random", s: null, a: [true, true], z: {}});
  const toText = (view) => {
    const base = plain(), kept = {};
    for (const key of Object.keys(base)) if (JSON.stringify(view[key]) !== JSON.stringify(base[key])) kept[key] = view[key];
    return Object.keys(kept).length ? encodeURIComponent(JSON.stringify(kept)).replaceAll("'", "%27") : "";
  };
  const fromText = (text) => {
    if (!text) return plain();
    if (text.length > 60000) throw new Error("too long");
    const found = JSON.parse(decodeURIComponent(text)), view = plain();
    if (found.f !== undefined) view.f = list(found.f, 40, checked);
    if (new Set(view.f.map(slot)).size < view.f.length) throw new Error("two filters of one view");
    if (found.c !== undefined) { if (!colours().includes(found.c)) throw new Error("a colour"); view.c = found.c; }
    if (found.o !== undefined) { if (!orders().includes(found.o)) throw new Error("an order"); view.o = found.o; }
    if (found.r !== undefined && found.r !== null) { if (!placeOf.has(found.r)) throw new Error("a row"); view.r = found.r; }
    if (found.a !== undefined) view.a = [found.a[0] === true, found.a[1] === true];
    for (const [name, z] of Object.entries(found.z || {})) {
      if (!Object.hasOwn(planes, name)) throw new Error("a figure");
      view.z[name] = list(z, 3, number);
      if (view.z[name].length !== 3 || !(view.z[name][2] > 0)) throw new Error("a zoom");
    }
    return view;
  };
  const date = (i) => {
    if (!seconds || !Number.isFinite(seconds[i])) return "";
    return new Date(seconds[i] * 1000).toISOString().slice(0, 16).replace("T", " ").replace(" 00:00", "");
  };
  return {given, n, rows, numbers, classes, seconds, granules, keys, pictures, planes, placeOf, slot, chosen, said, short,
    checked, colours, orders, plain, toText, fromText, date, bytes, as};
};
