"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const rows = JSON.parse(document.getElementById("rows").textContent);
const $ = id => document.getElementById(id);
// Text is only ever set as text: names of files may hold anything.
function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}
const fixed = (value, digits = 3) => value === null || value === undefined ? "–" : value.toFixed(digits);
const count = (number, one, many = one + "s") => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

// Header
$("title").textContent = data.object ? `${data.object[0].toUpperCase()}${data.object.slice(1)}` : "Inspection";
const date = new Date(data.created);
$("meta").textContent = [data.folder, [data.method, data.model].filter(Boolean).join(" · "),
  isNaN(date) ? "" : date.toLocaleString("en-GB", { dateStyle: "long", timeStyle: "short" })].filter(Boolean).join("  —  ");
function banner(title, text, kind) {
  const box = make("div", `banner ${kind}`);
  box.setAttribute("role", "note");
  box.innerHTML = '<svg width="20" height="20" viewBox="0 0 20 20" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linecap="round" aria-hidden="true"><path d="M10 2.5 18.5 17h-17z" stroke-linejoin="round"/><path d="M10 8v4M10 14.4v.1"/></svg>';
  const body = make("div");
  body.append(make("strong", "", title), make("span", "", text));
  box.append(body);
  $("banners").append(box);
}
const random = data.weights.toLowerCase().includes("random");
if (random) banner("Random weights: these scores mean nothing", "The model was asked for without trained weights, as a control. Do not judge any part by this report.", "loud");
if (data.thresholdNote && data.thresholdSource !== "conformal") banner(data.threshold === null ? "No threshold can be given" : "How images are judged", data.thresholdNote, data.thresholdSource === "gumbel" ? "plain" : "");
for (const text of data.warnings) if (!(random && /random/i.test(text))) banner("Note", text, "plain");
if (data.total - data.failed > data.cardLimit) banner(`The ${data.cardLimit} highest scores are shown`,
  `All ${data.total.toLocaleString("en")} images are counted here; every row is in the detections folder.`, "plain");

const KINDS = { flagged: "flag", stands_out: "flag", suspicious: "marked", clean: "ok", undecided: "open" };
function verdict(row) {
  const word = data.words[row.verdict] ?? "not judged";
  return [KINDS[row.verdict] ?? "open", word[0].toUpperCase() + word.slice(1)];
}
function badge(element, row) {
  const [kind, label] = verdict(row);
  element.className = `badge ${kind}`;
  element.textContent = label;
  return element;
}

// The threshold as the run judged, or as dragged here; nothing in the folder changes
const judged = data.threshold;
let threshold = judged;
const scores = Float64Array.from(new Uint16Array(Uint8Array.from(atob(data.scores), c => c.charCodeAt(0)).buffer), value => value / 65535).sort();
/** How many images of the run score at least a value; the report may show only some of them. */
function countFrom(value) {
  let low = 0, high = scores.length;
  while (low < high) { const middle = (low + high) >> 1; if (scores[middle] < value) low = middle + 1; else high = middle; }
  return scores.length - low;
}
function verdictsAt(at) {
  if (at === judged) return data.verdicts;
  const above = countFrom(at);
  return Object.fromEntries(Object.entries({ flagged: above, [data.good ? "clean" : "undecided"]: scores.length - above }).filter(([, number]) => number));
}

// Counts
function drawCounts() {
  const counted = Object.entries(verdictsAt(threshold)).map(([name, number]) => [number, data.words[name], { flag: "flagged", ok: "clean", marked: "flagged" }[KINDS[name]] ?? "open"]);
  $("counts").replaceChildren();
  for (const [number, label, kind] of [[data.total, data.total === 1 ? "image" : "images", ""], ...counted, [data.failed, "failed", "failed"]]) {
    const cell = make("div", kind + (number ? "" : " zero"));
    const share = kind && data.total && number ? ` · ${(100 * number / data.total).toFixed(number / data.total < .1 ? 1 : 0)} %` : "";
    cell.append(make("span", "number", number.toLocaleString("en")), make("span", "label", label + share));
    $("counts").append(cell);
  }
}

