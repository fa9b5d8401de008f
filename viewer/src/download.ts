import { zlibSync } from "fflate";
import { drawHeat, drawOutlines, drawVeil } from "./draw";
import { csvCell } from "./format";
import { sample, type ScoreMap } from "./maps";
import { scoreOf } from "./scale";
import { FLAGS, type ViewerState } from "./state";
import { drawBoxes } from "./components/Stage";

/** Let the browser save a file. */
export function save(name: string, content: string | Blob, type = "text/plain"): void {
  const link = document.createElement("a");
  const address = URL.createObjectURL(typeof content === "string" ? new Blob([content], { type }) : content);
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function load(address: string): Promise<HTMLImageElement> {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("the browser cannot show this image"));
    image.src = address;
  });
}

/** The image with heat and regions as they are shown, at the size of the photo. */
export async function overlayPng(state: ViewerState, index: number): Promise<Blob> {
  const { large, photo } = state.source.pictures(index), image = await load((large ?? photo)!), canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d")!, place = { x: 0, y: 0, width: canvas.width, height: canvas.height };
  context.drawImage(image, 0, 0);
  const map = state.map(index), found = state.cells(index), line = Math.max(1, Math.max(canvas.width, canvas.height) / 600);
  if (map) drawVeil(context, map, place);
  if (map) drawHeat(context, map, place, state.heat.value);
  if (map && found && state.marks.value === "contours") drawOutlines(context, map, found, place, line);
  if (state.marks.value === "boxes") drawBoxes(context, state.regions(index), place, canvas.width / state.rows[index].width, line);
  return new Promise((resolve, reject) =>
    canvas.toBlob((file) => (file ? resolve(file) : reject(new Error("the overlay is too large for this browser")))));
}

/** A map in image size as PNG of 16-bit gray: 65535 is score 1. */
export function mapPng(map: ScoreMap, width: number, height: number): Blob {
  const bytes = new Uint8Array(height * (1 + 2 * width));
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const score = scoreOf(sample(map, ((x + 0.5) * map.width) / width, ((y + 0.5) * map.height) / height));
      const value = Math.round(65535 * score), at = y * (1 + 2 * width) + 1 + 2 * x;
      bytes[at] = value >> 8;
      bytes[at + 1] = value & 255;
    }
  const header = new Uint8Array(13), numbers = new DataView(header.buffer);
  numbers.setUint32(0, width);
  numbers.setUint32(4, height);
  header[8] = 16; // bits; the other bytes are 0: gray, deflate, no interlace
  const parts = [Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a), chunk("IHDR", header), chunk("IDAT", zlibSync(bytes, { level: 6 })), chunk("IEND", new Uint8Array())];
  return new Blob(parts as BlobPart[], { type: "image/png" });
}

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function chunk(name: string, data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(12 + data.length), view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  for (let i = 0; i < 4; i++) bytes[4 + i] = name.charCodeAt(i);
  bytes.set(data, 8);
  let crc = 0xffffffff;
  for (const byte of bytes.subarray(4, 8 + data.length)) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  view.setUint32(8 + data.length, ~crc >>> 0);
  return bytes;
}

/** All images under the shown method at its threshold, highest score first, with names of a results folder's columns. */
export function tableCsv(state: ViewerState): string {
  const { report, summary, threshold } = state;
  const rows = state.rows.map((row, i) => {
    const verdict = state.verdict(i), regions = state.regions(i);
    const cells = [row.name, row.width, row.height, row.object, summary.name, report.model, report.weights, state.finding(i).score,
      String(FLAGS.includes(verdict)), verdict, threshold, "", regions.length, JSON.stringify(regions.map(([left, top, width, height, area, peak]) => ({ left, top, width, height, area, peak })))];
    return { score: state.score(i), line: cells.map(csvCell).join(",") };
  });
  const failed = report.errors.map(([name, reason]) => [name, 0, 0, report.object, summary?.name, report.model, report.weights, null, null, "error", null, reason, 0, "[]"].map(csvCell).join(","));
  rows.sort((a, b) => b.score - a.score);
  const head = "path,width,height,object,method,model,weights,score,flag,verdict,threshold,error,region_count,regions";
  return `\ufeff${[head, ...rows.map((row) => row.line), ...failed].join("\r\n")}\r\n`;
}
