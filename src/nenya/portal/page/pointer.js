// What the mouse is over: a point or a cutout of a sheet is marked in all panels, a point with a card beside it.
"use strict";
const pointer = (page) => {
  const card = document.getElementById("card"), channel = page.get_model_by_name("nenya_pointer");
  const text = page.get_model_by_name("text_card");
  let at = [0, 0], last = "", over = "", sent = "", count = 0, timer = null;
  const place = () => {
    const box = card.getBoundingClientRect();
    const left = at[0] + 18 + box.width > innerWidth ? at[0] - 18 - box.width : at[0] + 18;
    card.style.left = Math.max(0, left) + "px";
    card.style.top = Math.max(0, Math.min(at[1] - 20, innerHeight - box.height - 4)) + "px";
  };
  const send = () => {
    timer = null;
    if (over === sent) return;
    sent = over;
    channel.value = ++count + "|" + over;
  };
  const point = (what) => {
    over = what;
    if (!what.startsWith("card:")) card.hidden = true;
    if (timer === null) timer = setTimeout(send, 40);
  };
  addEventListener("mousemove", (event) => { at = [event.clientX, event.clientY]; if (!card.hidden) place(); });
  text.properties.text.change.connect(() => { if (over.startsWith("card:") && text.text) { card.hidden = false; place(); } });
  for (const [name, kind] of [["points umap", "card"], ["points map", "card"], ["tiles gallery", "light"], ["tiles near", "light"]]) {
    const source = page.get_model_by_name(name);
    if (!source) continue;
    source.inspect.connect(() => {
      const index = source.inspected.indices[0];
      const what = index === undefined ? "" : kind + ":" + source.data.row[index];
      if (what === over || (what === "" && last !== name)) return;
      last = name;
      point(what);
    });
  }
};
