// The script of the page. Its settings are in the element `settings`.
"use strict";
const SETTINGS = JSON.parse(document.getElementById("settings").textContent);
// A first visit is as dark as the system: the page at once, its figures once they are there.
let dark = SETTINGS.dark || (!new URLSearchParams(location.search).has("theme") && matchMedia("(prefers-color-scheme: dark)").matches);
document.documentElement.dataset.dark = dark;
document.addEventListener("DOMContentLoaded", () => {
  const $ = (id) => document.getElementById(id);
  const panels = layout(), time = timeline((text) => act(text));
  let sent = 0;
  const early = [];  // what was done before the page was connected
  const act = (text) => {
    const model = window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].get_model_by_name("nenya_channel");
    if (model) model.value = (++sent) + "|" + text; else early.push(text);
  };
  const open = (name) => document.querySelectorAll("[data-tab]").forEach((b) => {
    b.setAttribute("aria-selected", b.dataset.tab === name); $("panel_" + b.dataset.tab).hidden = b.dataset.tab !== name;
  });
  const show = (name) => { open(name); act("tab:" + name); };
  const of = (event, name) => event.composedPath().find((e) => e.dataset && e.dataset[name] !== undefined);
  document.addEventListener("click", (event) => {
    const source = of(event, "action"), tab = of(event, "tab");
    if (source && !source.disabled) act(source.dataset.action);
    if (source && /^(undo|redo|reset|cancel|remove)/.test(source.dataset.action)) time.pause();
    if (tab) show(tab.dataset.tab);
    if (of(event, "reload")) location.reload();
    const box = event.composedPath()[0].previousElementSibling;
    if (box && box.type === "checkbox") box.click();  // the text beside a checkbox is not its label
  });
  const address = () => location.href;
  const copy = async () => {
    try { await navigator.clipboard.writeText(address()); $("link").firstChild.data = "Copied "; }
    catch (error) { window.prompt("The address of this view:", address()); }
    setTimeout(() => { $("link").firstChild.data = "Copy link "; }, 1500);
  };
  const paint = () => {
    document.documentElement.dataset.dark = dark;
    $("theme").firstChild.data = (dark ? "Light" : "Dark") + " ";
    const url = new URL(location.href); url.searchParams.set("theme", dark ? "dark" : "light"); history.replaceState(history.state, "", url);
    act("theme:" + (dark ? "dark" : "light"));
  };
  const theme = () => { dark = !dark; paint(); };
  $("link").onclick = copy; $("theme").onclick = theme; $("help").onclick = () => $("helpbox").showModal();
  const tabs = [...document.querySelectorAll("[data-tab]")].map((b) => b.dataset.tab);
  const views = () => { if ($("viewsbox")) { act("views"); $("viewsbox").showModal(); } };
  if ($("views")) $("views").onclick = views;
  if ($("save_form")) $("save_form").onsubmit = (event) => { event.preventDefault(); act("save:" + $("save_name").value); $("save_name").value = ""; };
  const keys = {u: () => { time.pause(); act("undo"); }, y: () => { time.pause(); act("redo"); }, v: views, r: () => { time.pause(); act("reset"); }, t: time.toggle, ".": time.play, ",": () => time.step(-1), n: () => act("step:1"), p: () => act("step:-1"), s: () => act("similar"), "+": () => act("like:+"), "-": () => act("like:-"), ">": () => act("sheet:1"), "<": () => act("sheet:-1"),
    l: copy, d: theme, "?": () => $("helpbox").showModal(), m: panels.toggle, a: () => act("against:a"), b: () => act("against:b"),
    g: () => { if ($("tag_form")) { show("tags"); $("tag_word").select(); $("tag_word").focus(); } }, Escape: () => time.pause() || panels.restore() || act("cancel")};
  document.addEventListener("keydown", (event) => {
    const target = event.composedPath()[0];
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]") || (/^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName) && !/^(checkbox|range)$/.test(target.type))) return;  // these take letters themselves
    const row = of(event, "action"), tab = of(event, "tab"), step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (tab && step) {
      const next = tabs[(tabs.indexOf(tab.dataset.tab) + step + tabs.length) % tabs.length];
      show(next); $("tab_" + next).focus(); event.preventDefault(); return;
    }
    if (event.key === "Enter" && row && row.tagName === "TR") act(row.dataset.action);
    else if (/^[1-9]$/.test(event.key) && tabs[event.key - 1]) show(tabs[event.key - 1]);
    else if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  if (!SETTINGS.images) open("table");
  addEventListener("nenya:lost", () => { $("lost").hidden = false; });
  addEventListener("nenya:back", () => { $("lost").hidden = true; });
  $("ask_form").onsubmit = (event) => { event.preventDefault(); act("ask:" + JSON.stringify($("ask").value)); };
  $("combine").onchange = () => act("combine:" + $("combine").value);
  $("range_form").onsubmit = (event) => { event.preventDefault(); const end = (id) => $(id).value === "" ? null : +$(id).value; act("range:" + JSON.stringify([$("range_column").value, end("range_low"), end("range_high")])); };
  if ($("near_as_list")) $("near_as_list").onclick = () => {
    const list = $("near_rows").hidden;
    $("near_rows").hidden = !list; $("near_pictures").hidden = list; $("near_as_list").setAttribute("aria-pressed", list);
    act("list:" + (list ? 1 : 0));
  };
  if ($("tag_form")) $("tag_word").onkeydown = (event) => {
    if (event.key === "Enter" && event.shiftKey) { event.preventDefault(); $("tag_form").requestSubmit($("tag_selection")); }
  };
  if ($("tag_form")) $("tag_form").onsubmit = (event) => {
    event.preventDefault();
    const button = (event.submitter || event.target.querySelector("button")).dataset;
    act("tag:" + JSON.stringify([$("tag_word").value, button.target, button.on === "1"]));
  };
  if ($("compare_form")) $("compare_form").onsubmit = (event) => { event.preventDefault(); act("compare:" + JSON.stringify([+$("compare_rows").value, +$("compare_seed").value])); };
  if ($("category_form")) $("category_form").onsubmit = (event) => {
    event.preventDefault();
    const chosen = [...$("category").selectedOptions];
    const column = chosen.length ? chosen[0].dataset.column : "";
    act("category:" + JSON.stringify([column, chosen.filter((o) => o.dataset.column === column).map((o) => o.value)]));
  };
  if ($("upload_form")) {
    const limit = SETTINGS.limit_mb * 1e6;
    const say = (text, bad = false) => { $("upload_answer").textContent = text; $("upload_answer").classList.toggle("bad", bad); };
    const fail = (text) => say("Refused: " + text + " The earlier image is still shown.", true);
    const answered = (text) => {
      try { const found = JSON.parse(text); if ("taken" in found) say(found.message, !found.taken); else fail(found.message); }
      catch (error) { fail("The response of the portal cannot be read; check proxies between browser and portal."); }
    };
    let request = null;
    const send = (file) => {
      if (!file) return say("Choose a file first.");
      if (file.size > limit) return fail("The file is too large (" + (file.size / 1e6).toFixed(1) + " MB, limit " + SETTINGS.limit_mb + " MB): save one image of it alone.");
      const query = new URLSearchParams({key: SETTINGS.key, name: file.name, row: $("upload_row").value, low: $("upload_low").value, high: $("upload_high").value});
      const mine = request = new XMLHttpRequest();
      mine.open("POST", "upload?" + query);
      mine.upload.onprogress = (event) => { if (event.lengthComputable) say("Sending " + file.name + " ... " + Math.round(100 * event.loaded / event.total) + "%"); };
      mine.upload.onload = () => say("Reading and encoding " + file.name + " ...");
      mine.onload = () => answered(mine.responseText);
      mine.onerror = () => fail("The file could not be sent; is the portal still running?");
      mine.onabort = () => say("Stopped.");
      mine.onloadend = () => { $("upload_stop").hidden = true; };
      $("upload_stop").hidden = false;
      say("Sending " + file.name + " ...");
      mine.send(file);
    };
    $("upload_stop").onclick = () => { if (request) request.abort(); act("cancel"); };
    $("upload_form").onsubmit = (event) => { event.preventDefault(); send($("upload_file").files[0]); };
    const drop = $("drop");
    ["dragover", "dragenter"].forEach((n) => drop.addEventListener(n, (e) => { e.preventDefault(); drop.classList.add("over"); }));
    ["dragleave", "drop"].forEach((n) => drop.addEventListener(n, (e) => { e.preventDefault(); drop.classList.remove("over"); }));
    drop.addEventListener("drop", (e) => { $("upload_file").files = e.dataTransfer.files; send(e.dataTransfer.files[0]); });
  }
  // Bokeh takes what begins with 0.3 s without a move for a press: the drag or click is lost to whoever hesitates.
  Bokeh.require("core/ui_gestures").UIGestures.press_threshold = 2 ** 31 - 1;
  Bokeh.embed.embed_items({}, [SETTINGS.item]).then(() => {
    const page = Bokeh.documents[0], link = page.get_model_by_name("nenya_view");
    page.on_event("connection_lost", () => dispatchEvent(new Event("nenya:lost")));
    page.on_event("client_reconnected", () => dispatchEvent(new Event("nenya:back")));
    // Each step of the server's history is an entry of the browser's: Back and Forward are undo and redo.
    const steps = [];
    let place = 0, now = -1;
    const restored = () => {
      const [number, tab, text] = link.value.split("|"), step = +number;
      const url = new URL(location.href); url.searchParams.set("view", text);
      open(tab);
      now = step;
      const entry = {key: SETTINGS.key, step}, known = steps.indexOf(step);
      if (known >= 0 && known !== place) { history.go(known - place); return; }
      if (known >= 0 || !steps.length) history.replaceState(entry, "", url);
      else { steps.splice(place + 1); history.pushState(entry, "", url); }
      if (known < 0) { steps.push(step); place = steps.length - 1; }
    };
    addEventListener("popstate", (event) => {
      if (!event.state) return;
      if (event.state.key !== SETTINGS.key) { location.reload(); return; }
      place = Math.max(0, steps.indexOf(event.state.step));
      if (event.state.step !== now) time.pause();
      if (event.state.step !== now) act("go:" + event.state.step);
    });
    if (link.value) restored();
    link.properties.value.change.connect(restored);
    if (dark !== SETTINGS.dark) paint();
    time.connect(page);
    access(act);
    early.splice(0).forEach(act);
    pointer(page);
    touch(page);
    longitudes(page);
  });
});
