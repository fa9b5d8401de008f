import type { ScoreMap } from "./maps";
import { scoreOf, valueOf } from "./scale";
import type { Region } from "./types";

/** Same constants as `postprocess/calibration.py` and `postprocess/regions.py`. */
const GROW_FROM = 0.75, PEAK_SHARE = 0.6, MIN_CELLS = 4, SIDE_OF_MIN_CELLS = 64, MAX_REGIONS = 100;

/** One region in cells. */
export interface Cells {
  label: number;
  left: number;
  top: number;
  right: number;
  bottom: number;
  count: number;
  peak: number;
  /** Value down to which the region reaches. */
  cut: number;
}

export interface Found {
  labels: Int32Array;
  kept: Cells[];
}

/** Label cells that touch by an edge or a corner, from 1. */
export function labelCells(inside: Uint8Array, width: number, height: number): [Int32Array, number] {
  const labels = new Int32Array(inside.length), stack: number[] = [];
  let last = 0;
  for (let seed = 0; seed < inside.length; seed++) {
    if (!inside[seed] || labels[seed]) continue;
    labels[seed] = ++last;
    stack.push(seed);
    while (stack.length) {
      const at = stack.pop()!, column = at % width, row = (at - column) / width;
      for (let y = Math.max(0, row - 1); y <= Math.min(height - 1, row + 1); y++)
        for (let x = Math.max(0, column - 1); x <= Math.min(width - 1, column + 1); x++) {
          const next = y * width + x;
          if (inside[next] && !labels[next]) {
            labels[next] = last;
            stack.push(next);
          }
        }
    }
  }
  return [labels, last];
}

/** Regions of a map at a threshold, as `postprocess/regions.py` finds them. `score` is the score of the image. */
export function findCells(map: ScoreMap, score: number, threshold: number | null): Found {
  const { width, height, values } = map;
  if (threshold === null || score < threshold) return { labels: new Int32Array(values.length), kept: [] };
  const seed = valueOf(threshold), level = Math.min(GROW_FROM * seed, seed);
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  const isSeed = (i: number) => i === best || values[i] >= seed;
  const grown = new Uint8Array(values.length);
  for (let i = 0; i < values.length; i++) grown[i] = isSeed(i) || values[i] >= level ? 1 : 0;
  const [wide, many] = labelCells(grown, width, height), peaks = new Float64Array(many + 1);
  for (let i = 0; i < values.length; i++) peaks[wide[i]] = Math.max(peaks[wide[i]], values[i]);
  for (let i = 0; i < values.length; i++) grown[i] = wide[i] && values[i] >= PEAK_SHARE * peaks[wide[i]] ? 1 : 0;
  const [labels, last] = labelCells(grown, width, height);
  const found: (Cells & { seeded: boolean })[] = Array.from({ length: last + 1 }, (_, label) => ({
    label, left: width, top: height, right: 0, bottom: 0, count: 0, peak: 0, cut: 0, seeded: false,
  }));
  for (let i = 0; i < values.length; i++) {
    if (!labels[i]) continue;
    const one = found[labels[i]], x = i % width, y = (i - x) / width;
    one.count++;
    one.seeded ||= isSeed(i);
    one.peak = Math.max(one.peak, values[i]);
    one.cut = Math.max(level, PEAK_SHARE * peaks[wide[i]]);
    one.left = Math.min(one.left, x);
    one.right = Math.max(one.right, x + 1);
    one.top = Math.min(one.top, y);
    one.bottom = Math.max(one.bottom, y + 1);
  }
  const least = Math.max(width, height) >= SIDE_OF_MIN_CELLS ? MIN_CELLS : 1;
  const kept = found
    .filter((one) => one.count && one.seeded && (one.count >= least || one.label === labels[best]))
    .sort((a, b) => b.peak - a.peak || a.top - b.top || a.left - b.left)
    .slice(0, MAX_REGIONS);
  return { labels, kept };
}

/** Boxes in image pixels, highest peak first. */
export function boxesOf(found: Found, map: ScoreMap, width: number, height: number): Region[] {
  const across = width / map.width, down = height / map.height;
  return found.kept.map((one) => {
    const left = Math.floor(one.left * across), top = Math.floor(one.top * down);
    const right = Math.min(width, Math.max(left + 1, Math.round(one.right * across)));
    const bottom = Math.min(height, Math.max(top + 1, Math.round(one.bottom * down)));
    const area = Math.min((right - left) * (bottom - top), Math.max(1, Math.round(one.count * across * down)));
    return [left, top, right - left, bottom - top, area, scoreOf(one.peak)];
  });
}
