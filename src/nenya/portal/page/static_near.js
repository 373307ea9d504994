// Similar cutouts: a search in latents of eight bits, or neighbours that the page holds.
"use strict";
const nenyaNear = (data) => {
  const near = data.given.near;
  if (!near) return null;
  const n = data.n;
  if (near.kind === "list") {
    const rows = data.as(Int32Array, near.rows), cosines = data.as(Int16Array, near.cosines), k = near.count;
    return {
      kind: "list", most: k,
      find: (i, allowed, count) => {
        const found = [];
        let known = false;
        for (let j = i * k; j < (i + 1) * k && found.length < count; j++) {
          known ||= rows[j] >= 0;
          if (rows[j] >= 0 && allowed(rows[j])) found.push([rows[j], cosines[j] / 32767]);
        }
        return known ? found : null;
      },
    };
  }
  const latents = data.as(Int8Array, near.latents), dim = near.dim, length = new Float32Array(n);
  for (let i = 0; i < n; i++) {
    let sum = 0;
    for (let j = i * dim; j < (i + 1) * dim; j++) sum += latents[j] * latents[j];
    length[i] = Math.sqrt(sum);
  }
  return {
    kind: "search", most: n,
    find: (i, allowed, count) => {
      if (!length[i]) return null;
      const mine = latents.subarray(i * dim, (i + 1) * dim), best = [];
      let least = -2;
      for (let other = 0; other < n; other++) {
        if (other === i || !length[other]) continue;
        let sum = 0;
        for (let j = 0, at = other * dim; j < dim; j++) sum += mine[j] * latents[at + j];
        const cosine = sum / (length[i] * length[other]);
        if (cosine <= least || !allowed(other)) continue;
        best.push([other, cosine]);
        if (best.length >= 4 * count) { best.sort((a, b) => b[1] - a[1]); best.length = count; least = best[count - 1][1]; }
      }
      return best.sort((a, b) => b[1] - a[1]).slice(0, count);
    },
  };
};