// Histogram: bars split at the threshold, which can be dragged
function drawHistogram() {
  const { low, high, counts } = data.histogram;
  const digits = high - low < .1 ? 3 : 2, width = $("histogram").clientWidth || 600, height = 190, bottom = height - 22, top = 26;
  const most = Math.max(1, ...counts), x = value => (value - low) / (high - low) * width, tall = number => number / most * (bottom - top);
  let inner = `<line class="axis" x1="0" x2="${width}" y1="${bottom}" y2="${bottom}"/>`;
  const bin = (high - low) / counts.length;
  counts.forEach((number, i) => {
    if (!number) return;
    const start = low + i * bin, end = start + bin;
    let above = 0;
    if (threshold !== null) above = threshold <= start ? number : threshold > end ? 0 : Math.min(number, countFrom(threshold) - (i === counts.length - 1 ? 0 : countFrom(end)));
    const wide = Math.max(1, width / counts.length - 1.5), whole = Math.max(2, tall(number)), part = whole * above / number;
    const rectangle = (kind, y, size) => size > 0 ? `<rect class="${kind}" rx="1.5" x="${x(start) + .5}" y="${y}" width="${wide}" height="${size}"><title>${fixed(start)} to ${fixed(end)}: ${number}${above ? `, ${above} at or above the threshold` : ""}</title></rect>` : "";
    inner += rectangle("bar-clean", bottom - whole + part, whole - part) + rectangle("bar-flag", bottom - whole, part);
  });
  if (threshold !== null && counts.length) {
    const at = x(Math.min(high, Math.max(low, threshold))), side = at > width * .7 ? "end" : "start";
    inner += `<line class="limit" x1="${at}" x2="${at}" y1="6" y2="${bottom}"/><text class="limit-text" x="${at + (side === "end" ? -7 : 7)}" y="16" text-anchor="${side}">threshold ${fixed(threshold)}</text>`;
  }
  inner += `<text x="0" y="${height - 5}">${fixed(low, digits)}</text><text x="${width / 2}" y="${height - 5}" text-anchor="middle">${fixed((low + high) / 2, digits)}</text><text x="${width}" y="${height - 5}" text-anchor="end">${fixed(high, digits)}</text>`;
  $("histogram").innerHTML = `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="Histogram of ${scores.length} scores, threshold ${fixed(threshold)}">${inner}</svg>`;
}
drawCounts();
drawHistogram();
addEventListener("resize", drawHistogram);
if (data.thresholdSource === "conformal") $("key").append(make("span", "", data.thresholdNote));
for (const [kind, label] of [["bar", "below the threshold"], ["flag", "at or above it"]]) {
  const item = make("span"), swatch = make("i");
  swatch.style.background = `var(--${kind})`;
  item.append(swatch, label);
  $("key").append(item);
}

// Settings
for (const [name, value] of [...data.settings, ["computing time", `${data.seconds.toFixed(1)} s`], ["clipspect", data.version]]) {
  $("settings").append(make("dt", "", name), make("dd", "", value));
}

