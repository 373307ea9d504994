// Thumbnails, lists of them, facts of a cutout, and the card beside the mouse. All texts are set as text.
"use strict";
const nenyaElement = (kind, values = {}, ...children) => {
  const element = document.createElement(kind);
  for (const [name, value] of Object.entries(values)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};
const nenyaLists = (data, app) => {
  const make = nenyaElement, {pictures} = data;
  const brief = (i) => {
    const parts = [`row ${data.rows[i].toLocaleString("en")}`];
    const lat = data.numbers.get("lat"), lon = data.numbers.get("lon"), dt = data.numbers.get("DT");
    if (lat && lon) parts.push(`${Math.abs(lat.values[i]).toFixed(1)}° ${lat.values[i] < 0 ? "S" : "N"}, ${Math.abs(lon.values[i]).toFixed(1)}° ${lon.values[i] < 0 ? "W" : "E"}`);
    if (data.date(i)) parts.push(data.date(i));
    if (dt) parts.push(`DT ${dt.values[i].toFixed(2)} K`);
    return parts;
  };
  const picture = (i, side) => {
    const box = make("span", {className: "thumb"});
    box.style.width = box.style.height = side + "px";
    if (!pictures || !pictures.there[i]) { box.textContent = pictures ? "no image" : data.rows[i]; box.classList.add("none"); return box; }
    const each = pictures.across ** 2, k = i % each, count = Math.min(each, data.n - (i - k));
    box.style.backgroundImage = `url("${pictures.files[Math.floor(i / each)]}")`;
    box.style.backgroundSize = `${pictures.across * side}px ${Math.ceil(count / pictures.across) * side}px`;
    box.style.backgroundPosition = `${-(k % pictures.across) * side}px ${-Math.floor(k / pictures.across) * side}px`;
    return box;
  };
  const button = (i, side, note = "") => make("button", {
    className: "pick", title: brief(i).join("\n"), "aria-label": brief(i).join(", ") + (note && `, cosine ${note}`), "aria-pressed": String(app.row() === i),
    onclick: () => app.choose(i), onmouseenter: (event) => app.point(i, event.clientX, event.clientY, true), onmouseleave: () => app.point(null),
  }, picture(i, side), ...(note ? [make("small", {textContent: note})] : []));
  const facts = (i) => {
    const lines = [["row", data.rows[i].toLocaleString("en")]];
    if (data.date(i)) lines.push(["date", data.date(i)]);
    for (const column of data.numbers.values()) if (!data.classes.has(column.name)) lines.push([column.title, Number.isFinite(column.values[i]) ? data.short(column.values[i]) : "missing"]);
    for (const column of data.classes.values()) lines.push([column.title, column.codes[i] < 0 ? "missing" : column.labels[column.codes[i]]]);
    if (data.keys) lines.push(["file", data.keys.names[data.keys.file[i]] || "-"], ["partition", {0: "valid", 1: "train"}[data.keys.type[i]] || "-"], ["index", data.keys.idx[i]]);
    return make("table", {className: "facts"}, make("tbody", {}, ...lines.map(([name, value]) => make("tr", {}, make("th", {scope: "row", textContent: name}), make("td", {textContent: value})))));
  };
  const card = document.getElementById("card");
  const showCard = (i, X, Y) => {
    if (i === null) { card.hidden = true; return; }
    card.replaceChildren(picture(i, 128), ...brief(i).map((line) => make("div", {textContent: line})), ...app.tagsOf(i).map((word) => make("span", {className: "tag", textContent: word})));
    card.hidden = false;
    const box = card.getBoundingClientRect();
    card.style.left = Math.max(0, X + 18 + box.width > innerWidth ? X - 18 - box.width : X + 18) + "px";
    card.style.top = Math.max(0, Math.min(Y - 20, innerHeight - box.height - 4)) + "px";
  };
  return {brief, picture, button, facts, showCard};
};
