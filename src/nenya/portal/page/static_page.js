// The page without a server: one view, which filters, figures, lists and the address share.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const data = nenyaData(JSON.parse(document.getElementById("settings").textContent)), make = nenyaElement;
  const $ = (id) => document.getElementById(id), near = nenyaNear(data), touch = matchMedia("(pointer: coarse)").matches;
  let view = data.plain(), shown = {mask: new Uint8Array(data.n).fill(1), count: data.n, filters: []}, ready = false;
  let pointed = null, similar = null, page = 0, nearPage = 0, order = [], zooming = null;
  const done = [];  // steps that Undo takes back: "view", or a function
  const rank = new Float64Array(data.n);
  let seed = 1;
  for (let i = 0; i < data.n; i++) { seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0; rank[i] = seed; }

  const say = (text, bad = false) => { $("news").textContent = text; $("news").classList.toggle("bad", bad); };
  const tags = nenyaTags(data, () => { if (ready) { if (view.f.some((f) => f.k === "tag")) refresh(); else { drawTags(); drawFacts(); } } });
  const at = () => view.r === null ? null : data.placeOf.get(view.r);

  // Colours of the points.
  const dark = () => document.documentElement.dataset.dark === "true";
  let painted = null;
  const colour = () => {
    if (painted) return painted;
    const palette = data.given.colours[dark() ? "dark" : "light"], rest = nenyaStyle("--rest"), plain = nenyaStyle("--accent");
    const c = data.classes.get(view.c), number = data.numbers.get(view.c);
    if (view.c === "count") painted = {kind: "count", palette, of: () => plain};
    else if (c) painted = {kind: "class", of: (i) => c.codes[i] < 0 ? rest : c.colours[c.codes[i]]};
    else {
      const sorted = number.values.filter((v, i) => shown.mask[i] && Number.isFinite(v)).sort();
      const at = (q) => sorted.length ? sorted[Math.round(q * (sorted.length - 1))] : 0, low = at(0.02), high = at(0.98) > low ? at(0.98) : low + 1;
      painted = {kind: "number", palette, low, high, of: (i) => {
        const v = number.values[i];
        return Number.isFinite(v) ? palette[Math.max(0, Math.min(palette.length - 1, Math.floor((v - low) / (high - low) * palette.length)))] : rest;
      }};
    }
    return painted;
  };
  const drawLegend = (most = null) => {
    const box = $("legend"), c = data.classes.get(view.c), found = colour();
    if (!box) return;
    if (c) {
      const counts = new Array(c.labels.length).fill(0);
      for (let i = 0; i < data.n; i++) if (shown.mask[i] && c.codes[i] >= 0) counts[c.codes[i]]++;
      box.replaceChildren(...c.labels.map((label, k) => {
        const mark = make("i");
        mark.style.background = c.colours[k];
        return make("button", {className: "class", title: "select these cutouts", onclick: () => filter({k: "class", n: c.name, v: [label]})}, mark, `${label} (${counts[k].toLocaleString("en")})`);
      }));
      return;
    }
    if (found.kind === "count" && most === null) return;
    const bar = make("i", {className: "bar"}), ends = found.kind === "count" ? [1, most] : [found.low, found.high];
    bar.style.background = `linear-gradient(to right, ${found.palette.join(", ")})`;
    box.replaceChildren(...(found.kind === "count" && !most ? ["cutouts one by one"] : [make("span", {textContent: data.short(ends[0])}), bar, make("span", {textContent: data.short(ends[1])}), make("span", {className: "quiet", textContent: found.kind === "count" ? "cutouts in a cell" : data.numbers.get(view.c).short})]));
  };

  const point = (i, X = 0, Y = 0, marksOnly = false) => {
    if (i === null || !marksOnly) lists.showCard(i, X, Y); else lists.showCard(null);
    if (i === pointed) return;
    pointed = i;
    drawPlanes();
  };
  const app = {
    touch, ready: () => ready, shown: () => shown, colour, choose: (i) => go({r: data.rows[i]}), filter: (f) => filter(f), point, row: at, tagsOf: (i) => tags.of(data.rows[i]),
    marks: () => ({near: similar ? similar.slice(0, 20).map(([i]) => i) : [], chosen: at(), pointed}),
    drawn: (name, most) => { if (name === "umap" || !planes.umap) drawLegend(most); },
    zoomed: (name, z) => {
      const zoom = {...view.z};
      if (z) zoom[name] = z.map((v) => +v.toPrecision(6)); else delete zoom[name];
      view = {...view, z: zoom};
      clearTimeout(zooming);
      zooming = setTimeout(() => history.replaceState(history.state, "", "#" + data.toText(view)), 300);
    },
    labelled: (name, text) => { const label = document.querySelector(`[data-chart="${CSS.escape(name)}"] small`); if (label) label.textContent = text; },
  };
  const lists = nenyaLists(data, app);
  const planes = {}, charts = [];

  // A view, its steps and its address.
  const go = (changes) => {
    const next = {...view, ...changes};
    if (data.toText(next) === data.toText(view)) return;
    const before = view;
    view = next;
    done.push("view");
    history.pushState({n: done.length}, "", "#" + data.toText(view));
    follow(before);
  };
  const filter = (f) => {
    try { f = data.checked(f); } catch (error) { return; }
    page = 0;
    go({f: [...view.f.filter((other) => data.slot(other) !== data.slot(f)), f]});
  };
  const follow = (before) => {
    painted = null;
    for (const [name, plane] of Object.entries(planes)) if (JSON.stringify(before.z[name]) !== JSON.stringify(view.z[name])) plane.show(view.z[name]);
    if (before.r !== view.r || JSON.stringify(before.a) !== JSON.stringify(view.a) || (view.a[0] && before.f !== view.f)) nearPage = 0;
    refresh();
  };
  const fromAddress = () => {
    const before = view;
    try { view = data.fromText(location.hash.slice(1)); say(""); }
    catch (error) { view = data.plain(); say("The view in this link does not fit this page: the complete page is shown.", true); }
    follow(before);
  };
  addEventListener("popstate", () => { while (done.length && done[done.length - 1] === "view" && done.length > ((history.state || {}).n || 0)) done.pop(); fromAddress(); });

  // What is drawn.
  const drawPlanes = () => Object.values(planes).forEach((plane) => plane.draw());
  const refresh = () => {
    const found = data.chosen(view.f, tags.tags);
    shown = {...found, filters: view.f};
    painted = null;
    sort();
    findNear();
    $("said").textContent = view.f.length ? `${shown.count.toLocaleString("en")} of ${data.n.toLocaleString("en")} selected` : `${data.n.toLocaleString("en")} cutouts`;
    $("chips").replaceChildren(...view.f.map((f) => make("button", {className: "chip", title: "remove this filter", textContent: data.said(f) + " ✕", onclick: () => go({f: view.f.filter((other) => other !== f)})})));
    for (const id of ["colour", "order"]) if ($(id)) $(id).value = view[id[0]];
    ["near_filtered", "near_other"].forEach((id, k) => { if ($(id)) $(id).checked = view.a[k]; });
    drawPlanes();
    if (data.classes.has(view.c) || view.c !== "count") drawLegend();
    charts.forEach((chart) => chart.draw());
    drawGallery(); drawFacts(); drawNear(); drawTags();
  };
  const sort = () => {
    order = [];
    for (let i = 0; i < data.n; i++) if (shown.mask[i]) order.push(i);
    if (view.o === "random") order.sort((a, b) => rank[a] - rank[b]);
    else if (view.o === "table") order.sort((a, b) => data.rows[a] - data.rows[b]);
    else {
      const {values} = data.numbers.get(view.o.slice(0, -1)), sign = view.o.endsWith("-") ? -1 : 1, last = (v) => Number.isFinite(v) ? sign * v : Infinity;
      order.sort((a, b) => { const x = last(values[a]), y = last(values[b]); return x < y ? -1 : x > y ? 1 : 0; });
    }
  };
  const PAGE = 24;
  const paged = (box, note, items, first, side, what) => {
    box.replaceChildren(...items.slice(first, first + PAGE).map(([i, text]) => lists.button(i, side, text)));
    note.textContent = items.length ? `${first + 1} to ${Math.min(items.length, first + PAGE)} of ${items.length.toLocaleString("en")}` : what;
  };
  const drawGallery = () => {
    page = Math.max(0, Math.min(page, Math.ceil(order.length / PAGE) - 1));
    paged($("gallery"), $("gallery_note"), order.map((i) => [i, ""]), page * PAGE, 64, "no cutout is selected");
  };
  const drawFacts = () => {
    const i = at();
    $("tag_this").disabled = i === null;
    if (i === null) { $("image").replaceChildren(make("p", {className: "quiet", textContent: "Start here: click a cutout, or a point of the UMAP or the map. Those most like it appear under Similar cutouts."})); return; }
    const words = app.tagsOf(i).map((word) => make("button", {className: "tag", title: "remove this tag from the cutout", textContent: word + " ✕", onclick: () => tag("remove", word, [data.rows[i]])}));
    $("image").replaceChildren(make("div", {className: "large_thumb"}, lists.picture(i, 192), ...words), make("div", {className: "scroll", tabIndex: 0, role: "group", "aria-label": "facts of the cutout"}, lists.facts(i)));
  };
  const findNear = () => {
    const i = at();
    similar = null;
    if (!near || i === null) return;
    const granule = data.granules && view.a[1] ? data.granules[i] : null;
    similar = near.find(i, (other) => (!view.a[0] || shown.mask[other]) && (granule === null || granule < 0 || data.granules[other] !== granule), near.kind === "list" ? near.most : 60);
  };
  const drawNear = () => {
    if (!near) return;
    const i = at();
    nearPage = Math.max(0, Math.min(nearPage, Math.ceil((similar ? similar.length : 0) / PAGE) - 1));
    const none = i === null ? "choose a cutout" : similar ? "no other cutout fits" : "this cutout has no latent";
    paged($("near"), $("near_note"), (similar || []).map(([other, cosine]) => [other, cosine.toFixed(3)]), nearPage * PAGE, 64, none);
  };
  const drawTags = () => {
    $("tags").replaceChildren(...[...tags.tags].map(([word, rows]) => make("button", {className: "tag", title: "select the cutouts with this tag", textContent: `${word} (${rows.size})`, onclick: () => filter({k: "tag", v: word})})));
    $("tag_words").replaceChildren(...[...tags.tags.keys()].map((word) => make("option", {value: word})));
    $("get_tags").disabled = !tags.tags.size || !data.keys;
  };

  // Tags.
  const tag = (action, word, rows, quiet = false) => {
    if (!rows.length) { say("There are no cutouts to tag: select some first.", true); return; }
    let changed;
    try { word = action === "add" ? tags.clean(word) : word; changed = tags[action](word, rows); } catch (error) { say(error.message, true); return; }
    const count = `${changed.rows.length.toLocaleString("en")} cutout${changed.rows.length === 1 ? "" : "s"}`;
    if (!quiet && changed.rows.length) done.push(() => { tag(action === "add" ? "remove" : "add", word, changed.rows, true); });
    say(`${action === "add" ? "Tagged" : "Removed the tag from"} ${count}: ${word}.` + (changed.kept ? "" : " This browser keeps nothing: download the tags before you leave."));
  };
  $("tag_form").onsubmit = (event) => { event.preventDefault(); tag("add", $("tag_word").value, order.map((i) => data.rows[i])); };
  $("tag_this").onclick = () => { if (at() !== null) tag("add", $("tag_word").value, [view.r]); };
  $("get_tags").onclick = () => nenyaSave("nenya_tags.json", tags.toJson());
  $("read_tags").onchange = async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (!file) return;
    try {
      const {found, foreign} = tags.read(await file.text());
      let count = 0;
      for (const [word, rows] of found) count += tags.add(word, rows).rows.length;
      say(`Read ${count.toLocaleString("en")} tags` + (foreign ? `; ${foreign.toLocaleString("en")} lines are of cutouts that are not in this page.` : "."));
    } catch (error) { say(error.message, true); }
  };
  const rowsCsv = (items, more = [], value = () => []) => {
    const columns = [...data.numbers.values()].filter((c) => !data.classes.has(c.name)), names = [...data.classes.values()].filter((c) => c.name !== "tag");
    const given = data.classes.get("tag"), tagsOf = (i) => [...new Set([...(given && given.codes[i] >= 0 ? given.labels[given.codes[i]].split(", ") : []), ...tags.of(data.rows[i])])].sort().join(", ");
    const head = ["row", ...(data.keys ? ["pp_file", "pp_type", "pp_idx"] : []), ...(data.seconds ? ["datetime"] : []), ...columns.map((c) => c.name), ...names.map((c) => c.name), "tag", ...more];
    return nenyaCsv([head, ...items.map((i, k) => [data.rows[i], ...(data.keys ? tags.key(i) : []), ...(data.seconds ? [data.date(i).replace(" ", "T")] : []),
      ...columns.map((c) => Number.isFinite(c.values[i]) ? +c.values[i].toPrecision(9) : ""), ...names.map((c) => c.codes[i] < 0 ? "" : c.labels[c.codes[i]]), tagsOf(i), ...value(k)])]);
  };
  $("get_rows").onclick = () => nenyaSave("nenya_rows.csv", rowsCsv(order));
  if ($("get_near")) $("get_near").onclick = () => { if (similar) nenyaSave("nenya_similar.csv", rowsCsv(similar.map(([i]) => i), ["cosine"], (k) => [similar[k][1].toFixed(4)])); else say("Choose a cutout first.", true); };
  if ($("select_near")) $("select_near").onclick = () => { if (similar && similar.length) filter({k: "rows", v: similar.map(([i]) => data.rows[i]), t: `${similar.length} similar to row ${view.r}`}); else say("Choose a cutout first.", true); };

  // Buttons, menus and keys.
  const undo = () => { const step = done.pop(); if (step === "view") { done.push("view"); history.back(); } else if (step) step(); else say("There is nothing to undo."); };
  const reset = () => { const z = view.z; go({f: [], z: {}}); if (Object.keys(z).length) Object.values(planes).forEach((plane) => { plane.show(null); plane.draw(); }); };
  const paint = (wanted) => {
    document.documentElement.dataset.dark = wanted;
    $("theme").textContent = wanted ? "Light" : "Dark";
    painted = null;
    if (ready) refresh();
  };
  const theme = () => { paint(!dark()); try { localStorage.setItem("nenya_dark", dark()); } catch (error) { /* only for this page then */ } };
  const copy = async () => {
    const address = location.href.split("#")[0] + "#" + data.toText(view);
    try { await navigator.clipboard.writeText(address); say("The address of this view is copied: it opens this view in the same page."); }
    catch (error) { window.prompt("The address of this view:", address); }
  };
  const help = () => $("helpbox").showModal();
  const step = (by) => { if (order.length) { const here = order.indexOf(at()); const next = here < 0 ? 0 : (here + by + order.length) % order.length; page = Math.floor(next / PAGE); app.choose(order[next]); } };
  $("undo").onclick = undo; $("redo").onclick = () => history.forward(); $("reset").onclick = reset; $("link").onclick = copy; $("theme").onclick = theme; $("help").onclick = help;
  if ($("colour")) $("colour").onchange = () => go({c: $("colour").value});
  $("order").onchange = () => { page = 0; go({o: $("order").value}); };
  for (const [id, by] of [["gallery_back", -1], ["gallery_on", 1]]) $(id).onclick = () => { page += by; drawGallery(); };
  for (const [id, by] of [["near_back", -1], ["near_on", 1]]) if ($(id)) $(id).onclick = () => { nearPage += by; drawNear(); };
  ["near_filtered", "near_other"].forEach((id, k) => { if ($(id)) $(id).onchange = () => go({a: view.a.map((value, j) => j === k ? $(id).checked : value)}); });
  $("range_form").onsubmit = (event) => {
    event.preventDefault();
    const {values, name} = data.numbers.get($("range_column").value), end = (id, open) => $(id).value === "" ? open : +$(id).value;
    const known = values.filter(Number.isFinite), low = known.reduce((a, b) => Math.min(a, b), Infinity), high = known.reduce((a, b) => Math.max(a, b), -Infinity);
    const [from, to] = [end("range_low", low), end("range_high", high)];
    if ($("range_low").value === "" && $("range_high").value === "") say("Type a lowest or a highest value.", true);
    else if (from > to && name !== "month" && name !== "lon") say(`The range from ${from} to ${to} is empty: from must be below to.`, true);
    else filter({k: "range", n: name, v: [from, to]});
  };
  if ($("preset")) $("preset").onchange = () => {
    const [kind, name] = $("preset").value.split(":"), region = data.given.regions.find(([own]) => own === name);
    if (kind === "region") filter({k: "box", p: "map", x: [region[1], region[2]], y: [region[3], region[4]], t: name});
    else if (kind === "season") filter({k: "range", n: "month", v: {DJF: [12, 2], MAM: [3, 5], JJA: [6, 8], SON: [9, 11]}[name], t: `season ${name}`});
    $("preset").value = "";
  };
  const option = (value, text) => make("option", {value, textContent: text});
  const titles = (name) => name === "count" ? "number of cutouts" : data.classes.has(name) ? data.classes.get(name).title : data.numbers.get(name).title;
  if ($("colour")) $("colour").append(...data.colours().map((name) => option(name, titles(name))));
  $("order").append(...data.orders().map((name) => option(name, {random: "random", table: "table order"}[name] || `${data.numbers.get(name.slice(0, -1)).short}, ${name.endsWith("-") ? "largest" : "smallest"} first`)));
  $("range_column").append(...[...data.numbers.values()].map((c) => option(c.name, c.title)));
  if ($("preset")) {
    const group = (label, options) => { const found = make("optgroup"); found.label = label; found.append(...options); return found; };
    $("preset").append(option("", "choose ..."), ...(data.given.regions.length ? [group("regions", data.given.regions.map(([name]) => option("region:" + name, name)))] : []),
      ...(data.numbers.has("month") ? [group("seasons", ["DJF", "MAM", "JJA", "SON"].map((name) => option("season:" + name, name)))] : []));
  }
  for (const name of data.given.charts) {
    const canvas = make("canvas", {role: "img", "aria-label": `histogram of ${data.numbers.get(name).title}: drag for a range, or type one above`});
    $("charts").append(make("div", {className: "chart", "data-chart": name}, make("div", {}, data.numbers.get(name).title + " ", make("small", {className: "quiet"})), canvas));
    charts.push(nenyaChart(canvas, data.numbers.get(name), app));
  }
  for (const canvas of document.querySelectorAll("canvas[data-plane]")) {
    const name = canvas.dataset.plane, plane = planes[name] = nenyaPlane(canvas, name, data, app), tools = [...document.querySelectorAll(`[data-tool^="${name} "]`)];
    const press = () => tools.forEach((tool) => tool.setAttribute("aria-pressed", String(tool.dataset.tool === `${name} ${plane.mode()}`)));
    for (const tool of tools) tool.onclick = () => {
      const what = tool.dataset.tool.split(" ")[1];
      if (what === "in" || what === "out") plane.zoom(what === "in" ? 0.7 : 1.4);
      else if (what === "whole") plane.whole();
      else { plane.setMode(plane.mode() === what ? "look" : what); press(); }
    };
    press();
  }
  const enlarge = (section) => document.querySelectorAll("main > section").forEach((other) => {
    const large = section === other && !other.classList.contains("large");
    other.classList.toggle("large", large);
    const button = other.querySelector(".enlarge");
    if (button) button.setAttribute("aria-pressed", String(large));
  });
  document.querySelectorAll(".enlarge").forEach((button) => { button.onclick = () => enlarge(button.closest("section")); });
  const keys = {u: undo, y: () => history.forward(), r: reset, d: theme, l: copy, n: () => step(1), p: () => step(-1), s: () => { if (similar && similar.length) app.choose(similar[0][0]); }, "?": help, Escape: () => enlarge(null)};
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]") || /^(SELECT|TEXTAREA)$/.test(event.target.tagName) || (event.target.tagName === "INPUT" && !/^(checkbox|range)$/.test(event.target.type))) return;
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });

  let kept = null;
  try { kept = localStorage.getItem("nenya_dark"); } catch (error) { /* the system decides then */ }
  paint(kept === null ? matchMedia("(prefers-color-scheme: dark)").matches : kept === "true");
  ready = true;
  for (const [name, z] of Object.entries((() => { try { return data.fromText(location.hash.slice(1)).z; } catch (error) { return {}; } })())) planes[name].show(z);
  history.replaceState({n: 0}, "", location.hash || "#");
  fromAddress();
  document.documentElement.dataset.ready = "true";
});
