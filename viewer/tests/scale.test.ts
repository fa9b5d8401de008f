import { expect, test } from "vitest";
import { colorOf, pixelOf, scoreOf, valueOf } from "../src/scale";

test("the score of a value is 0.5 at the threshold, and valueOf is its inverse", () => {
  expect(scoreOf(1)).toBe(0.5);
  expect(scoreOf(0)).toBe(0);
  for (const score of [0.1, 0.25, 0.5, 0.7, 0.99]) expect(scoreOf(valueOf(score))).toBeCloseTo(score, 10);
});

test("heat is clear below 0.25, opaque from 0.5, and neither black nor white", () => {
  const alpha = (score: number): number => pixelOf(valueOf(score)) >>> 24;
  expect(alpha(0.2)).toBe(0);
  expect(alpha(0.4)).toBeGreaterThan(100);
  expect(alpha(0.52)).toBe(255);
  for (let score = 0.25; score <= 1; score += 0.05) {
    const [r, g, b] = colorOf(score).map((c) => (c / 255) ** 2.2), luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    expect(luminance).toBeGreaterThan(0.08); // seen on black
    expect(luminance).toBeLessThan(0.62); // seen on white
  }
});
