// The time: months moved by hand, or played. A step is sent once the one before it is drawn; others are skipped.
"use strict";
const timeline = (act) => {
  const $ = (id) => document.getElementById(id), box = $("s_time");
  const nothing = () => {};
  if (!box) return {toggle: nothing, play: nothing, step: nothing, pause: () => false, connect: nothing};
  const whole = [+box.dataset.first, +box.dataset.last], at = $("time_at");
  const names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
  const name = (month) => names[((month % 12) + 12) % 12] + " " + (1970 + Math.floor(month / 12));
  let [first, last] = whole;  // of the table, or of a year
  let place = first, count = +$("time_window").value, limited = false, share = "";
  let frame = 0, waiting = 0, begun = 0, wanted = null, sent = null, ending = false, timer = null, steps = 0, skipped = 0, slowest = 0;
  const end = () => Math.max(first, last - count + 1);
  const said = (text) => { if ($("time_said").textContent !== text) $("time_said").textContent = text; };
  const label = () => {
    const year = place % 12 === 0 && count % 12 === 0;
    const ends = year ? [1970 + place / 12, 1970 + (place + count) / 12 - 1] : [name(place), name(place + count - 1)];
    const text = limited ? (ends[0] === ends[1] ? ends[0] : ends[0] + " to " + ends[1]) : "all times";
    at.min = first; at.max = end(); at.value = place;
    at.setAttribute("aria-valuetext", text + (limited && share ? ", " + share : ""));
    $("time_now").textContent = text;
    $("time_share").textContent = limited ? share : "";
    $("time_off").disabled = !limited;
  };
  const send = (month) => {
    waiting = ++frame; begun = performance.now(); wanted = null; sent = month;
    act(`time:move ${month} ${month + count - 1} ${frame}`);
  };
  const move = (month) => {  // by hand: the latest place is drawn next
    place = Math.min(Math.max(month, first), end()); limited = true; share = "";
    label();
    if (waiting) wanted = place; else send(place);
  };
  const finish = () => { if (waiting || wanted !== null) ending = true; else { ending = false; act("time:stop"); } };
  const drawn = () => {
    if (!waiting) return;
    slowest = Math.max(slowest, performance.now() - begun);
    waiting = 0;
    if (wanted !== null) send(wanted); else if (ending) finish();
  };
  const show = (playing) => {
    $("time_play").setAttribute("aria-pressed", String(playing));
    $("time_play").textContent = playing ? "\u275A\u275A Pause" : "\u25B6 Play";
  };
  const pause = () => {
    if (timer === null) return false;
    clearInterval(timer); timer = null;
    show(false); wanted = null; waiting = 0; ending = false;
    act("time:stop");
    return true;
  };
  const tick = () => {
    const step = +$("time_step").value;
    if (place >= end() && waiting) return;
    if (place >= end() && sent !== place) { label(); send(place); return; }
    if (place >= end()) { pause(); said(`end of ${$("time_year") && $("time_year").value || "the table"}` + (skipped ? `; ${skipped} of ${steps} steps skipped` : "")); return; }
    place = Math.min(place + step, end());
    steps += 1;
    if (!waiting) { limited = true; share = ""; label(); send(place); return; }
    skipped += 1;
    said(`${skipped} of ${steps} steps skipped: one takes up to ${(Math.max(slowest, performance.now() - begun) / 1000).toFixed(1)} s`);
    if (performance.now() - begun > 20000) { pause(); said("paused: a step took more than 20 s"); }
  };
  const play = () => {
    if (timer !== null) { pause(); return; }
    if (box.hidden) open(true);
    if (place >= end() || !limited) place = (limited ? first : place) - +$("time_step").value;
    if (place < first - +$("time_step").value) place = first - +$("time_step").value;
    steps = skipped = slowest = 0;
    said(""); show(true);
    timer = setInterval(tick, 1000 / +$("time_speed").value);
    tick();
  };
  const step = (way) => { if (box.hidden) return; pause(); move(place + way * +$("time_step").value); finish(); };
  const open = (wanted) => {
    box.hidden = !wanted;
    $("time").setAttribute("aria-expanded", String(wanted));
    if (wanted) act("time:open"); else pause();
  };
  const keepWithin = (year) => {
    [first, last] = year === "" ? whole : [Math.max(whole[0], (year - 1970) * 12), Math.min(whole[1], (year - 1970) * 12 + 11)];
    if ($("time_year")) $("time_year").value = year;
  };
  const toggle = () => { open(box.hidden); if (!box.hidden) $("time_play").focus(); };
  at.addEventListener("input", () => { pause(); move(+at.value); });
  at.addEventListener("change", finish);
  $("time").onclick = toggle; $("time_play").onclick = play;
  $("time_back").onclick = () => step(-1); $("time_on").onclick = () => step(1);
  $("time_off").onclick = () => { pause(); limited = false; label(); act("time:off"); };
  if ($("time_year")) $("time_year").onchange = () => {
    const year = $("time_year").value;
    pause(); said(""); keepWithin(year);
    if (year === "") { label(); return; }
    if (count > 12) $("time_window").value = count = 1;
    move(first); finish();
  };
  $("time_window").onchange = () => { const was = timer !== null; pause(); count = +$("time_window").value; if (count > 12) keepWithin(""); if (limited || was) { move(place); finish(); } else label(); };
  const pace = () => { const was = timer !== null; pause(); act(`time:pace ${$("time_step").value} ${$("time_speed").value}`); if (was) play(); };
  $("time_step").onchange = pace; $("time_speed").onchange = pace;
  document.addEventListener("visibilitychange", () => { if (document.hidden) pause(); });
  addEventListener("nenya:lost", pause);
  const connect = (page) => {
    const model = page.get_model_by_name("nenya_time");
    const take = () => {
      if (!model.value) return;
      const state = JSON.parse(model.value);
      share = state.share;
      const moving = timer !== null || waiting || wanted !== null;
      if (!moving) {
        limited = state.months !== null;
        if (limited) {
          place = state.months[0]; count = state.months[1] - place + 1;
          const options = [...$("time_window").options];
          if (!options.some((o) => +o.value === count)) $("time_window").add(new Option(`${count} months`, count));
          $("time_window").value = count;
          if (place < first || place + count - 1 > last) keepWithin("");  // of a link, of undo, or drawn in the chart
        }
        $("time_step").value = state.pace[0]; $("time_speed").value = state.pace[1];
      }
      label();
      if (waiting && state.drawn === waiting) requestAnimationFrame(() => setTimeout(drawn, 0));  // once the browser has drawn it
    };
    model.properties.value.change.connect(take);
    take();
    if (limited) open(true);  // of a link
  };
  label();
  return {toggle, play, step, pause, connect};
};
