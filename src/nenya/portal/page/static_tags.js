// Tags of cutouts: words of the visitor's own, kept by the browser, and files of them; CSV files of rows.
"use strict";
const nenyaCsv = (lines) => lines.map((line) => line.map((value) => {
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}).join(",")).join("\n") + "\n";
const nenyaReadCsv = (text) => {
  const lines = [[""]];
  let quoted = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i], line = lines[lines.length - 1];
    if (quoted) { if (c === '"' && text[i + 1] === '"') { line[line.length - 1] += c; i++; } else if (c === '"') quoted = false; else line[line.length - 1] += c; }
    else if (c === '"') quoted = true;
    else if (c === ",") line.push("");
    else if (c === "\n") lines.push([""]);
    else if (c !== "\r") line[line.length - 1] += c;
  }
  return lines.filter((line) => line.length > 1 || line[0] !== "");
};
const nenyaSave = (name, text) => {
  const link = document.createElement("a"), address = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  link.href = address; link.download = name;
  document.body.append(link); link.click(); link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
};

const nenyaTags = (data, changed) => {
  const MOST_WORDS = 100, MOST_MARKS = 500000, LONGEST = 40, MOST_BYTES = 20e6, place = "nenya_tags_" + data.given.id;
  const tags = new Map();
  try {
    for (const [word, rows] of Object.entries(JSON.parse(localStorage.getItem(place)) || {}))
      tags.set(word, new Set(rows.filter((row) => data.placeOf.has(row))));
  } catch (error) { /* nothing is kept, or nothing may be */ }
  const keep = () => {
    let kept = true;
    try { localStorage.setItem(place, JSON.stringify(Object.fromEntries([...tags].map(([word, rows]) => [word, [...rows]])))); } catch (error) { kept = false; }
    changed();
    return kept;
  };
  const clean = (word) => {
    const text = word.normalize("NFC").trim().replace(/\s+/g, " ");
    if (!text) throw new Error("Type a tag first, a word of your own.");
    if (text.length > LONGEST) throw new Error(`A tag has at most ${LONGEST} characters, this one has ${text.length}.`);
    if (/[,\p{C}]/u.test(text) || /^[=+@-]/.test(text)) throw new Error("A tag has no commas and no control characters, and does not begin with =, +, - or @.");
    if (!tags.has(text) && tags.size >= MOST_WORDS) throw new Error(`There are ${MOST_WORDS} tags, the largest number allowed: remove one first.`);
    return text;
  };
  const checkMarks = (more) => {
    const count = [...tags.values()].reduce((sum, rows) => sum + rows.size, more);
    if (count > MOST_MARKS) throw new Error(`Expected at most ${MOST_MARKS.toLocaleString("en")} tagged cutouts, got ${count.toLocaleString("en")}: select fewer, or remove a tag first.`);
  };
  // Both return the rows that changed, so that the change can be undone.
  const add = (word, rows) => {
    const set = tags.get(word) || new Set(), fresh = rows.filter((row) => !set.has(row));
    checkMarks(fresh.length);
    fresh.forEach((row) => set.add(row));
    if (set.size) tags.set(word, set);
    return {rows: fresh, kept: keep()};
  };
  const remove = (word, rows) => {
    const set = tags.get(word) || new Set(), gone = rows.filter((row) => set.delete(row));
    if (!set.size) tags.delete(word);
    return {rows: gone, kept: keep()};
  };
  const key = (i) => [data.keys.names[data.keys.file[i]], data.keys.type[i], data.keys.idx[i]];
  // The file that tags= of nenya's commands reads: tag -> cutout file -> partition -> rows in it.
  const PARTITIONS = {0: "valid", 1: "train"};
  const toJson = () => {
    const none = () => Object.create(null), found = none();  // a tag or a file may have any name, also __proto__
    for (const [word, rows] of [...tags].sort()) for (const row of rows) {
      const [file, type, idx] = key(data.placeOf.get(row));
      if (PARTITIONS[type] && idx >= 0) (((found[word] ||= none())[file] ||= none())[PARTITIONS[type]] ||= []).push(idx);
    }
    for (const files of Object.values(found)) for (const parts of Object.values(files)) for (const rows of Object.values(parts)) rows.sort((a, b) => a - b);
    return JSON.stringify({nenya_tags: 1, tags: found}) + "\n";
  };
  const marks = (text) => {
    const found = JSON.parse(text);
    if (found.nenya_tags !== 1) throw new Error();
    return Object.entries(found.tags).flatMap(([word, files]) => Object.entries(files).flatMap(([file, parts]) => Object.entries(parts).flatMap(([part, rows]) => rows.map((row) => [file, {valid: 0, train: 1}[part], row, word]))));
  };
  const marksOfCsv = (text) => {
    const [head, ...lines] = nenyaReadCsv(text), columns = ["pp_file", "pp_type", "pp_idx", "tag"].map((name) => (head || []).indexOf(name));
    if (columns.includes(-1)) throw new Error();
    return lines.flatMap((line) => { const [file, type, idx, words] = columns.map((k) => line[k] ?? ""); return words.split(",").filter((word) => word.trim()).map((word) => [file, +type, +idx, word]); });
  };
  const read = (text) => {
    let lines = [];
    try { if (text.length <= MOST_BYTES) lines = text.trim().startsWith("{") ? marks(text) : marksOfCsv(text); else throw new Error(); }
    catch (error) { throw new Error("Expected a file of tags, as this page or nenya portal writes it, or a CSV file with the columns pp_file, pp_type, pp_idx and tag."); }
    if (!data.keys) throw new Error("Tags cannot be read: the rows of this page do not say their file, partition and index.");
    const at = new Map(), loose = new Map(), found = new Map(), base = (name) => String(name).replace(/.*[/\\]/, "");
    for (let i = 0; i < data.n; i++) {  // by the name as it is, else by that without folders, if only one file has it
      const [file, type, idx] = key(i), row = data.rows[i], short = JSON.stringify([base(file), type, idx]), other = loose.get(short);
      at.set(JSON.stringify([file, type, idx]), row);
      loose.set(short, other && other.file !== file ? {file: null} : {file, row});
    }
    let foreign = 0;
    for (const [file, type, idx, word] of lines) {
      const row = at.get(JSON.stringify([file, type, idx])) ?? (loose.get(JSON.stringify([base(file), type, idx])) || {}).row;
      if (row === undefined) { foreign++; continue; }
      const name = clean(String(word));
      if (found.has(name)) found.get(name).push(row); else found.set(name, [row]);
    }
    if (new Set([...tags.keys(), ...found.keys()]).size > MOST_WORDS) throw new Error(`With these there would be more than ${MOST_WORDS} tags, the largest number allowed: remove some first.`);
    checkMarks([...found].reduce((sum, [word, rows]) => sum + [...new Set(rows)].filter((row) => !(tags.get(word) || new Set()).has(row)).length, 0));
    return {found, foreign};
  };
  const of = (row) => [...tags].filter(([, rows]) => rows.has(row)).map(([word]) => word);
  return {tags, clean, add, remove, key, toJson, read, of};
};