// Heat: grey maps coloured through the same table as the overlay files
const table = new Uint8ClampedArray(256 * 4);
for (let i = 0; i < 256; i++) {
  const share = i / 255, at = share * (data.colors.length - 1), k = Math.min(data.colors.length - 2, Math.floor(at));
  for (let c = 0; c < 3; c++) table[4 * i + c] = data.colors[k][c] + (at - k) * (data.colors[k + 1][c] - data.colors[k][c]);
  table[4 * i + 3] = 255 * Math.min(1, Math.max(0, (share - data.clear[0]) / (data.clear[1] - data.clear[0])));
}
function paint(canvas, row) {
  if (!row.heat) return;
  const image = new Image();
  image.onload = () => {
    canvas.width = image.width; canvas.height = image.height;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    if (row.cells === undefined) row.cells = { width: canvas.width, height: canvas.height, values: pixels.data.filter((_, i) => i % 4 === 0) };
    for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set(table.subarray(4 * pixels.data[i], 4 * pixels.data[i] + 4), i);
    context.putImageData(pixels, 0, 0);
  };
  image.src = "data:image/png;base64," + row.heat;
}
// Painted a few at a time, so that hundreds of cards neither hold up the page nor lack their heat in print
const waiting = [];
function paintWaiting() {
  for (const [canvas, row] of waiting.splice(0, 12)) paint(canvas, row);
  if (waiting.length) setTimeout(paintWaiting, 15);
}
const legend = make("i");
legend.style.background = `linear-gradient(90deg, ${data.colors.map(c => `rgb(${c})`).join(",")})`;
const bar = make("span", "bar"), mark = make("b");
bar.append(legend, mark);
$("legend").append(make("span", "", "0"), bar, make("span", "", "1"));
$("legend").title = "Scores: clear below 0.25, hot from the threshold 0.5 (marked), the same for every image";

// An image in its own proportions, with heat and boxes on top
function frame(row, ratio, heated, eager) {
  const element = make("div", "frame"), own = row.width / row.height;
  element.style.aspectRatio = `${row.width} / ${row.height}`;
  if (ratio) element.style.width = `${Math.min(1, own / ratio) * 100}%`;
  if (row.photo) {
    const image = make("img");
    image.alt = "";
    image.src = "data:image/jpeg;base64," + row.photo;
    element.append(image);
  }
  if (!heated) return element;
  const canvas = make("canvas");
  element.append(canvas);
  if (eager) paint(canvas, row); else waiting.push([canvas, row]);
  drawBoxes(element, row, eager);
  return element;
}
function drawBoxes(element, row, eager) {
  for (const old of element.querySelectorAll(".box")) old.remove();
  row.regions.forEach(([left, top, width, height, , peak], i) => {
    const box = make("div", "box");
    box.style.cssText = `left:${100 * left / row.width}%;top:${100 * top / row.height}%;width:${100 * width / row.width}%;height:${100 * height / row.height}%`;
    if (top / row.height < .12) box.classList.add((top + height) / row.height > .88 ? "inside" : "low");
    if (left / row.width > .8) box.classList.add("right");
    if (i < (eager ? 20 : 1)) box.append(make("span", "", peak.toFixed(2)));
    element.append(box);
  });
}
// Cards
const { low: scoreLow, high: scoreHigh } = data.histogram;
const along = value => `${100 * Math.min(1, Math.max(0, (value - scoreLow) / (scoreHigh - scoreLow)))}%`;
for (const row of rows) {
  row.judged = { verdict: row.verdict, flag: row.flag, regions: row.regions };
  const card = row.card = make("button", "card"), picture = frame(row, 4 / 3, true, false);
  card.type = "button";
  const stage = make("div", "stage");
  stage.append(picture);
  const strip = make("div", "strip");
  for (const other of row.others) {
    const small = make("figure"), view = { ...row, ...other, cells: undefined };
    small.append(frame(view, 0, true, false), make("figcaption", "", `${other.method} ${fixed(other.score)}${other.verdict ? `, ${data.words[other.verdict]}` : ""}`));
    strip.append(small);
  }
  const about = make("div", "about"), name = make("div", "name"), line = make("div", "line"), meter = make("div"), said = make("div", "regions"), mark = make("span");
  name.append(make("bdi", "", row.name));
  name.title = row.name;
  line.append(make("span", "score", fixed(row.score)), mark);
  const fill = make("i"), tick = make("b");
  fill.style.width = along(row.score);
  meter.append(fill, tick);
  about.append(name, line, meter, said);
  card.append(stage);
  if (row.others.length) card.append(strip);
  card.append(about);
  card.addEventListener("click", () => open(row));
  row.refresh = () => {
    card.setAttribute("aria-label", `${row.name}, score ${fixed(row.score)}, ${verdict(row)[1].toLowerCase()}, ${count(row.regions.length, "region")}. Open`);
    badge(mark, row);
    meter.className = row.flag ? "meter flag" : "meter";
    tick.hidden = threshold === null;
    if (threshold !== null) tick.style.left = along(threshold);
    said.textContent = row.regions.length ? count(row.regions.length, "region") : "no region";
    drawBoxes(picture, row, false);
  };
  row.refresh();
}

