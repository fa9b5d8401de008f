import { outlines, type Lines } from "./contours";
import { colorMap, veilOf, type ScoreMap } from "./maps";
import type { Found } from "./regions";

/** Place of the whole image on a canvas, in canvas pixels. */
export interface Placement {
  x: number;
  y: number;
  width: number;
  height: number;
}

const cached = new WeakMap<Found, Lines>();

function linesOf(map: ScoreMap, found: Found): Lines {
  let lines = cached.get(found);
  if (!lines) cached.set(found, (lines = outlines(map, found)));
  return lines;
}

/** Draw the visible part of the heat at the canvas's own resolution. */
export function drawHeat(context: CanvasRenderingContext2D, map: ScoreMap, place: Placement, opacity: number): void {
  const { width, height } = context.canvas;
  const left = Math.max(0, Math.floor(place.x)), top = Math.max(0, Math.floor(place.y));
  const right = Math.min(width, Math.ceil(place.x + place.width)), bottom = Math.min(height, Math.ceil(place.y + place.height));
  if (right <= left || bottom <= top) return;
  const dx = map.width / place.width, dy = map.height / place.height;
  const colored = document.createElement("canvas");
  colored.width = right - left;
  colored.height = bottom - top;
  colored.getContext("2d")!.putImageData(
    colorMap(map, colored.width, colored.height, (left - place.x) * dx, (top - place.y) * dy, dx, dy), 0, 0);
  context.globalAlpha = opacity;
  context.drawImage(colored, left, top);
  context.globalAlpha = 1;
}

/** Dim what is outside of the region of interest. */
export function drawVeil(context: CanvasRenderingContext2D, map: ScoreMap, place: Placement): void {
  const veil = veilOf(map);
  if (!veil) return;
  const cells = document.createElement("canvas");
  cells.width = map.width;
  cells.height = map.height;
  cells.getContext("2d")!.putImageData(veil, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(cells, place.x, place.y, place.width, place.height);
  context.imageSmoothingEnabled = true;
}

/** Draw outlines of regions: white on a dark line, so that they show on dark and on white images. */
export function drawOutlines(context: CanvasRenderingContext2D, map: ScoreMap, found: Found, place: Placement, line: number): void {
  const lines = linesOf(map, found), dx = place.width / map.width, dy = place.height / map.height;
  context.beginPath();
  for (let i = 0; i < lines.length; i += 4) {
    context.moveTo(place.x + lines[i] * dx, place.y + lines[i + 1] * dy);
    context.lineTo(place.x + lines[i + 2] * dx, place.y + lines[i + 3] * dy);
  }
  context.lineCap = "round";
  context.strokeStyle = "rgb(10 12 18 / 85%)";
  context.lineWidth = 3 * line;
  context.stroke();
  context.strokeStyle = "#fff";
  context.lineWidth = 1.3 * line;
  context.stroke();
}

type Task = () => void;
const tasks: Task[] = [];
const SLICE_MS = 8;

function runTasks(): void {
  const until = performance.now() + SLICE_MS;
  while (tasks.length && performance.now() < until) tasks.shift()!();
  if (tasks.length) requestAnimationFrame(runTasks);
}

/** Run a drawing soon, a few milliseconds of them per frame. Return a function that cancels it. */
export function soon(task: Task): () => void {
  tasks.push(task);
  if (tasks.length === 1) requestAnimationFrame(runTasks);
  return () => {
    const at = tasks.indexOf(task);
    if (at >= 0) tasks.splice(at, 1);
  };
}

/** Run all waiting drawings now, before the page is printed. */
export function drawAll(): void {
  while (tasks.length) tasks.shift()!();
}
