import { zlibSync } from "fflate";
import { expect, test } from "vitest";
import { outlines } from "../src/contours";
import { decodeMap, sample, type ScoreMap } from "../src/maps";
import { boxesOf, findCells } from "../src/regions";
import { scoreOf } from "../src/scale";

/** A map of zeros with a block of `value`. */
function block(value: number, left = 2, top = 3, size = 4): ScoreMap {
  const values = new Float32Array(16 * 12);
  for (let y = top; y < top + size; y++) for (let x = left; x < left + size; x++) values[y * 16 + x] = value;
  return { width: 16, height: 12, values, inside: null };
}

test("a block above the threshold is one region with its box in image pixels", () => {
  const map = block(2), found = findCells(map, scoreOf(2), 0.5);
  expect(found.kept).toHaveLength(1);
  expect(boxesOf(found, map, 160, 120)).toEqual([[20, 30, 40, 40, 1600, scoreOf(2)]]);
});

test("there is a region if and only if the score reaches the threshold", () => {
  const map = block(2), score = scoreOf(2);
  expect(findCells(map, score, score).kept).toHaveLength(1);
  expect(findCells(map, score, score + 1e-6).kept).toHaveLength(0);
  expect(findCells(map, score, null).kept).toHaveLength(0);
});

test("regions reach down to three quarters of the threshold, and to 0.6 of a high peak", () => {
  const map = block(4);
  map.values[3 * 16 + 6] = 2.5; // beside the block, over 0.6 · 4
  map.values[3 * 16 + 7] = 2.3; // under it
  expect(boxesOf(findCells(map, scoreOf(4), 0.5), map, 16, 12)[0].slice(0, 4)).toEqual([2, 3, 5, 4]);
});

test("outlines enclose the region, between its cells and their neighbors", () => {
  const map = block(2), lines = outlines(map, findCells(map, scoreOf(2), 0.5));
  const xs = lines.filter((_, i) => i % 2 === 0), ys = lines.filter((_, i) => i % 2 === 1);
  expect(Math.min(...xs)).toBeGreaterThan(1.5);
  expect(Math.min(...xs)).toBeLessThanOrEqual(2.5);
  expect(Math.max(...ys)).toBeGreaterThanOrEqual(6.5);
  expect(Math.max(...ys)).toBeLessThan(7.5);
});

test.each([1, 2] as const)("maps of %i bytes are decoded and interpolated between cell centers", (bytes) => {
  const largest = bytes === 1 ? 255 : 65535, raw = new Uint8Array(4 * bytes);
  [0, largest, 0, largest].forEach((number, i) => { raw[i * bytes] = number & 255; if (bytes === 2) raw[i * bytes + 1] = number >> 8; });
  const data = btoa(String.fromCharCode(...zlibSync(raw)));
  const map = decodeMap({ width: 2, height: 2, top: 3, bytes, data, inside: btoa(String.fromCharCode(...zlibSync(Uint8Array.of(1, 1, 0, 1)))) });
  expect([...map.inside!]).toEqual([1, 1, 0, 1]);
  expect([...map.values]).toEqual([0, 3, 0, 3]);
  expect(sample(map, 1, 1)).toBeCloseTo(1.5);
  expect(sample(map, 0.5, 0.5)).toBe(0);
});