// Filter, sort, search
let filter = "all", visible = [];
function drawFilters() {
  const filters = [["all", "All", rows.length], ...Object.keys(verdictsAt(threshold)).map(name => [name, verdict({ verdict: name })[1], rows.filter(r => r.verdict === name).length]), ["errors", "Errors", data.failed]];
  if (!filters.some(([key]) => key === filter)) filter = "all";
  $("filters").replaceChildren();
  for (const [key, label, number] of filters) {
    const button = make("button", "", label);
    button.type = "button";
    button.append(make("span", "", number));
    button.addEventListener("click", () => { filter = key; show(); });
    button.dataset.key = key;
    $("filters").append(button);
  }
}
drawFilters();
const byName = (a, b) => a.name.localeCompare(b.name, "en", { numeric: true });
const orders = { high: (a, b) => b.score - a.score || byName(a, b), low: (a, b) => a.score - b.score || byName(a, b), name: byName,
  regions: (a, b) => b.regions.length - a.regions.length || b.score - a.score };
function show() {
  const wanted = $("search").value.trim().toLowerCase();
  visible = filter === "errors" ? [] : rows.filter(row => (filter === "all" || row.verdict === filter) && row.name.toLowerCase().includes(wanted));
  visible.sort(orders[$("sort").value]);
  $("gallery").replaceChildren(...visible.map(row => row.card));
  if (!visible.length && filter !== "errors") $("gallery").append(make("p", "empty", rows.length ? "No image fits this choice." : "No image could be scored."));
  for (const button of $("filters").children) button.setAttribute("aria-pressed", button.dataset.key === filter);
  $("shown").textContent = filter === "errors" ? "" : count(visible.length, "image") + " shown";
  $("errors").hidden = !data.failed || !(filter === "all" || filter === "errors");
}
$("sort").addEventListener("change", show);
$("search").addEventListener("input", show);
function setHeat(value) {
  document.body.style.setProperty("--heat", value / 100);
  $("heat").value = $("view-heat").value = value;
}
$("heat").addEventListener("input", event => setHeat(event.target.value));
$("view-heat").addEventListener("input", event => setHeat(event.target.value));
$("boxes").addEventListener("change", event => document.body.classList.toggle("no-boxes", !event.target.checked));

