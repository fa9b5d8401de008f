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

// Counts
const counted = Object.entries(data.verdicts).map(([name, number]) => [number, data.words[name], { flag: "flagged", ok: "clean", marked: "flagged" }[KINDS[name]] ?? "open"]);
for (const [number, label, kind] of [[data.total, data.total === 1 ? "image" : "images", ""], ...counted, [data.failed, "failed", "failed"]]) {
  const cell = make("div", kind + (number ? "" : " zero"));
  const share = kind && data.total && number ? ` · ${(100 * number / data.total).toFixed(number / data.total < .1 ? 1 : 0)} %` : "";
  cell.append(make("span", "number", number.toLocaleString("en")), make("span", "label", label + share));
  $("counts").append(cell);
}

// Histogram: one bar per bin, split at the threshold
function drawHistogram() {
  const { low, high, counts } = data.histogram;
  const digits = high - low < .1 ? 3 : 2, width = $("histogram").clientWidth || 600, height = 190, bottom = height - 22, top = 26;
  const most = Math.max(1, ...counts), x = value => (value - low) / (high - low) * width;
  let inner = `<line class="axis" x1="0" x2="${width}" y1="${bottom}" y2="${bottom}"/>`;
  counts.forEach((number, i) => {
    if (!number) return;
    const step = (high - low) / counts.length, start = low + i * step, tall = Math.max(2, number / most * (bottom - top));
    const kind = data.threshold !== null && start + step / 2 >= data.threshold ? "bar-flag" : "bar-clean";
    inner += `<rect class="${kind}" rx="1.5" x="${x(start) + .5}" y="${bottom - tall}" width="${Math.max(1, width / counts.length - 1.5)}" height="${tall}"><title>${fixed(start)} to ${fixed(start + step)}: ${number}</title></rect>`;
  });
  if (data.threshold !== null && data.threshold !== undefined && counts.length) {
    const at = x(data.threshold), side = at > width * .7 ? "end" : "start";
    inner += `<line class="limit" x1="${at}" x2="${at}" y1="6" y2="${bottom}"/><text class="limit-text" x="${at + (side === "end" ? -7 : 7)}" y="16" text-anchor="${side}">threshold ${fixed(data.threshold)}</text>`;
  }
  inner += `<text x="0" y="${height - 5}">${fixed(low, digits)}</text><text x="${width / 2}" y="${height - 5}" text-anchor="middle">${fixed((low + high) / 2, digits)}</text><text x="${width}" y="${height - 5}" text-anchor="end">${fixed(high, digits)}</text>`;
  $("histogram").innerHTML = `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="Histogram of ${counts.reduce((a, b) => a + b, 0)} scores, threshold ${fixed(data.threshold)}">${inner}</svg>`;
}
drawHistogram();
addEventListener("resize", drawHistogram);
for (const [kind, label] of data.threshold === null ? [] : [["bar", "below the threshold"], ["flag", "at or above the threshold"]]) {
  const item = make("span"), swatch = make("i");
  swatch.style.background = `var(--${kind})`;
  item.append(swatch, label);
  $("key").append(item);
}
if (data.thresholdSource === "conformal") $("key").append(make("span", "", data.thresholdNote));

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
  row.regions.forEach(([left, top, width, height, , peak], i) => {
    const box = make("div", "box");
    box.style.cssText = `left:${100 * left / row.width}%;top:${100 * top / row.height}%;width:${100 * width / row.width}%;height:${100 * height / row.height}%`;
    if (top / row.height < .12) box.classList.add((top + height) / row.height > .88 ? "inside" : "low");
    if (left / row.width > .8) box.classList.add("right");
    if (i < (eager ? 20 : 1)) box.append(make("span", "", peak.toFixed(2)));
    element.append(box);
  });
  return element;
}
// Cards
const { low: scoreLow, high: scoreHigh } = data.histogram;
const along = value => `${100 * Math.min(1, Math.max(0, (value - scoreLow) / (scoreHigh - scoreLow)))}%`;
for (const row of rows) {
  const card = row.card = make("button", "card");
  card.type = "button";
  card.setAttribute("aria-label", `${row.name}, score ${fixed(row.score)}, ${verdict(row)[1].toLowerCase()}, ${count(row.regions.length, "region")}. Open`);
  const stage = make("div", "stage");
  stage.append(frame(row, 4 / 3, true, false));
  const strip = make("div", "strip");
  for (const other of row.others) {
    const small = make("figure"), view = { ...row, ...other };
    small.append(frame(view, 0, true, false), make("figcaption", "", `${other.method} ${fixed(other.score)}${other.verdict ? `, ${data.words[other.verdict]}` : ""}`));
    strip.append(small);
  }
  const about = make("div", "about"), name = make("div", "name"), line = make("div", "line"), meter = make("div", row.flag ? "meter flag" : "meter");
  name.append(make("bdi", "", row.name));
  name.title = row.name;
  line.append(make("span", "score", fixed(row.score)), badge(make("span"), row));
  const fill = make("i"), tick = make("b");
  fill.style.width = along(row.score);
  if (data.threshold === null) tick.hidden = true; else tick.style.left = along(data.threshold);
  meter.append(fill, tick);
  about.append(name, line, meter, make("div", "regions", row.regions.length ? count(row.regions.length, "region") : "no region"));
  card.append(stage);
  if (row.others.length) card.append(strip);
  card.append(about);
  card.addEventListener("click", () => open(row));
}

// Filter, sort, search
let filter = "all", visible = [];
const filters = [["all", "All", rows.length], ...Object.keys(data.verdicts).map(name => [name, verdict({ verdict: name })[1], rows.filter(r => r.verdict === name).length]), ["errors", "Errors", data.failed]];
for (const [key, label, number] of filters) {
  const button = make("button", "", label);
  button.type = "button";
  button.append(make("span", "", number));
  button.addEventListener("click", () => { filter = key; show(); });
  button.dataset.key = key;
  $("filters").append(button);
}
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
  $("view-facts").textContent = `${data.threshold === null ? "no threshold" : `threshold ${fixed(data.threshold, 2)}`} · ${row.width} × ${row.height} pixels · ${at + 1} of ${visible.length}`;
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
  $("view-regions").replaceChildren(row.regions.length ? list : make("p", "facts", data.threshold === null ? "Without a threshold no region is marked." : "No region reaches the threshold."));
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
show();
waiting.sort(([, a], [, b]) => b.score - a.score); // the order they are first shown in
paintWaiting();
