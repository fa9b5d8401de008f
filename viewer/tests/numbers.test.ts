import { expect, test } from "vitest";
import { layOut, firstLine } from "../src/components/Gallery";
import { csvCell, quoted } from "../src/format";
import { binScores, rangeOf } from "../src/histogram";
import { confusionAt, curvesOf, mistake } from "../src/metrics";
import { Reviews, reviewCsv } from "../src/review";

const scores = Float64Array.from([0.1, 0.31, 0.39, 0.9]);

test("the bin that contains the threshold is split by counting", () => {
  const bins = binScores(scores, 0, 1, 5, 0.35);
  expect(bins.map((bin) => bin.count)).toEqual([1, 2, 0, 0, 1]);
  expect(bins.map((bin) => bin.above)).toEqual([0, 1, 0, 0, 1]);
  const [low, high] = rangeOf(scores, 0.95);
  expect(low).toBeLessThan(0.1);
  expect(high).toBeGreaterThan(0.95);
});

const labeled = [[0.9, true], [0.8, false], [0.7, true], [0.1, false]].map(([score, defect]) => ({ score: score as number, defect: defect as boolean }));

test("confusion counts, AUROC and average precision agree with their definitions", () => {
  expect(confusionAt(labeled, 0.75)).toEqual({ found: 1, missed: 1, falseAlarms: 1, passed: 1 });
  const curves = curvesOf(labeled)!;
  expect(curves.auroc).toBeCloseTo(0.75);
  expect(curves.ap).toBeCloseTo((1 + 2 / 3) / 2);
  expect(curves.roc.at(-1)).toEqual([1, 1]);
  expect(curvesOf(labeled.filter((one) => one.defect))).toBeNull();
});

test("the worst mistake is the farthest from the threshold", () => {
  expect(mistake(0.9, true, 0.5)).toBe(-1);
  expect(mistake(0.1, true, 0.5)).toBeGreaterThan(mistake(0.4, true, 0.5));
  expect(mistake(0.9, false, 0.5)).toBeGreaterThan(mistake(0.6, false, 0.5));
});

test("decisions are undone in reverse, and an untouched image is not exported", () => {
  const reviews = new Reviews("key", null);
  reviews.set("a", { decision: "accept" });
  reviews.set("a", { note: "dust" });
  expect(reviews.counts()).toEqual({ accepted: 1, rejected: 0 });
  expect(reviews.undo()).toBe("a");
  expect(reviews.of("a")).toEqual({ decision: "accept", note: "", tags: [] });
  reviews.undo();
  expect(reviews.all.size).toBe(0);
  expect(reviews.undo()).toBeNull();
});

test("a full storage keeps the decisions and says that they are not stored", () => {
  const full = { getItem: () => null, setItem: () => { throw new Error("quota"); } } as unknown as Storage;
  const reviews = new Reviews("key", full);
  reviews.set("a", { decision: "reject" });
  expect(reviews.isStored).toBe(false);
  expect(reviews.of("a").decision).toBe("reject");
});

test("CSV cells are quoted, and formulas stay text", () => {
  expect(csvCell('a "b", c')).toBe('"a ""b"", c"');
  expect(csvCell("=1+1")).toBe("'=1+1");
  expect(csvCell(-0.5)).toBe("-0.5");
  const csv = reviewCsv([{ name: "x,y.png", decision: "reject", note: "", tags: ["dent", "edge"], method: "m", score: 0.5, verdict: "flagged", threshold: 0.5 }]);
  expect(csv.split("\r\n")[1]).toBe('"x,y.png",reject,,dent;edge,m,0.5,flagged,0.5');
});

test("words for the shell are quoted where that is needed", () => {
  expect(quoted("out/run-1")).toBe("out/run-1");
  expect(quoted("it's")).toBe("'it'\\''s'");
});

test("the gallery finds the first line near the window by its place", () => {
  const { lines, height } = layOut([{ title: "a", items: [0, 1, 2] }, { title: "b", items: [3] }], 2, 100, 10, true);
  expect(lines.map((line) => line.items)).toEqual([[], [0, 1], [2], [], [3]]);
  expect(height).toBe(2 * 46 + 3 * 110);
  expect(firstLine(lines, 0)).toBe(0);
  expect(firstLine(lines, lines[2].top + 50)).toBe(2);
});