// Dragging the threshold: flags, counts, boxes and the command follow
const FLAGS = ["flagged", "stands_out", "suspicious"];
/** Value of a grey cell on the scale where clear is 0 and the run's threshold is 1. */
const valueOf = grey => { const p = Math.min(grey, 254) / 255; return p < .5 ? 2 * p : 1 - Math.log(2 * (1 - p)); };
/** Label cells that touch by an edge or a corner; the peak of each label. */
function label(inside, width, height) {
  const labels = new Int32Array(inside.length), stack = [];
  let last = 0;
  for (let seed = 0; seed < inside.length; seed++) {
    if (!inside[seed] || labels[seed]) continue;
    labels[seed] = ++last;
    stack.push(seed);
    while (stack.length) {
      const at = stack.pop(), column = at % width, row = (at - column) / width;
      for (let y = Math.max(0, row - 1); y <= Math.min(height - 1, row + 1); y++)
        for (let x = Math.max(0, column - 1); x <= Math.min(width - 1, column + 1); x++) {
          const next = y * width + x;
          if (inside[next] && !labels[next]) { labels[next] = last; stack.push(next); }
        }
    }
  }
  return [labels, last];
}
/** Regions at a threshold, as clipspect finds them, from the 8-bit map of this report. */
function regionsAt(row, at) {
  if (at === judged) return row.judged.regions;
  if (!row.cells || row.score < at) return [];
  const { width, height, values } = row.cells, seed = valueOf(255 * at), level = Math.min(.75 * seed, seed);
  const v = Float64Array.from(values, valueOf);
  let best = 0;
  for (let i = 1; i < v.length; i++) if (v[i] > v[best]) best = i;
  const isSeed = i => i === best || v[i] >= seed;
  const [wide, many] = label(v.map((value, i) => isSeed(i) || value >= level ? 1 : 0), width, height), peaks = new Float64Array(many + 1);
  for (let i = 0; i < v.length; i++) peaks[wide[i]] = Math.max(peaks[wide[i]], v[i]);
  const [labels, last] = label(v.map((value, i) => wide[i] && value >= .6 * peaks[wide[i]] ? 1 : 0), width, height);
  const found = Array.from({ length: last + 1 }, () => ({ cells: 0, seeded: false, peak: 0, left: width, top: height, right: 0, bottom: 0 }));
  for (let i = 0; i < v.length; i++) {
    if (!labels[i]) continue;
    const one = found[labels[i]], x = i % width, y = (i - x) / width;
    one.cells++;
    one.seeded ||= isSeed(i);
    one.peak = Math.max(one.peak, values[i] / 255);
    one.left = Math.min(one.left, x); one.right = Math.max(one.right, x + 1);
    one.top = Math.min(one.top, y); one.bottom = Math.max(one.bottom, y + 1);
  }
  const least = Math.max(width, height) >= 64 ? 4 : 1, across = row.width / width, down = row.height / height;
  return found.filter((one, i) => i && one.seeded && (one.cells >= least || i === labels[best])).sort((a, b) => b.peak - a.peak).slice(0, 100)
    .map(one => [Math.floor(one.left * across), Math.floor(one.top * down), Math.round((one.right - one.left) * across), Math.round((one.bottom - one.top) * down), Math.round(one.cells * across * down), one.peak]);
}
const quoted = text => /^[\w.\/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
/** Follow the threshold; boxes only once it is let go, as they take longer. */
function moveTo(at, boxes) {
  threshold = at;
  for (const row of rows) {
    row.verdict = at === judged ? row.judged.verdict : row.score >= at ? "flagged" : data.good ? "clean" : "undecided";
    row.flag = FLAGS.includes(row.verdict);
    if (boxes) { row.regions = regionsAt(row, at); row.refresh(); }
  }
  const above = at === null ? 0 : countFrom(at), before = judged === null ? null : countFrom(judged);
  $("what-if").textContent = at === null ? "No threshold was given. Drag to try one." : `At ${at.toFixed(3)}: ${count(above, "image")} of ${scores.length} at or above` + (before === null || at === judged ? "" : ` (${before} at ${judged.toFixed(3)}, as judged)`);
  $("reset").hidden = $("permanent").hidden = at === judged;
  if (at !== judged) $("command").value = `clipspect results filter ${quoted(data.results)} -o ${quoted(`${data.results}-at-${at.toFixed(3)}`)} --threshold ${at.toFixed(3)}`;
  drawCounts();
  drawHistogram();
  if (boxes) { drawFilters(); show(); if ($("view").open) open(current); }
}
const knob = $("threshold");
if (scores.length) {
  knob.min = Math.max(.005, Math.floor(200 * scoreLow) / 200);
  knob.max = Math.min(.995, Math.ceil(200 * scoreHigh) / 200);
  knob.value = judged ?? .5;
  knob.addEventListener("input", () => moveTo(Number(knob.value), false));
  knob.addEventListener("change", () => moveTo(Number(knob.value), true));
  $("reset").addEventListener("click", () => { knob.value = judged ?? .5; moveTo(judged, true); });
  $("copy").addEventListener("click", async () => {
    $("command").select();
    try { await navigator.clipboard.writeText($("command").value); $("copy").textContent = "Copied"; }
    catch { $("copy").textContent = "Press Ctrl+C"; }
  });
  const drag = event => {
    const place = $("histogram").getBoundingClientRect();
    const value = scoreLow + (event.clientX - place.left) / place.width * (scoreHigh - scoreLow);
    knob.value = Math.min(Number(knob.max), Math.max(Number(knob.min), value));
    moveTo(Number(knob.value), event.type === "pointerup");
  };
  $("histogram").addEventListener("pointerdown", event => { $("histogram").setPointerCapture(event.pointerId); drag(event); });
  $("histogram").addEventListener("pointermove", event => { if (event.buttons) drag(event); });
  $("histogram").addEventListener("pointerup", drag);
} else $("live").hidden = true;

// Errors
for (const [name, reason] of data.errors) {
  const line = make("tr");
  line.append(make("td", "", name), make("td", "", reason));
  $("error-rows").append(line);
}
$("errors-note").textContent = data.failed > data.errors.length ? `The first ${data.errors.length} of ${data.failed}.` : "They are tried again when the same command runs again.";

// Large view
let current = null;
function open(row) {
  current = row;
  const at = visible.indexOf(row);
  $("view-name").textContent = row.name;
  const wide = matchMedia("(min-width: 641px)").matches;
  for (const [id, heated] of [["plain", false], ["heated", true]]) {
    const large = frame(row, 0, heated, true);
    // fit both ways: the narrower of the stage's width and the width that its height allows
    large.style.width = wide ? `min(100%, min(54vh, 520px) * ${row.width / row.height})` : `min(100%, 46vh * ${row.width / row.height})`;
    $(id).replaceChildren(large);
  }
  for (const old of document.querySelectorAll("#pair .compared")) old.remove();
  $("heated-caption").textContent = row.others.length ? `${row.method} ${fixed(row.score)}` : "Heatmap and regions";
  for (const other of row.others) {
    const figure = make("figure", "compared"), stage = make("div", "stage"), large = frame({ ...row, ...other }, 0, true, true);
    large.style.width = $("heated").firstChild.style.width;
    stage.append(large);
    figure.append(make("figcaption", "", `${other.method} ${fixed(other.score)}${other.verdict ? `, ${data.words[other.verdict]}` : ""}`), stage);
    $("pair").append(figure);
  }
  $("view-score").textContent = fixed(row.score);
  badge($("view-flag"), row);
  $("view-facts").textContent = `${threshold === null ? "no threshold" : `threshold ${fixed(threshold, 2)}`} · ${row.width} × ${row.height} pixels · ${at + 1} of ${visible.length}`;
  $("view-overlay").hidden = !row.overlay;
  if (row.overlay) $("view-overlay").href = row.overlay;
  const list = make("table"), head = make("tr"), body = make("tbody");
  for (const label of ["Region", "Peak", "Left, top", "Size", "Area"]) head.append(make("th", "", label));
  row.regions.forEach(([left, top, width, height, area, peak], i) => {
    const line = make("tr");
    for (const text of [i + 1, peak.toFixed(3), `${left}, ${top}`, `${width} × ${height}`, `${area.toLocaleString("en")} px`]) line.append(make("td", "", text));
    body.append(line);
  });
  list.append(make("thead"), body);
  list.tHead.append(head);
  $("view-regions").replaceChildren(row.regions.length ? list : make("p", "facts", threshold === null ? "Without a threshold no region is marked." : "No region reaches the threshold."));
  $("previous").disabled = at <= 0;
  $("next").disabled = at < 0 || at >= visible.length - 1;
  if (!$("view").open) $("view").showModal();
}
function step(by) {
  const row = visible[visible.indexOf(current) + by];
  if (row) open(row);
}
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("close").addEventListener("click", () => $("view").close());
$("view").addEventListener("click", event => { if (event.target === $("view")) $("view").close(); });
$("view").addEventListener("close", () => current && current.card.focus());
$("view").addEventListener("keydown", event => {
  if (event.target.type === "range") return; // the slider's own arrows
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
if (scores.length) moveTo(judged, false);
show();
waiting.sort(([, a], [, b]) => b.score - a.score); // the order they are first shown in
paintWaiting();
